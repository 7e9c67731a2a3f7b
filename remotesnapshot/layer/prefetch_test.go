package layer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// largeLayer has more than one step of background fetch.
func largeLayer(t *testing.T, prioritized ...string) built {
	var files []file
	for i := range 6 {
		files = append(files, file{fmt.Sprintf("f%d", i), noise(uint64(i), 1<<20)})
	}
	return buildAs(t, estargztest.Options{Format: estargz.FormatEStargz, Prioritized: prioritized}, files)
}

func TestPrefetchUpToTheLandmark(t *testing.T) {
	o := largeLayer(t, "f4", "f5").open(t, Options{})
	end := o.toc.PrefetchEnd()
	require.Greater(t, end, int64(2<<20))
	require.Less(t, end, int64(3<<20))
	o.Prefetch()
	o.Prefetch() // once is enough
	eventually(t, "prefetched", func() bool { return o.Info().Prefetched == end })
	require.Equal(t, end, o.blob.Fetched())
	for _, r := range o.blob.requests() {
		require.Equal(t, Prefetch, r.prio)
	}
	o.blob.forget()
	for _, name := range []string{"f4", "f5"} {
		_, err := o.read(t.Context(), name, 0, 1<<20)
		require.NoError(t, err)
	}
	require.Empty(t, o.blob.requests(), "no read waits for what was prefetched")
}

func TestPrefetchSizeIsForLayersWithoutLandmark(t *testing.T) {
	o := largeLayer(t).open(t, Options{PrefetchSize: 700_000})
	require.Zero(t, o.toc.PrefetchEnd())
	o.Prefetch()
	eventually(t, "prefetched", func() bool { return o.blob.Fetched() == 700_000 })
	o.Close()
	require.EqualValues(t, 700_000, o.blob.Fetched())
}

func TestNothingIsPrefetchedUnasked(t *testing.T) {
	o := largeLayer(t).open(t, Options{})
	o.Prefetch()
	o.Close()
	require.Empty(t, o.blob.requests())
}

func TestCloseEndsPrefetch(t *testing.T) {
	o := largeLayer(t).open(t, Options{PrefetchSize: 1 << 30})
	g := stop(t, o.blob)
	o.Prefetch()
	<-g.arrived
	o.Close()
	require.Zero(t, o.blob.Fetched())
}

func TestBackgroundFetchMakesTheLayerLocal(t *testing.T) {
	o := largeLayer(t).open(t, Options{BackgroundFetch: true, IdleTime: time.Millisecond})
	failed := 0
	o.blob.serveBy(func(context.Context, fakeRequest) error {
		if failed++; failed <= 3 {
			return errors.New("not now")
		}
		return nil
	})
	o.Prefetch()
	eventually(t, "local", func() bool { return o.Info().Local })
	for _, r := range o.blob.requests() {
		require.Equal(t, Background, r.prio)
	}
	require.Empty(t, o.Info().LastError, "its failures are nobody's")
}

func TestBackgroundFetchWaitsForReadsToPause(t *testing.T) {
	o := largeLayer(t).open(t, Options{BackgroundFetch: true, IdleTime: time.Millisecond})
	g := stop(t, o.blob)
	read := make(chan error, 1)
	go func() { _, err := o.read(t.Context(), "f3", 0, 10); read <- err }()
	r := <-g.arrived
	require.Equal(t, Blocked, r.prio)
	o.Prefetch()
	select {
	case r := <-g.arrived:
		t.Fatalf("fetched %v while a read waits", r)
	case <-time.After(50 * time.Millisecond):
	}
	close(g.open)
	require.NoError(t, <-read)
	eventually(t, "local", func() bool { return o.Info().Local })
}

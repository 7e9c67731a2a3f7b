package blob_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

func (r *rig) asked() (ranges []string) {
	for _, q := range r.reg.Blobs() {
		ranges = append(ranges, q.Range)
	}
	return ranges
}

// Ranges that were chosen are asked for as they are: neighbours are not joined,
// also where only one request can be sent at a time.
func TestFetchAllAsksAsItIsTold(t *testing.T) {
	for _, connections := range []int{1, 2, 10} {
		t.Run(fmt.Sprint(connections), func(t *testing.T) {
			r := newRig(t, 8*mib)
			r.opts.Connections, r.opts.RequestSize = connections, 2*mib
			b := r.open()
			r.reads(b, blob.Blocked, 0, 10)
			r.reg.Reset()
			ranges := []blob.Range{{Off: 5 * mib, Size: 2 * mib}, {Off: 1 * mib, Size: 1000}, {Off: 1*mib + 1000, Size: 1000}, {Off: 1*mib + 2010, Size: 7}}
			require.NoError(t, b.FetchAll(t.Context(), blob.Prefetch, ranges))
			want := []string{
				fmt.Sprintf("bytes=%d-%d", 5*mib, 7*mib-1), fmt.Sprintf("bytes=%d-%d", 1*mib, 1*mib+999),
				fmt.Sprintf("bytes=%d-%d", 1*mib+1000, 1*mib+1999), fmt.Sprintf("bytes=%d-%d", 1*mib+2010, 1*mib+2016),
			}
			require.ElementsMatch(t, want, r.asked())
			for _, g := range ranges {
				require.True(t, b.Present(g.Off, g.Size))
			}
			require.NoError(t, b.FetchAll(t.Context(), blob.Prefetch, ranges))
			require.Len(t, r.asked(), len(want), "what is here is not asked for")
		})
	}
}

// What is here, or on its way already, is left out.
func TestFetchAllTakesWhatIsMissing(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 100_000, 50_000)
	r.reg.Reset()
	require.NoError(t, b.FetchAll(t.Context(), blob.Prefetch, []blob.Range{{Off: 90_000, Size: 100_000}, {Off: 95_000, Size: 20_000}, {Off: 5 * mib, Size: 10}}))
	require.EqualValues(t, 50_000, r.reg.Bytes())
	require.EqualValues(t, 100_000, b.Fetched())
}

func TestFetchAllFails(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	for _, bad := range []blob.Range{{Off: -1, Size: 5}, {Off: 1, Size: -5}, {Off: 1 << 62, Size: 1 << 62}} {
		require.ErrorContains(t, b.FetchAll(t.Context(), blob.Prefetch, []blob.Range{{Off: 0, Size: 10}, bad}), r.dgst.String())
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.reg.SetLatency(time.Minute)
	go func() {
		for r.reg.Requests() == 0 {
			time.Sleep(time.Millisecond)
		}
		cancel()
	}()
	require.ErrorIs(t, b.FetchAll(ctx, blob.Prefetch, []blob.Range{{Off: 0, Size: 10}, {Off: 2 * mib, Size: 10}}), context.Canceled)
	require.NoError(t, b.Close())
	require.ErrorIs(t, b.FetchAll(t.Context(), blob.Prefetch, nil), blob.ErrClosed)
}

// A range that is longer than a request may be is several, of which no one keeps a
// connection for long.
func TestFetchAllInPieces(t *testing.T) {
	r := newRig(t, 8*mib)
	r.opts.RequestSize = 1 * mib
	b := r.open()
	r.reads(b, blob.Blocked, 0, 10)
	r.reg.Reset()
	require.NoError(t, b.FetchAll(t.Context(), blob.Prefetch, []blob.Range{{Off: 1 * mib, Size: 4 * mib}}))
	require.Equal(t, 4, r.reg.Requests())
	require.EqualValues(t, 4*mib, r.reg.Bytes())
}

// Who makes connections is told where the requests will go: to the registry, or to the
// place that it has named.
func TestExpect(t *testing.T) {
	r := newRig(t, mib)
	type call struct {
		host string
		url  string
		n    int
	}
	var calls []call
	r.opts.Expect = func(host string, u *url.URL, n int) { calls = append(calls, call{host, u.Scheme + "://" + u.Host, n}) }
	r.opts.Connections = 5
	b := r.open()
	b.Expect(t.Context(), 7)
	b.Expect(t.Context(), 1000) // 12 connections, of which one is kept for others
	at := "http://" + r.reg.Host()
	require.Equal(t, []call{{r.reg.Host(), at, 7}, {r.reg.Host(), at, 11}}, calls)
	require.Zero(t, r.reg.Requests())

	r.reg.Redirect(time.Minute)
	r.reads(b, blob.Blocked, 0, 10)
	calls = nil
	b.Expect(t.Context(), 7)
	require.Len(t, calls, 1)
	require.Equal(t, r.reg.Host(), calls[0].host)
	require.NotEqual(t, at, calls[0].url)
	require.NoError(t, b.Close())
	b.Expect(t.Context(), 7)
	require.Len(t, calls, 1)
}

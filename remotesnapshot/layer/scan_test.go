package layer

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// twoTrees is a layer with directories a and b, each of which has many directories of
// a few files.
func twoTrees(t *testing.T) (built, []file) {
	var files []file
	for _, top := range []string{"a", "b"} {
		for i := range 60 {
			for k := range 3 {
				files = append(files, file{fmt.Sprintf("%s/d%03d/f%d", top, i, k), noise(uint64(i), 10_000)})
			}
		}
	}
	return build(t, estargz.FormatEStargz, files), files
}

// enough of the files make a scan.
const enough = (treeDirs-1)*3 + 1

// below are the files of a directory.
func below(files []file, dir string) (out []file) {
	for _, f := range files {
		if f.name[:len(dir)] == dir {
			out = append(out, f)
		}
	}
	return out
}

// walk reads files one after the other.
func (o *opened) walk(files []file) {
	o.t.Helper()
	for _, f := range files {
		data, err := o.read(o.t.Context(), f.name, 0, len(f.data))
		require.NoError(o.t, err)
		require.Equal(o.t, f.data, data)
	}
}

// present counts the files that are.
func (o *opened) present(files []file) (n int) {
	for _, f := range files {
		if m := o.member(f.name, 0); o.blob.Present(m.Offset, m.Size) {
			n++
		}
	}
	return n
}

func TestScanFetchesTheRestOfTheDirectory(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	a := below(files, "a/")
	o.walk(a[:enough]) // the last of them makes it a scan
	eventually(t, "all of the directory is there", func() bool { return o.present(a) == len(a) })
	require.Zero(t, o.present(below(files, "b/")), "and nothing else")
	blocked := 0
	for _, r := range o.blob.requests() {
		if r.prio == Blocked {
			blocked++
		}
	}
	require.LessOrEqual(t, blocked, enough)
	o.blob.forget()
	o.walk(a)
	require.Empty(t, o.blob.requests())

	o.walk(below(files, "b/")[:heirFiles])
	eventually(t, "the walk goes on", func() bool { return o.present(files) == len(files) })
}

// A scan goes from one layer of an image to the other, where it is seen at once.
func TestScanOfAnotherLayer(t *testing.T) {
	b, files := twoTrees(t)
	o, above := b.open(t, Options{Window: -1}), b.open(t, Options{Window: -1})
	o.SetImage(func() []*Layer { return []*Layer{above.Layer, o.Layer} })
	a := below(files, "a/")
	o.walk(a[:heirFiles+1])
	require.Equal(t, heirFiles+1, o.present(a), "nobody scans")

	above.walk(a[:enough])
	require.NotZero(t, above.scanned.Load())
	o.pool.scanned.Store(above.scanned.Load()) // they have one pool in a daemon
	o.walk(a[heirFiles+1 : heirFiles+3])
	require.NotZero(t, o.scanned.Load())
	o.walk(a[heirFiles+3 : heirFiles+8])
	eventually(t, "all that it has come through is there", func() bool { return o.present(a) > heirFiles+8 })

	far := b.open(t, Options{Window: -1})
	far.SetImage(func() []*Layer { return []*Layer{above.Layer, far.Layer} })
	far.pool.scanned.Store(above.scanned.Load())
	for i := 0; i < 6*20; i += 20 {
		far.walk(files[i : i+1])
	}
	require.Zero(t, far.scanned.Load(), "who leaves out most files does not scan")
}

func TestFewReadsAreNoScan(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	n := (treeDirs - 1) * 3
	o.walk(files[:n])
	o.Close()
	require.Len(t, o.blob.requests(), n)
}

func TestScanStopsWithItsReads(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1, IdleTime: time.Millisecond})
	cancelled := make(chan error, 100)
	o.blob.serveBy(func(ctx context.Context, r fakeRequest) error {
		if r.prio == Blocked {
			return nil
		}
		<-ctx.Done() // it would take for ever
		cancelled <- ctx.Err()
		return ctx.Err()
	})
	n := treeDirs * 3
	o.walk(files[:n])
	require.ErrorIs(t, <-cancelled, context.Canceled, "when nothing is read")
	eventually(t, "fetching has ended", func() bool { return !o.scanning.Load() })

	o.blob.serveBy(nil)
	o.walk(files[n : n+1])
	eventually(t, "it goes on with the reads", func() bool {
		o.walk(files[n : n+1]) // the time between two reads is more than none
		return o.present(below(files, "a/")) == 180
	})
}

func TestScanLeavesFailuresToReaders(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	o.blob.serveBy(func(_ context.Context, r fakeRequest) error {
		if r.prio == Blocked {
			return nil
		}
		return errors.New("not now")
	})
	o.walk(files)
	require.Empty(t, o.Info().LastError)
}

func TestCloseEndsAScan(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	arrived := make(chan struct{}, 100)
	o.blob.serveBy(func(ctx context.Context, r fakeRequest) error {
		if r.prio == Blocked {
			return nil
		}
		arrived <- struct{}{}
		<-ctx.Done()
		return ctx.Err()
	})
	o.walk(files[:enough])
	<-arrived
	o.Close()
}

func TestScanIsDecompressedAhead(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, 0, int64(len(o.blob.data))))
	n := treeDirs * 3
	o.walk(files[:n])
	next := files[n : n+unpackMembers/2]
	eventually(t, "what comes next is in the cache", func() bool {
		for _, f := range next {
			c, err := o.toc.FindChunk(o.inode(f.name), 0)
			require.NoError(t, err)
			b := o.pool.cache.get(chunkKey{o.id, c})
			if b == nil {
				return false
			}
			b.release()
		}
		return true
	})
	loads := o.Info().Loads
	require.LessOrEqual(t, loads, int64(n+unpackMembers+unpackBatch), "and not much more")
	o.walk(next)
	o.walk(files)
}

func TestDenseLayerIsFetchedWhole(t *testing.T) {
	b, files := twoTrees(t)
	o := b.open(t, Options{Window: -1})
	defer o.stats.begin()(nil) // a read
	for range missCount {
		o.missed(time.Minute)
	}
	eventually(t, "all is there", func() bool { return o.present(files) == len(files) })
}

func TestWaitsAreForgotten(t *testing.T) {
	w := &walks{}
	now := time.Unix(0, 0)
	for range missCount - 1 {
		require.False(t, w.missed(time.Minute, 0, now, 1))
	}
	now = now.Add(missPause + 1)
	for range missCount - 1 {
		require.False(t, w.missed(time.Minute, 0, now, 1))
	}
	require.True(t, w.missed(time.Minute, 0, now, 1))
}

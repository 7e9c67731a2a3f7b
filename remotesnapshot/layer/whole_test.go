package layer

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

const (
	testLeast  = 32 << 10
	testMargin = 10 << 10
	testChunk  = 64 << 10
)

// whole asks for the chunk that holds byte off of a file, and checks its bytes.
func (o *opened) whole(f file, off int64) (lo, hi int64, ok bool) {
	o.t.Helper()
	_, err := o.Acquire()
	require.NoError(o.t, err)
	w, ok := o.Whole(o.inode(f.name), off, testLeast, testMargin)
	o.Release()
	if !ok {
		return 0, 0, false
	}
	defer w.Release()
	if w.Again {
		return 0, 0, false
	}
	lo, hi = w.Off, w.Off+int64(len(w.Data))
	require.True(o.t, bytes.Equal(f.data[lo:hi], w.Data), "bytes %d to %d", lo, hi)
	return lo, hi, true
}

func (o *opened) reads(f file, off int64) {
	o.t.Helper()
	_, err := o.read(o.t.Context(), f.name, off, 10)
	require.NoError(o.t, err)
}

// TestWhole: the chunk of which something was read is handed out once, without what
// lies beside bytes that are not here.
func TestWhole(t *testing.T) {
	f := file{"f", noise(1, 4*testChunk+40<<10)}
	small := file{"small", noise(2, testLeast-1)}
	for _, format := range formats {
		t.Run(fmt.Sprint(format), func(t *testing.T) {
			o := buildAs(t, estargztest.Options{Format: format, ChunkSize: testChunk}, []file{f, small}).open(t, Options{Window: -1})
			margin := int64(testMargin)
			if format == estargz.FormatStargz {
				margin = 0 // such a blob is here as a whole
			}
			check := func(off, lo, hi int64) {
				t.Helper()
				gotLo, gotHi, ok := o.whole(f, off)
				require.True(t, ok)
				require.Equal(t, [2]int64{lo, hi}, [2]int64{gotLo, gotHi})
			}
			none := func(f file, off int64) {
				t.Helper()
				_, _, ok := o.whole(f, off)
				require.False(t, ok)
			}
			none(f, 0) // nothing was read

			o.reads(f, testChunk+5)
			check(2*testChunk-1, testChunk+margin, 2*testChunk-margin)
			none(f, testChunk) // once
			none(f, 0)         // another chunk

			o.reads(f, 0)
			check(0, 0, testChunk) // its neighbour is here
			o.reads(f, 2*testChunk)
			check(2*testChunk, 2*testChunk, 3*testChunk-margin)
			o.reads(f, 4*testChunk)
			check(4*testChunk, 4*testChunk+margin, int64(len(f.data))) // its end is no neighbour
			o.reads(f, 3*testChunk)
			check(3*testChunk, 3*testChunk, 4*testChunk)

			o.reads(small, 0)
			none(small, 0)
			none(f, int64(len(f.data)))
			none(f, -1)

			o.pool.cache.dropLayer(o.id)
			o.reads(f, 0)
			check(10, 0, testChunk) // decompressed again
		})
	}
}

// TestWholeGoesFirst: a chunk that was handed out makes room for the next ones.
func TestWholeGoesFirst(t *testing.T) {
	f := file{"f", noise(1, 4*testChunk)}
	o := buildAs(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: testChunk}, []file{f}).open(t, Options{CacheBytes: 3*testChunk + testChunk/2})
	for i := range int64(3) {
		o.reads(f, i*testChunk)
	}
	_, _, ok := o.whole(f, 2*testChunk)
	require.True(t, ok)
	o.reads(f, 3*testChunk)
	loads := o.Info().Loads
	o.reads(f, 0)
	o.reads(f, testChunk)
	require.Equal(t, loads, o.Info().Loads, "these two are in the cache")
	o.reads(f, 2*testChunk)
	require.Equal(t, loads+1, o.Info().Loads)
}

// TestWholeConcurrently: each chunk is handed out once however many ask, and memory
// comes back.
func TestWholeConcurrently(t *testing.T) {
	f := file{"f", noise(1, 16*testChunk)}
	o := buildAs(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: testChunk}, []file{f}).open(t, Options{CacheBytes: 32 * testChunk})
	var mu sync.Mutex
	seen := make(map[int64]int)
	var readers sync.WaitGroup
	for n := range 8 {
		readers.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 1))
			for range 200 {
				off := r.Int64N(int64(len(f.data)))
				o.reads(f, off)
				if _, _, ok := o.whole(f, off); ok {
					mu.Lock()
					seen[off/testChunk]++
					mu.Unlock()
				}
			}
		})
	}
	readers.Wait()
	require.Len(t, seen, 16)
	for c, n := range seen {
		require.Equal(t, 1, n, "chunk %d", c)
	}
}

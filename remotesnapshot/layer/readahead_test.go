package layer

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

func TestRunOfReadsIsFetchedAhead(t *testing.T) {
	const size = 64 << 20
	var r readAhead
	var ahead int64
	for off := int64(0); off < size; off += 128 << 10 {
		lo, hi := r.note(7, off, 128<<10, size)
		if hi == 0 {
			continue
		}
		require.GreaterOrEqual(t, lo, off, "not what was read")
		require.Greater(t, hi, lo)
		require.LessOrEqual(t, hi, off+128<<10+aheadLimit)
		require.LessOrEqual(t, lo, max(ahead, off+128<<10), "no hole")
		ahead = hi
		r.done()
		if off < aheadStart-128<<10 {
			t.Fatalf("fetched ahead after %d bytes", off)
		}
	}
	require.EqualValues(t, size, ahead, "up to the end of the file")
}

// A run goes on over what the kernel has been given of each chunk.
func TestRunGoesOnBehindWhatIsKept(t *testing.T) {
	const size, chunk, margin, read = 64 << 20, 4 << 20, 128 << 10, 128 << 10
	for name, first := range map[string]int64{"large first read": read, "small first read": 16 << 10} {
		t.Run(name, func(t *testing.T) {
			var r readAhead
			ahead := int64(0)
			note := func(off, n int64) {
				if _, hi := r.note(7, off, int(n), size); hi > 0 {
					ahead = hi
					r.done()
				}
			}
			for c := int64(0); c < size; c += chunk {
				note(c, first)
				lo, hi := c, c+chunk-margin
				if c > 0 {
					lo += margin
				}
				if hi == size-margin {
					hi = size
				}
				r.keep(7, lo, hi)
				if lo > c && first < margin {
					note(c+first, margin-first)
				}
				note(hi, margin)
				if c >= chunk {
					require.Greater(t, ahead, min(c+chunk, size-1), "the next chunk is on its way")
				}
			}
			require.EqualValues(t, size, ahead)
		})
	}
}

func TestReadsHereAndThereInKeptChunksFetchNothingAhead(t *testing.T) {
	const chunk = 4 << 20
	var r readAhead
	for i := range int64(1000) {
		off := (i * 7919 % 125) * chunk
		_, hi := r.note(7, off+i%8*(400<<10), 128<<10, 125*chunk)
		require.Zero(t, hi)
		r.keep(7, off+128<<10, off+chunk-128<<10)
	}
}

func TestReadsHereAndThereFetchNothingAhead(t *testing.T) {
	var r readAhead
	for i := range int64(1000) {
		_, hi := r.note(7, (i*7919%500)<<20, 128<<10, 500<<20)
		require.Zero(t, hi)
	}
}

func TestManyFilesAtATimeDoNotMixUp(t *testing.T) {
	var r readAhead
	for off := int64(0); off < 4<<20; off += 128 << 10 {
		for inode := range uint32(8) {
			if _, hi := r.note(inode, off, 128<<10, 100<<20); hi > 0 {
				r.done()
				require.GreaterOrEqual(t, off, int64(aheadStart-128<<10))
			}
		}
	}
}

func TestSequentialReadSendsFewRequests(t *testing.T) {
	const size = 6 << 20
	files := []file{{"before", noise(2, 1000)}, {"a", noise(1, size)}}
	o := build(t, estargz.FormatEStargz, files).open(t, Options{Window: 512 << 10})
	for off := int64(0); off < size; off += 128 << 10 {
		got, err := o.read(t.Context(), "a", off, 128<<10)
		require.NoError(t, err)
		require.Equal(t, files[1].data[off:off+128<<10], got)
	}
	require.Less(t, len(o.blob.requests()), 30, fmt.Sprint(o.blob.requests()))
	require.Positive(t, o.Info().Prefetched)
}

func TestReadOfManyChunksIsOneRequest(t *testing.T) {
	files := []file{{"a", noise(1, 1<<20)}}
	o := build(t, estargz.FormatEStargz, files).open(t, Options{})
	got, err := o.read(t.Context(), "a", 1000, 700_000) // eleven chunks
	require.NoError(t, err)
	require.Equal(t, files[0].data[1000:701_000], got)
	require.Len(t, o.blob.requests(), 1)
}

package lazyfs

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// TestLargeChunksAreDecompressedOnce: who reads here and there in more chunks than there
// is memory for has each of them decompressed once, because the kernel keeps them.
func TestLargeChunksAreDecompressedOnce(t *testing.T) {
	const chunk, chunks, page = 1 << 20, 16, 4096
	body := estargztest.Bytes(1, chunk*chunks)
	for _, noImages := range []bool{true, false} {
		t.Run(fmt.Sprintf("NoImages %t", noImages), func(t *testing.T) {
			reg := blobtest.New(t)
			w := start(t, Options{NoImages: noImages, Layer: layer.Options{CacheBytes: 3 * chunk}}, reg)
			src := push(reg, "repo:1", estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: chunk, Level: 1}, estargztest.File("f", body)))
			dir, _ := w.resolved(src)
			stored := uint64(1)
			if w.server.Images() {
				stored = 3 // what follows the page, what follows that, and what lies before it
			}

			f, err := os.Open(filepath.Join(dir, "f"))
			require.NoError(t, err)
			defer f.Close()
			require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM))
			read := func(off int64) {
				t.Helper()
				got := make([]byte, page)
				_, err := f.ReadAt(got, off)
				require.NoError(t, err)
				require.Equal(t, body[off:off+page], got, "at %d", off)
			}
			loads := func() int64 { return w.entriesOf(src.Digest)[0].content.layer.Load().Info().Loads }
			stores := func() uint64 { return w.server.Requests()["STORE"] }
			// From the end, so that the neighbour behind each one is here: no more than a margin
			// in front of it has to wait for the next one.
			for c := int64(chunks - 1); c >= 0; c-- {
				before := stores()
				read(c*chunk + chunk/2)
				eventually(t, "the chunk is stored", func() bool { return stores() == before+stored })
			}
			require.EqualValues(t, chunks, loads())
			r := rand.New(rand.NewPCG(1, 1))
			for range 500 {
				// Not in the margin, of which a later chunk's store did not know.
				read(r.Int64N(chunks)*chunk + 128<<10 + r.Int64N((chunk-256<<10)/page)*page)
			}
			require.EqualValues(t, chunks, loads(), "nothing was decompressed twice")
			for range 500 {
				read(r.Int64N(chunks*chunk/page) * page)
			}
			check(t, dir, "f", body)
			require.Less(t, loads(), int64(3*chunks), "each margin once more, at the most")
		})
	}
}

// TestLargeFileIsFetchedAhead: what the kernel is given of each chunk does not end the run
// of reads of one who reads a large file from one end to the other.
func TestLargeFileIsFetchedAhead(t *testing.T) {
	const chunk, chunks = 2 << 20, 16
	body := estargztest.Bytes(1, chunk*chunks)
	reg := blobtest.New(t)
	w := start(t, Options{Layer: layer.Options{Window: -1}}, reg)
	src := push(reg, "repo:1", estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: chunk, Level: 1}, estargztest.File("f", body)))
	dir, _ := w.resolved(src)
	reg.SetLatency(20 * time.Millisecond)

	f, err := os.Open(filepath.Join(dir, "f"))
	require.NoError(t, err)
	defer f.Close()
	part := make([]byte, 16<<10)
	for off := 0; off < len(body); off += len(part) {
		_, err := f.Read(part)
		require.NoError(t, err)
		require.True(t, bytes.Equal(body[off:off+len(part)], part), "at %d", off)
		time.Sleep(50 * time.Microsecond) // what it is read for
	}
	info := w.entriesOf(src.Digest)[0].content.layer.Load().Info()
	t.Log(info.Prefetched, w.server.Requests())
	require.Positive(t, w.server.Requests()["STORE"])
	require.Greater(t, info.Prefetched, int64(len(body)/2))
}

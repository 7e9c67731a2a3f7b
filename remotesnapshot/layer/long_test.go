package layer

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// Readers of a hostile layer, each of whose small files costs 200 MiB of decompression,
// hold up those of another layer no more than one of them would.
func TestLongDecompressionHoldsUpNobodyElse(t *testing.T) {
	const size, files = 200 << 20, 12
	var member bytes.Buffer
	z, err := gzip.NewWriterLevel(&member, gzip.BestSpeed)
	require.NoError(t, err)
	block := make([]byte, 1<<20)
	for range size / len(block) {
		z.Write(block)
	}
	require.NoError(t, z.Close())
	var entries []string
	for i := range files {
		entries = append(entries, fmt.Sprintf(`{"type":"reg","name":"f%d","size":10,"offset":%d,"innerOffset":%d,"chunkDigest":"sha256:%x"}`,
			i, i*member.Len(), size-10, sha256.Sum256(make([]byte, 10))))
	}
	raw, err := estargztest.RawLayer(bytes.Repeat(member.Bytes(), files), []byte(`{"version":1,"entries":[`+strings.Join(entries, ",")+`]}`))
	require.NoError(t, err)

	pool := NewPool(Options{DecodeBytes: 2 << 20, CacheBytes: 1}) // no chunk helps the next reader
	t.Cleanup(pool.Close)
	open := func(l estargztest.Layer) *opened {
		hints, err := estargz.ParseHints(l.Annotations)
		require.NoError(t, err)
		blob := newFakeBlob(l.Blob)
		toc, err := Finder{TOCDir: t.TempDir()}.Resolve(t.Context(), blob, hints)
		require.NoError(t, err)
		o := &opened{Layer: Open(pool, blob, toc), t: t, pool: pool, blob: blob}
		t.Cleanup(o.Close)
		return o
	}
	hostile := open(raw)
	good := open(estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz}, estargztest.File("a", noise(1, 1000))))

	var ended atomic.Int64
	var readers sync.WaitGroup
	for i := range files {
		readers.Go(func() {
			_, err := hostile.read(t.Context(), fmt.Sprintf("f%d", i), 0, 10)
			require.NoError(t, err)
			ended.Add(1)
		})
	}
	eventually(t, "one has been decompressed", func() bool { return ended.Load() > 0 })
	_, err = good.read(t.Context(), "a", 0, 1000)
	require.NoError(t, err)
	t.Logf("%d of %d before the other layer's reader", ended.Load(), files)
	require.Less(t, ended.Load(), int64(files)/2, "the other layer's reader has waited for the hostile one's")
	readers.Wait()
}

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

// file is a regular file of a layer under test.
type file struct {
	name string
	data []byte
}

// noise is n bytes that do not compress, and differ with the seed.
func noise(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// text is n bytes that compress well.
func text(seed uint64, n int) []byte {
	var b bytes.Buffer
	for i := seed; b.Len() < n; i++ {
		fmt.Fprintf(&b, "line %d of a text; ", i)
	}
	return b.Bytes()[:n]
}

// someFiles is a small layer with files of many sizes.
func someFiles() (files []file) {
	for i, n := range []int{0, 1, 100, 4096, 70_000, 64 << 10, 300_000, 20_000, 5_000} {
		data := noise(uint64(i), n)
		if i%2 == 0 {
			data = text(uint64(i), n)
		}
		files = append(files, file{fmt.Sprintf("dir/f%02d", i), data})
	}
	return files
}

// built is a layer's blob with what a manifest would say of it.
type built struct {
	blob  []byte
	hints estargz.Hints
}

var formats = []estargz.Format{estargz.FormatEStargz, estargz.FormatStargz, estargz.FormatZstdChunked}

// builds keeps what was built, for it takes its time under the race detector.
var builds sync.Map

// build makes a blob of files in chunks of 64 KiB.
func build(t testing.TB, format estargz.Format, files []file) built {
	t.Helper()
	return buildAs(t, estargztest.Options{Format: format}, files)
}

// buildAs is build with the writer's options. Layers are told apart by options,
// names and sizes.
func buildAs(t testing.TB, opts estargztest.Options, files []file) built {
	t.Helper()
	if opts.ChunkSize == 0 {
		opts.ChunkSize = 64 << 10
	}
	opts.Level = 1
	id := fmt.Sprintf("%+v", opts)
	var entries []estargztest.Entry
	for _, f := range files {
		id += fmt.Sprint(" ", f.name, len(f.data))
		entries = append(entries, estargztest.File(f.name, f.data))
	}
	if b, ok := builds.Load(id); ok {
		return b.(built)
	}
	l := estargztest.Build(t, opts, entries...)
	hints, err := estargz.ParseHints(l.Annotations)
	require.NoError(t, err)
	b := built{l.Blob, hints}
	builds.Store(id, b)
	return b
}

package estargztest

import (
	"bytes"
	"context"
	"io"
	"path/filepath"
	"testing"

	"github.com/lazykit/lazykit/estargz"
)

// Layer is a layer in memory.
type Layer struct {
	Converted
	Blob []byte
	Tar  []byte // what the layer was made of; nil for RawLayer
}

// Build makes a layer of entries.
func Build(t testing.TB, opts Options, entries ...Entry) Layer {
	t.Helper()
	var b bytes.Buffer
	if err := WriteTar(&b, entries...); err != nil {
		t.Fatal(err)
	}
	return FromTar(t, &b, opts)
}

// FromTar makes a layer of a tar, plain or gzip.
func FromTar(t testing.TB, r io.Reader, opts Options) Layer {
	t.Helper()
	plain, err := plainTar(r)
	if err != nil {
		t.Fatal(err)
	}
	src, err := io.ReadAll(plain)
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	c, err := Convert(&b, bytes.NewReader(src), opts)
	if err != nil {
		t.Fatal(err)
	}
	return Layer{Converted: c, Blob: b.Bytes(), Tar: src}
}

// Compile takes the layer the whole way from its annotations and last bytes to
// a compact file at path: by the TOC digest where there is one, else as a blob
// that was verified whole.
func (l Layer) Compile(ctx context.Context, path string, lim estargz.Limits) error {
	hints, err := estargz.ParseHints(l.Annotations)
	if err != nil {
		return err
	}
	size := int64(len(l.Blob))
	tail := l.Blob[max(0, size-estargz.TailSize):]
	loc, err := estargz.ParseFooter(tail, size)
	if err != nil {
		return err
	}
	toc := l.TOC
	if loc.Format != estargz.FormatEStargzExtern {
		var ok bool
		if toc, ok = loc.Within(tail, size); !ok {
			toc = l.Blob[loc.Offset : loc.Offset+loc.Size]
		}
	}
	u, err := estargz.ReadTOC(loc, size, toc, lim)
	if err != nil {
		return err
	}
	if hints.TOCDigest == "" {
		return u.CompileByBlob(ctx, path)
	}
	return u.Compile(ctx, hints.TOCDigest, path)
}

// Open compiles the layer and opens its TOC until the test ends.
func (l Layer) Open(t testing.TB) *estargz.TOC {
	t.Helper()
	path := filepath.Join(t.TempDir(), "toc")
	if err := l.Compile(context.Background(), path, estargz.Limits{}); err != nil {
		t.Fatalf("compile: %v", err)
	}
	toc, err := estargz.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := toc.Close(); err != nil {
			t.Error(err)
		}
	})
	return toc
}

// ReadAt reads of a layer's blob, as a fetcher would.
func (l Layer) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(l.Blob).ReadAt(p, off)
}

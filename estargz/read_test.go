package estargz_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

func smallLayer(t testing.TB, opts estargztest.Options) estargztest.Layer {
	return estargztest.Build(t, opts, estargztest.Dir("d"), estargztest.File("d/f", []byte("hello, world")))
}

func readTOC(l estargztest.Layer, change func(toc []byte) []byte, lim estargz.Limits) (*estargz.Unverified, error) {
	size := int64(len(l.Blob))
	loc, err := estargz.ParseFooter(l.Blob, size)
	if err != nil {
		return nil, err
	}
	toc, ok := loc.Within(l.Blob, size)
	if !ok {
		toc = l.TOC
	}
	toc = bytes.Clone(toc)
	if change != nil {
		toc = change(toc)
		loc.Size = int64(len(toc))
	}
	return estargz.ReadTOC(loc, size, toc, lim)
}

func TestVerify(t *testing.T) {
	for _, w := range writers {
		t.Run(w.name, func(t *testing.T) {
			l := smallLayer(t, w.opts)
			u, err := readTOC(l, nil, estargz.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			compile := func(want digest.Digest) error {
				path := filepath.Join(dir, "toc")
				err := u.Compile(t.Context(), want, path)
				if _, serr := os.Stat(path); (serr == nil) != (err == nil) {
					t.Errorf("digest %q: error %v, and the file: %v", want, err, serr)
				}
				_ = os.Remove(path)
				checkEmpty(t, dir)
				return err
			}
			if l.TOCDigest != "" {
				if err := compile(l.TOCDigest); err != nil {
					t.Error(err)
				}
			}
			// zstd:chunked of stargz-snapshotter has the JSON's digest as well.
			if d := digest.Digest(l.Annotations[estargztest.AnnotationTOCDigest]); d != "" {
				if err := compile(d); err != nil {
					t.Error(err)
				}
			}
			if err := compile(digest.FromString("another")); !errors.Is(err, estargz.ErrMismatch) || !errors.Is(err, estargz.ErrCorrupt) {
				t.Errorf("another digest: error %v", err)
			}
			for _, wrong := range []digest.Digest{"", "sha256:", "sha512:00", "x"} {
				if err := compile(wrong); !errors.Is(err, estargz.ErrCorrupt) || errors.Is(err, estargz.ErrMismatch) {
					t.Errorf("digest %q: error %v", wrong, err)
				}
			}
		})
	}
}

// TestWhoseFault: an error of a TOC's contents is the manifest's if it vouches for these bytes,
// and else that of whoever sent them.
func TestWhoseFault(t *testing.T) {
	for _, doc := range []string{
		`{"version":1,"entries":[{"type":"reg","name":"a","size":5,"offset":1}]}`, // no digest
		`{"version":1,"entries":[{"type":"dir","name":"../a"}]}`,
		`{"version":1,"entries":[`,
		`{"version":2}`,
	} {
		l, err := estargztest.RawLayer(make([]byte, 100), []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		u, err := readTOC(l, nil, estargz.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "toc")
		if err := u.Compile(t.Context(), l.TOCDigest, path); !errors.Is(err, estargz.ErrCorrupt) || errors.Is(err, estargz.ErrMismatch) {
			t.Errorf("%s: error %v", doc, err)
		}
		if err := u.Compile(t.Context(), digest.FromString("another"), path); !errors.Is(err, estargz.ErrMismatch) {
			t.Errorf("%s, not what the manifest says: error %v", doc, err)
		}
	}
}

// TestFlippedTOC changes each bit of a TOC's bytes in turn: no change may pass
// the digest.
func TestFlippedTOC(t *testing.T) {
	for _, w := range writers {
		if w.opts.Format == estargz.FormatStargz {
			continue // nothing vouches for its TOC but the blob's digest
		}
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			l := smallLayer(t, w.opts)
			good, err := readTOC(l, nil, estargz.Limits{})
			if err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(t.TempDir(), "toc")
			if err := good.Compile(t.Context(), l.TOCDigest, path); err != nil {
				t.Fatal(err)
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for i := range 300 {
				u, err := readTOC(l, func(toc []byte) []byte {
					toc[i*7919%len(toc)] ^= 1 << (i % 8)
					return toc
				}, estargz.Limits{})
				if err != nil {
					t.Fatal(err)
				}
				// In gzip a flip may be in what does not count (a time, a name, the
				// checksum behind the document): then nothing has changed.
				err = u.Compile(t.Context(), l.TOCDigest, path)
				if err != nil && !errors.Is(err, estargz.ErrMismatch) {
					t.Fatal(err)
				}
				if got, _ := os.ReadFile(path); !bytes.Equal(got, want) {
					t.Fatalf("flip of bit %d passes the digest and changes the tree", i)
				}
			}
		})
	}
}

// compileAny compiles a TOC by its digest, or without one by the blob.
func compileAny(t *testing.T, u *estargz.Unverified, want digest.Digest) error {
	t.Helper()
	dir := t.TempDir()
	defer checkEmpty(t, dir)
	if want == "" {
		return u.CompileByBlob(t.Context(), filepath.Join(dir, "toc"))
	}
	return u.Compile(t.Context(), want, filepath.Join(dir, "toc"))
}

func TestTruncatedTOC(t *testing.T) {
	for _, w := range writers {
		l := smallLayer(t, w.opts)
		for _, keep := range []int{0, 1, 5, 10, 50} {
			u, err := readTOC(l, func(toc []byte) []byte { return toc[:keep] }, estargz.Limits{})
			if err == nil {
				err = compileAny(t, u, l.TOCDigest)
			}
			if keep == 0 && err != nil {
				continue // no place for a TOC
			}
			if !errors.Is(err, estargz.ErrCorrupt) {
				t.Errorf("%s, %d bytes: error %v", w.name, keep, err)
			}
		}
	}
}

func TestTOCBomb(t *testing.T) {
	const size = 64 << 20
	bombs := map[estargz.Format]func(w io.Writer) error{
		estargz.FormatEStargz: func(w io.Writer) error {
			zw := gzip.NewWriter(w)
			tw := tar.NewWriter(zw)
			if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: size}); err != nil {
				return err
			}
			if _, err := tw.Write(bytes.Repeat([]byte(" "), size)); err != nil {
				return err
			}
			return zw.Close()
		},
		estargz.FormatZstdChunked: func(w io.Writer) error {
			zw, err := zstd.NewWriter(w)
			if err != nil {
				return err
			}
			if _, err := zw.Write(bytes.Repeat([]byte(" "), size)); err != nil {
				return err
			}
			return zw.Close()
		},
	}
	for format, write := range bombs {
		var b bytes.Buffer
		if err := write(&b); err != nil {
			t.Fatal(err)
		}
		loc := estargz.Location{Format: format, Offset: 10, Size: int64(b.Len())}
		u, err := estargz.ReadTOC(loc, 1<<30, b.Bytes(), estargz.Limits{TOCSize: 1 << 20})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []digest.Digest{"", digest.FromString("x"), digest.FromBytes(b.Bytes())} {
			if err := compileAny(t, u, want); !errors.Is(err, estargz.ErrLimit) {
				t.Errorf("%s, digest %q: error %v", format, want, err)
			}
		}
		loc.UncompressedSize = 1 << 40
		if _, err := estargz.ReadTOC(loc, 1<<30, b.Bytes(), estargz.Limits{}); !errors.Is(err, estargz.ErrLimit) {
			t.Errorf("%s, said to be large: error %v", format, err)
		}
	}
}

func TestWrongTOCTar(t *testing.T) {
	var b bytes.Buffer
	zw := gzip.NewWriter(&b)
	tw := tar.NewWriter(zw)
	tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "something-else", Size: 2})
	tw.Write([]byte("{}"))
	tw.Close()
	zw.Close()
	for _, toc := range [][]byte{b.Bytes(), []byte("not gzip at all"), nil} {
		u, err := estargz.ReadTOC(estargz.Location{Format: estargz.FormatEStargzExtern}, 1000, toc, estargz.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		if err := compileAny(t, u, digest.FromBytes(toc)); !errors.Is(err, estargz.ErrMismatch) {
			t.Errorf("error %v", err)
		}
	}
}

// TestCutTOC: a document that is whole in a stream that is not is refused, by whatever
// it is vouched for.
func TestCutTOC(t *testing.T) {
	doc := []byte(`{"version":1,"entries":[]}`)
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	tw := tar.NewWriter(zw)
	tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: int64(len(doc)) + 1000})
	tw.Write(doc)
	zw.Close()
	var zs bytes.Buffer
	enc, err := zstd.NewWriter(&zs)
	if err != nil {
		t.Fatal(err)
	}
	enc.Write(doc)
	enc.Flush() // and no end
	for format, toc := range map[estargz.Format][]byte{estargz.FormatEStargz: gz.Bytes(), estargz.FormatZstdChunked: zs.Bytes()} {
		u, err := estargz.ReadTOC(estargz.Location{Format: format, Offset: 10, Size: int64(len(toc))}, 1<<30, toc, estargz.Limits{})
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []digest.Digest{"", digest.FromBytes(doc), digest.FromBytes(toc)} {
			if err := compileAny(t, u, want); !errors.Is(err, estargz.ErrCorrupt) {
				t.Errorf("%s, digest %q: error %v", format, want, err)
			}
		}
	}
	enc.Close()
}

func TestReadTOCArguments(t *testing.T) {
	l := smallLayer(t, writers[0].opts)
	good, err := estargz.ParseFooter(l.Blob, l.Size)
	if err != nil {
		t.Fatal(err)
	}
	toc, _ := good.Within(l.Blob, l.Size)
	for name, change := range map[string]func(*estargz.Location, *int64){
		"no format":        func(l *estargz.Location, _ *int64) { l.Format = estargz.FormatUnknown },
		"unknown format":   func(l *estargz.Location, _ *int64) { l.Format = 77 },
		"negative offset":  func(l *estargz.Location, _ *int64) { l.Offset = -1 },
		"outside":          func(l *estargz.Location, _ *int64) { l.Offset = 1 << 62 },
		"negative size":    func(l *estargz.Location, _ *int64) { l.Size = -1 },
		"smaller blob":     func(_ *estargz.Location, n *int64) { *n = 10 },
		"no blob":          func(_ *estargz.Location, n *int64) { *n = 0 },
		"other TOC length": func(l *estargz.Location, _ *int64) { l.Size-- },
	} {
		loc, size := good, l.Size
		change(&loc, &size)
		if _, err := estargz.ReadTOC(loc, size, toc, estargz.Limits{}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestCancelled(t *testing.T) {
	l := smallLayer(t, writers[0].opts)
	u, err := readTOC(l, nil, estargz.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	cause := errors.New("the build has ended")
	cancel(cause)
	dir := t.TempDir()
	if err := u.Compile(ctx, digest.FromString("another"), filepath.Join(dir, "toc")); !errors.Is(err, cause) || errors.Is(err, estargz.ErrCorrupt) {
		t.Errorf("of another digest: error %v", err)
	}
	if err := u.Compile(ctx, l.TOCDigest, filepath.Join(dir, "toc")); !errors.Is(err, cause) || errors.Is(err, estargz.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	checkEmpty(t, dir)
}

func checkEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestCompileIntoNowhere(t *testing.T) {
	l := smallLayer(t, writers[0].opts)
	err := l.Compile(context.Background(), filepath.Join(t.TempDir(), "missing", "toc"), estargz.Limits{})
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, estargz.ErrCorrupt) {
		t.Errorf("error %v", err)
	}
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, "toc", "in-the-way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.Compile(context.Background(), filepath.Join(dir, "toc"), estargz.Limits{}); err == nil {
		t.Error("a directory was replaced")
	}
	if left, _ := os.ReadDir(dir); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// TestVouchedByBlob: a TOC without chunk digests is good only for a blob that
// was verified whole, and an external one never is.
func TestVouchedByBlob(t *testing.T) {
	doc := `{"version":1,"entries":[{"type":"reg","name":"a","size":5,"offset":1}]}`
	l, err := estargztest.RawLayer(make([]byte, 100), []byte(doc))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "toc")
	if err := l.Compile(context.Background(), path, estargz.Limits{}); !errors.Is(err, estargz.ErrCorrupt) {
		t.Errorf("by TOC digest: error %v", err)
	}
	l.Annotations = nil
	if err := l.Compile(context.Background(), path, estargz.Limits{}); err != nil {
		t.Errorf("by blob: %v", err)
	}
	toc, err := estargz.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer toc.Close()
	if toc.HasChunkDigests() {
		t.Error("HasChunkDigests of a TOC without digests")
	}
	ext := smallLayer(t, estargztest.Options{Format: estargz.FormatEStargzExtern})
	ext.Annotations = nil
	if err := ext.Compile(context.Background(), path, estargz.Limits{}); !errors.Is(err, estargz.ErrCorrupt) {
		t.Errorf("external TOC by blob: error %v", err)
	}
}

func ExampleParseFooter() {
	_, err := estargz.ParseFooter(make([]byte, 1000), 1000)
	fmt.Println(errors.Is(err, estargz.ErrNotLazy))
	// Output: true
}

package fusetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// Epoch is the modification time of entries that have none of their own.
var Epoch = time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)

// Entry is one entry of a layer's tar. Body is a regular file's bytes.
type Entry struct {
	tar.Header
	Body string
}

// Dir, File, Symlink, Link, Device, Fifo, Whiteout and Opaque describe entries
// in words; With changes any of them.
func Dir(name string, mode int64) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeDir, Name: strings.TrimSuffix(name, "/") + "/", Mode: mode}}
}

func File(name string, mode int64, body string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode}, Body: body}
}

func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}}
}

func Link(name, target string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}}
}

// Device is a character ('c') or block ('b') device.
func Device(name string, kind byte, major, minor int64) Entry {
	typ := byte(tar.TypeChar)
	if kind == 'b' {
		typ = tar.TypeBlock
	}
	return Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: 0o660, Devmajor: major, Devminor: minor}}
}

func Fifo(name string) Entry {
	return Entry{Header: tar.Header{Typeflag: tar.TypeFifo, Name: name, Mode: 0o644}}
}

func Whiteout(path string) Entry {
	dir, base := filepath.Split(path)
	return File(dir+".wh."+base, 0, "")
}

func Opaque(dir string) Entry { return File(strings.TrimSuffix(dir, "/")+"/.wh..wh..opq", 0, "") }

// With returns a changed copy.
func (e Entry) With(f func(h *tar.Header)) Entry {
	f(&e.Header)
	return e
}

// Owned and Xattr return changed copies.
func (e Entry) Owned(uid, gid int) Entry {
	return e.With(func(h *tar.Header) { h.Uid, h.Gid = uid, gid })
}

func (e Entry) Xattr(name, value string) Entry {
	return e.With(func(h *tar.Header) {
		records := map[string]string{"SCHILY.xattr." + name: value}
		for k, v := range h.PAXRecords {
			records[k] = v
		}
		h.PAXRecords = records
	})
}

// Tar makes a layer's tar of entries. A hard link has the attributes of its
// target, as the tars of real images do.
func Tar(t testing.TB, entries ...Entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	headers := map[string]tar.Header{}
	for _, e := range entries {
		h := e.Header
		if target, ok := headers[h.Linkname]; ok && h.Typeflag == tar.TypeLink {
			h.Mode, h.Uid, h.Gid, h.ModTime, h.PAXRecords = target.Mode, target.Uid, target.Gid, target.ModTime, target.PAXRecords
		}
		headers[h.Name] = h
		h.Size = int64(len(e.Body))
		if h.ModTime.IsZero() {
			h.ModTime = Epoch
		}
		h.Format = tar.FormatPAX
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("tar entry %q: %v", h.Name, err)
		}
		if _, err := io.WriteString(w, e.Body); err != nil {
			t.Fatalf("tar entry %q: %v", h.Name, err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// Layer is the content of a tar's eStargz; it is closed with the test. Small files
// share a gzip member.
func Layer(t testing.TB, layer []byte) *Content {
	t.Helper()
	return FromTar(t, layer, estargztest.Options{Format: estargz.FormatEStargz, Level: gzip.BestSpeed, MinChunkSize: 1 << 20})
}

// FromTar is the content of a tar that was converted to any format; it is closed
// with the test.
func FromTar(t testing.TB, layer []byte, opts estargztest.Options) *Content {
	t.Helper()
	return Open(t, estargztest.FromTar(t, bytes.NewReader(layer), opts))
}

// Open is the content of a layer; it is closed with the test.
func Open(t testing.TB, layer estargztest.Layer) *Content {
	t.Helper()
	path := filepath.Join(t.TempDir(), "toc")
	if err := layer.Compile(context.Background(), path, estargz.Limits{}); err != nil {
		t.Fatalf("compile TOC: %v", err)
	}
	toc, err := estargz.Open(path)
	if err != nil {
		t.Fatalf("open TOC: %v", err)
	}
	c := NewContent(toc, layer.Blob)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// Raw is the content of an eStargz with the given TOC, in JSON, behind payload;
// it is closed with the test.
func Raw(t testing.TB, payload []byte, toc string) *Content {
	t.Helper()
	layer, err := estargztest.RawLayer(payload, []byte(toc))
	if err != nil {
		t.Fatal(err)
	}
	return Open(t, layer)
}

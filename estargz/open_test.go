package estargz

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sampleDoc = `{"version":1,"entries":[
	{"type":"dir","name":"d","xattrs":{"user.a":"AA==","user.b":""}},
	{"name":"d/f",` + tenBytes + `},
	{"name":"d/g","chunkSize":4,` + tenBytes + `},{"type":"chunk","name":"d/g","chunkOffset":4,"offset":300,"innerOffset":7,"chunkDigest":"` + sumA + `"},
	{"type":"reg","name":"z","size":100,"chunkType":"zeros"},
	{"type":"symlink","name":"s","linkName":"d/f"},{"type":"hardlink","name":"h","linkName":"d/f"},
	{"type":"reg","name":".wh.w"},{"type":"reg","name":"d/.wh..wh..opq"},{"type":"char","name":"c","devMajor":1,"devMinor":3}]}`

func sampleFile(t testing.TB) []byte {
	doc := strings.Replace(sampleDoc, `{"name":"d/g","chunkSize":4,`, `{"name":"d/g","chunkSize":4,"innerOffset":10,`, 1)
	data, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// seal makes a damaged file's checksum right.
func seal(data []byte) []byte {
	if len(data) >= headerSize {
		sum := crc32.Update(crc32.Checksum(data[headerSize:], castagnoli), castagnoli, data[:headerSums])
		binary.LittleEndian.PutUint32(data[headerSums:], sum)
	}
	return data
}

func TestOpenSample(t *testing.T) {
	toc, err := openBytes(sampleFile(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := checkAll(toc); err != nil {
		t.Error(err)
	}
	touchAll(toc)
}

// TestOpenDamaged: no flip of a bit and no cut goes unnoticed.
func TestOpenDamaged(t *testing.T) {
	good := sampleFile(t)
	path := filepath.Join(t.TempDir(), "toc")
	open := func(data []byte) error {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		toc, err := Open(path)
		if err == nil {
			toc.Close()
		}
		return err
	}
	if err := open(good); err != nil {
		t.Fatal(err)
	}
	for i := range len(good) * 8 {
		if i/8 > headerSums+3 && i/8 < headerSize {
			continue // reserved
		}
		bad := bytes.Clone(good)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := openBytes(bad); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit %d flipped: error %v", i, err)
		}
	}
	for _, n := range []int{0, 1, headerSize - 1, headerSize, headerSize + 1, len(good) - 1} {
		if err := open(good[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: error %v", n, err)
		}
	}
	if err := open(append(bytes.Clone(good), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a byte too many: error %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "missing")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: error %v", err)
	}
}

func TestClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "toc")
	if err := os.WriteFile(path, sampleFile(t), 0o600); err != nil {
		t.Fatal(err)
	}
	toc, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := toc.Close(); err != nil {
			t.Error(err)
		}
	}
	// Misuse, but no crash.
	if _, err := toc.Lookup(Root, []byte("d")); !errors.Is(err, ErrCorrupt) {
		t.Errorf("lookup after Close: %v", err)
	}
	touchAll(toc)
}

// FuzzOpen gives files with right checksums and wrong contents to every method.
func FuzzOpen(f *testing.F) {
	good := sampleFile(f)
	f.Add(good, 0, uint32(0))
	for off := headerSize; off < len(good)-4; off += 4 {
		f.Add(good, off, uint32(0xffffffff))
		f.Add(good, off, uint32(1<<31))
	}
	f.Fuzz(func(t *testing.T, data []byte, off int, v uint32) {
		data = bytes.Clone(data)
		if off >= 0 && off+4 <= len(data) {
			binary.LittleEndian.PutUint32(data[off:], v)
		}
		toc, err := openBytes(seal(data))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		touchAll(toc)
	})
}

// FuzzTOC compiles documents; what is accepted must fit together.
func FuzzTOC(f *testing.F) {
	f.Add([]byte(sampleDoc), false)
	for _, entries := range [][]string{
		{`{"type":"symlink","name":"a","linkName":"b/../c"}`, `{"type":"dir","name":"a/b/../../d"}`, `{"type":"hardlink","name":"a/x","linkName":"y"}`, `{"type":"fifo","name":"y"}`},
		{`{"name":"a","chunkType":"zeros",` + tenBytes + `}`, `{"type":"dir","name":"a"}`, `{"type":"reg","name":".wh.a"}`, `{"type":"reg","name":"a/b/.wh..wh..opq"}`},
		{`{"type":"reg","name":".prefetch.landmark","size":1,"offset":50}`, `{"type":"dir","name":"/","mode":511,"modtime":"2024-01-02T03:04:05.678Z"}`},
	} {
		f.Add([]byte(docOf(entries...)), true)
	}
	f.Fuzz(func(t *testing.T, doc []byte, byBlob bool) {
		data, err := compileDoc(t.TempDir(), bytes.NewReader(doc), FormatZstdChunked, byBlob, Limits{Entries: 1000})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v", err)
			}
			return
		}
		toc, err := openBytes(data)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkAll(toc); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzDecode gives members of arbitrary bytes to a TOC whose chunks they do not
// match: no byte may come out.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff\x01\x00\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00"), false)
	f.Add([]byte("\x28\xb5\x2f\xfd\x04\x00\x09\x00\x00a\x00\x00\x00\x00"), true)
	f.Add([]byte("\x28\xb5\x2f\xfd\xa0\x00\x00\x00\x80\x03\x00\x00a"), true)
	f.Fuzz(func(t *testing.T, compressed []byte, zstd bool) {
		format := FormatEStargz
		if zstd {
			format = FormatZstdChunked
		}
		doc := docOf(`{"name":"a","innerOffset":3,`+tenBytes+`}`, `{"name":"b","innerOffset":13,`+tenBytes+`}`)
		data, err := compileDoc(t.TempDir(), strings.NewReader(doc), format, false, Limits{})
		if err != nil {
			t.Fatal(err)
		}
		toc, err := openBytes(data)
		if err != nil {
			t.Fatal(err)
		}
		at, err := toc.Member(0)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(compressed)) > at.Size {
			return
		}
		compressed = append(compressed, make([]byte, at.Size-int64(len(compressed)))...)
		err = toc.Decode(0, compressed, 0, 1, nil, func(uint32, []byte) bool {
			t.Fatal("a chunk that does not have its digest")
			return false
		})
		if !errors.Is(err, ErrCorrupt) || errors.Is(err, io.EOF) {
			t.Fatalf("error %v", err)
		}
	})
}

// TestDirectoryCycle: a directory can't lead back to itself, whatever the file
// says.
func TestDirectoryCycle(t *testing.T) {
	good, err := openBytes(sampleFile(t))
	if err != nil {
		t.Fatal(err)
	}
	d, err := good.Lookup(Root, []byte("d"))
	if err != nil {
		t.Fatal(err)
	}
	dirents := headerSize + int(good.Len())*inodeSize + int(good.Chunks())*chunkSize + int(good.Members())*memberSize
	for n := range int(good.dirents) {
		data := sampleFile(t)
		inode := data[dirents+n*direntSize+8:]
		if binary.LittleEndian.Uint32(inode) != d {
			continue
		}
		binary.LittleEndian.PutUint32(inode, Root)
		toc, err := openBytes(seal(data))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := toc.Lookup(Root, []byte("d")); !errors.Is(err, ErrCorrupt) {
			t.Errorf("the root in the root: error %v", err)
		}
		return
	}
	t.Error("no entry of the directory found")
}

// TestMemberEnds: members end where the next one begins, where a file says that
// it ends, or where files end.
func TestMemberEnds(t *testing.T) {
	doc := docOf(
		`{"type":"reg","name":"a","size":10,"offset":100,"endOffset":150,"digest":"`+sumA+`"}`,
		`{"type":"reg","name":"b","size":10,"offset":200,"digest":"`+sumA+`"}`,
		`{"type":"reg","name":".wh.hidden","size":10,"offset":300,"digest":"`+sumA+`"}`,
		`{"type":"reg","name":"c","size":10,"offset":400,"digest":"`+sumA+`"}`)
	data, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatZstdChunked, false, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	toc, err := openBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	want := []Member{{100, 50}, {200, 100}, {400, 1<<20 - 400}}
	for i, w := range want {
		if got, err := toc.Member(uint32(i)); err != nil || got != w {
			t.Errorf("member %d is %+v, %v; want %+v", i, got, err, w)
		}
	}
	if toc.Members() != uint32(len(want)) {
		t.Errorf("%d members, want %d", toc.Members(), len(want))
	}
}

// TestParentChangesItself: an entry may change what its own parent's path means.
func TestParentChangesItself(t *testing.T) {
	doc := docOf(`{"type":"dir","name":"e/l"}`, `{"type":"dir","name":"other/deep"}`, `{"type":"symlink","name":"d","linkName":"e/l/.."}`,
		`{"type":"fifo","name":"d/x"}`, `{"type":"symlink","name":"d/l","linkName":"/other/deep"}`, `{"type":"fifo","name":"d/y"}`)
	data, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	toc, err := openBytes(data)
	if err != nil {
		t.Fatal(err)
	}
	for dir, name := range map[string]string{"e": "x", "other": "y"} {
		i, err := toc.Lookup(Root, []byte(dir))
		if err == nil {
			_, err = toc.Lookup(i, []byte(name))
		}
		if err != nil {
			t.Errorf("%s/%s: %v", dir, name, err)
		}
	}
}

// TestOpenOutlivesItsFile: what happens to the file after Open changes nothing.
func TestOpenOutlivesItsFile(t *testing.T) {
	good := sampleFile(t)
	for name, spoil := range map[string]func(path string) error{
		"cut":         func(path string) error { return os.Truncate(path, 0) },
		"overwritten": func(path string) error { return os.WriteFile(path, make([]byte, len(good)), 0o600) },
	} {
		path := filepath.Join(t.TempDir(), "toc")
		if err := os.WriteFile(path, good, 0o600); err != nil {
			t.Fatal(err)
		}
		toc, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := spoil(path); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(toc.data, good) {
			t.Errorf("%s: the open TOC has changed", name)
		}
		if err := checkAll(toc); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if err := toc.Close(); err != nil {
			t.Error(err)
		}
		if _, err := Open(path); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: opened again: %v", name, err)
		}
	}
}

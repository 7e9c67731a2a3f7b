package estargz

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"
)

const (
	sumA     = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	tenBytes = `"type":"reg","size":10,"offset":100,"chunkDigest":"` + sumA + `"`
)

func docOf(entries ...string) string {
	return `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
}

// TestHostile wants an error that wraps ErrCorrupt and names the entry.
func TestHostile(t *testing.T) {
	long := strings.Repeat("x", 256)
	for _, tc := range []struct {
		name    string
		entries []string
		names   string // what the error must mention
		limit   bool   // ErrLimit too
	}{
		{name: "leaves the root", entries: []string{`{"type":"dir","name":"a/../../b"}`}, names: "a/../../b"},
		{name: "dot dot", entries: []string{`{"type":"dir","name":".."}`}, names: `".."`},
		{name: "absolute dot dot", entries: []string{`{"name":"/../etc/passwd",` + tenBytes + `}`}, names: "passwd"},
		{name: "NUL", entries: []string{`{"type":"dir","name":"a\u0000b"}`}, names: `a\x00b`},
		{name: "long name", entries: []string{`{"type":"dir","name":"` + long + `"}`}, names: "xxx", limit: true},
		{name: "long path", entries: []string{`{"type":"dir","name":"` + strings.Repeat("a/", 2048) + `"}`}, names: "a/a/", limit: true},
		{name: "deep path", entries: []string{`{"type":"dir","name":"` + strings.Repeat("a/", 1025) + `"}`}, names: "a/a/", limit: true},
		{name: "deep by symlinks", entries: []string{
			`{"type":"dir","name":"` + strings.Repeat("a/", 1000) + `"}`,
			`{"type":"symlink","name":"s","linkName":"` + strings.Repeat("a/", 1000) + `"}`,
			`{"type":"dir","name":"s/` + strings.Repeat("b/", 30) + `"}`,
		}, names: "s/b", limit: true},
		{name: "file as a parent", entries: []string{`{"name":"f",` + tenBytes + `}`, `{"type":"dir","name":"f/d"}`}, names: "f/d"},
		{name: "fifo as a parent", entries: []string{`{"type":"fifo","name":"f"}`, `{"type":"dir","name":"f/d/e"}`}, names: "f/d/e"},
		{name: "symlink cycle as a parent", entries: []string{
			`{"type":"symlink","name":"a","linkName":"b"}`, `{"type":"symlink","name":"b","linkName":"a"}`, `{"type":"dir","name":"a/d"}`,
		}, names: "a/d"},
		{name: "symlink that grows", entries: []string{
			`{"type":"symlink","name":"a","linkName":"` + strings.Repeat("a/", 2000) + `"}`, `{"type":"dir","name":"a/d"}`,
		}, names: "a/d", limit: true},
		{name: "symlink to a long name as a parent", entries: []string{
			`{"type":"symlink","name":"a","linkName":"` + long + `"}`, `{"type":"dir","name":"a/d"}`,
		}, names: "a/d", limit: true},
		{name: "symlink without a target", entries: []string{`{"type":"symlink","name":"a"}`}, names: `"a"`},
		{name: "symlink to far", entries: []string{`{"type":"symlink","name":"a","linkName":"` + strings.Repeat("x", 4096) + `"}`}, names: `"a"`, limit: true},
		{name: "symlink with a NUL", entries: []string{`{"type":"symlink","name":"a","linkName":"b\u0000"}`}, names: `"a"`},
		{name: "link to nothing", entries: []string{`{"type":"hardlink","name":"a","linkName":"b"}`}, names: `"b"`},
		{name: "link without a target", entries: []string{`{"type":"hardlink","name":"a"}`}, names: `"a"`},
		{name: "link to itself", entries: []string{`{"type":"hardlink","name":"a","linkName":"a"}`}, names: `"a"`},
		{name: "link cycle", entries: []string{`{"type":"hardlink","name":"a","linkName":"b"}`, `{"type":"hardlink","name":"b","linkName":"a"}`}, names: `"a"`},
		{name: "link to a directory", entries: []string{`{"type":"dir","name":"d"}`, `{"type":"hardlink","name":"d/e","linkName":"d"}`}, names: "d/e"},
		{name: "link to the root", entries: []string{`{"type":"hardlink","name":"d","linkName":"/"}`}, names: `"d"`},
		{name: "link outside", entries: []string{`{"type":"hardlink","name":"d","linkName":"../etc/shadow"}`}, names: "../etc/shadow"},
		{name: "link to a whiteout", entries: []string{`{"type":"reg","name":".wh.w"}`, `{"type":"hardlink","name":"d","linkName":"w"}`}, names: `"d"`},
		{name: "late link to a directory", entries: []string{`{"type":"hardlink","name":"a","linkName":"d"}`, `{"type":"dir","name":"d"}`}, names: `"a"`},
		{name: "root as a link", entries: []string{`{"type":"symlink","name":"./","linkName":"/etc"}`}, names: `"./"`},
		{name: "whiteout of nothing", entries: []string{`{"type":"reg","name":"d/.wh."}`}, names: "d/.wh."},
		{name: "whiteout of dot", entries: []string{`{"type":"reg","name":"d/.wh.."}`}, names: "d/.wh.."},
		{name: "whiteout of dot dot", entries: []string{`{"type":"reg","name":".wh..."}`}, names: ".wh..."},
		{name: "whiteout as a parent", entries: []string{`{"type":"dir","name":".wh.x/y"}`}, names: ".wh.x/y"},
		{name: "no type", entries: []string{`{"name":"a"}`}, names: `"a"`},
		{name: "socket", entries: []string{`{"name":"a","type":"socket"}`}, names: "socket"},
		{name: "negative owner", entries: []string{`{"type":"dir","name":"a","uid":-1}`}, names: `"a"`},
		{name: "no owner at all", entries: []string{`{"type":"dir","name":"a","gid":4294967295}`}, names: `"a"`},
		{name: "large device", entries: []string{`{"type":"char","name":"a","devMajor":4096}`}, names: `"a"`},
		{name: "negative device", entries: []string{`{"type":"block","name":"a","devMinor":-1}`}, names: `"a"`},
		{name: "number too large", entries: []string{`{"type":"dir","name":"a","uid":9223372036854775808}`}, names: `"a"`},
		{name: "number with a point", entries: []string{`{"type":"dir","name":"a","uid":1.5}`}, names: `"a"`},
		{name: "negative size", entries: []string{`{"type":"reg","name":"a","size":-1}`}, names: `"a"`},
		{name: "absurd size", entries: []string{`{"type":"reg","name":"a","size":9223372036854775807,"chunkType":"zeros"}`}, names: `"a"`},
		{name: "large chunk", entries: []string{`{"type":"reg","name":"a","size":1000000000000,"offset":1,"chunkDigest":"` + sumA + `"}`}, names: `"a"`, limit: true},
		{name: "far in a member", entries: []string{`{"name":"a","innerOffset":4000000000000000000,` + tenBytes + `}`}, names: `"a"`, limit: true},
		{name: "member that can't hold it", entries: []string{`{"type":"reg","name":"a","size":10,"offset":1048575,"innerOffset":100000,"chunkDigest":"` + sumA + `"}`}, names: "offset 1048575"},
		{name: "offset behind the files", entries: []string{`{"type":"reg","name":"a","size":10,"offset":1048576,"chunkDigest":"` + sumA + `"}`}, names: `"a"`},
		{name: "negative offset", entries: []string{`{"type":"reg","name":"a","size":10,"offset":-5,"chunkDigest":"` + sumA + `"}`}, names: `"a"`},
		{name: "negative inner offset", entries: []string{`{"name":"a","innerOffset":-5,` + tenBytes + `}`}, names: `"a"`},
		{name: "end behind the files", entries: []string{`{"name":"a","endOffset":1048577,` + tenBytes + `}`}, names: `"a"`},
		{name: "no digest", entries: []string{`{"type":"reg","name":"a","size":10,"offset":100}`}, names: `"a"`},
		{name: "second chunk without a digest", entries: []string{
			`{"name":"a","chunkSize":4,` + tenBytes + `}`, `{"type":"chunk","name":"a","offset":200,"chunkOffset":4,"chunkSize":6}`,
		}, names: `"a"`},
		{name: "digest of another algorithm", entries: []string{`{"type":"reg","name":"a","size":10,"offset":100,"chunkDigest":"md5:900150983cd24fb0d6963f7d28e17f72"}`}, names: "md5"},
		{name: "digest without end", entries: []string{`{"type":"reg","name":"a","size":10,"offset":100,"chunkDigest":"sha256:aa"}`}, names: "sha256:aa"},
		{name: "digest that is none", entries: []string{`{"type":"reg","name":"a","size":10,"offset":100,"chunkDigest":"` + strings.Repeat("z", 71) + `"}`}, names: "zzz"},
		{name: "unknown kind of chunk", entries: []string{`{"name":"a","chunkType":"ones",` + tenBytes + `}`}, names: "ones"},
		{name: "chunks missing at the end", entries: []string{`{"name":"a","chunkSize":4,` + tenBytes + `}`, `{"type":"dir","name":"next"}`}, names: `"a"`},
		{name: "chunks missing at the end of the TOC", entries: []string{`{"name":"a","chunkSize":4,` + tenBytes + `}`}, names: `"a"`},
		{name: "chunks missing at the beginning", entries: []string{`{"name":"a","chunkOffset":4,` + tenBytes + `}`}, names: `"a"`},
		{name: "gap between chunks", entries: []string{
			`{"name":"a","chunkSize":4,` + tenBytes + `}`, `{"type":"chunk","name":"a","offset":200,"chunkOffset":5,"chunkDigest":"` + sumA + `"}`,
		}, names: `"a"`},
		{name: "overlap of chunks", entries: []string{
			`{"name":"a","chunkSize":4,` + tenBytes + `}`, `{"type":"chunk","name":"a","offset":200,"chunkOffset":3,"chunkDigest":"` + sumA + `"}`,
		}, names: `"a"`},
		{name: "chunk behind the file", entries: []string{`{"name":"a","chunkSize":11,` + tenBytes + `}`}, names: `"a"`},
		{name: "negative chunk", entries: []string{`{"name":"a","chunkSize":-1,` + tenBytes + `}`}, names: `"a"`},
		{name: "chunk of an empty file", entries: []string{`{"type":"reg","name":"a"}`, `{"type":"chunk","name":"a","chunkSize":4}`}, names: `"a"`},
		{name: "chunk of nothing", entries: []string{`{"type":"chunk","name":"a","offset":5}`}, names: `"a"`},
		{name: "chunk of a directory", entries: []string{`{"type":"dir","name":"a"}`, `{"type":"chunk","name":"a","offset":5}`}, names: `"a"`},
		{name: "chunk of another file", entries: []string{`{"name":"a","chunkSize":4,` + tenBytes + `}`, `{"type":"chunk","name":"b","offset":200,"chunkOffset":4}`}, names: `"b"`},
		{name: "chunks across each other in a member", entries: []string{
			`{"name":"a",` + tenBytes + `}`, `{"name":"b","innerOffset":5,` + tenBytes + `}`,
		}, names: "offset 100"},
		{name: "long xattr name", entries: []string{`{"type":"dir","name":"a","xattrs":{"user.` + long + `":""}}`}, names: `"a"`, limit: true},
		{name: "empty xattr name", entries: []string{`{"type":"dir","name":"a","xattrs":{"":""}}`}, names: `"a"`},
		{name: "xattr that is not base64", entries: []string{`{"type":"dir","name":"a","xattrs":{"user.x":"?"}}`}, names: "user.x"},
		{name: "large xattr", entries: []string{`{"type":"dir","name":"a","xattrs":{"user.x":"` + strings.Repeat("AAAA", 22000) + `"}}`}, names: `"a"`, limit: true},
		{name: "many xattrs", entries: []string{`{"type":"dir","name":"a","xattrs":{` + manyXattrs(400) + `}}`}, names: `"a"`, limit: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := compileDoc(t.TempDir(), strings.NewReader(docOf(tc.entries...)), FormatEStargz, false, Limits{})
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v, want one of ErrCorrupt", err)
			}
			if !strings.Contains(err.Error(), tc.names) {
				t.Errorf("error %q does not mention %q", err, tc.names)
			}
			if errors.Is(err, ErrLimit) != tc.limit {
				t.Errorf("error %v is of ErrLimit: %v", err, !tc.limit)
			}
			if len(err.Error()) > 2000 {
				t.Errorf("error of %d bytes", len(err.Error()))
			}
		})
	}
}

func manyXattrs(n int) string {
	var s []string
	for i := range n {
		s = append(s, fmt.Sprintf(`"user.%0200d":""`, i))
	}
	return strings.Join(s, ",")
}

func TestBrokenDocuments(t *testing.T) {
	for _, doc := range []string{
		``, `[]`, `{`, `{"entries":[{]}`, `{"entries":{}}`, `{"entries":[1]}`, `{"version":2}`, `{} {}`, `{"entries":[{"type":"dir","name":1}]}`,
		`{"entries":[{"type":"dir","name":"a"}`, `{"entries":[{"type":"dir","name":"a","xattrs":[]}]}`, strings.Repeat(`{"a":`, 100),
	} {
		_, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, Limits{})
		if !errors.Is(err, ErrCorrupt) {
			t.Errorf("%.40q: error %v, want one of ErrCorrupt", doc, err)
		}
	}
}

func TestUnusualDocuments(t *testing.T) {
	for name, doc := range map[string]string{
		"no entries":           `{"version":1}`,
		"null entries":         `{"version":1,"entries":null}`,
		"null fields":          `{"entries":[{"type":"dir","name":"a","xattrs":null,"uid":null,"modtime":null,"linkName":null}]}`,
		"unknown fields":       `{"x":[{}],"entries":[{"type":"dir","name":"a","userName":"root","new":{"deep":[1,"two"]}}],"tarSplitDigest":"x"}`,
		"bad time":             `{"entries":[{"type":"dir","name":"a","modtime":"yesterday"}]}`,
		"file as the root":     `{"entries":[{"type":"reg","name":"/"}]}`,
		"zeros":                docOf(`{"type":"reg","name":"a","size":5000000000,"chunkSize":4294967296,"chunkType":"zeros"}`, `{"type":"chunk","name":"a","chunkOffset":4294967296,"chunkType":"zeros"}`),
		"empty last chunk":     docOf(`{"name":"a","chunkSize":10,`+tenBytes+`}`, `{"type":"chunk","name":"a","chunkOffset":10}`),
		"same chunk twice":     docOf(`{"name":"a",`+tenBytes+`}`, `{"name":"b",`+tenBytes+`}`),
		"chunks out of order":  docOf(`{"name":"a","innerOffset":10,`+tenBytes+`}`, `{"name":"b",`+tenBytes+`}`, `{"name":"c","innerOffset":20,`+tenBytes+`}`),
		"members out of order": docOf(`{"type":"reg","name":"z","size":10,"offset":900,"digest":"`+sumA+`"}`, `{"name":"a",`+tenBytes+`}`),
		"link replaced since":  docOf(`{"type":"hardlink","name":"a","linkName":"b"}`, `{"type":"dir","name":"a"}`, `{"name":"b",`+tenBytes+`}`),
	} {
		t.Run(name, func(t *testing.T) {
			data, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, Limits{})
			if err != nil {
				t.Fatal(err)
			}
			toc, err := openBytes(data)
			if err != nil {
				t.Fatal(err)
			}
			if err := checkAll(toc); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestHostileTime compiles documents that are made to be slow.
func TestHostileTime(t *testing.T) {
	var symlinks, links []string
	for i := range 200 {
		symlinks = append(symlinks, fmt.Sprintf(`{"type":"symlink","name":"s%d","linkName":"s%d/%s"}`, i, i+1, strings.Repeat("./", 500)))
	}
	for i := range 5000 {
		symlinks = append(symlinks, fmt.Sprintf(`{"type":"dir","name":"s0/d%d"}`, i))
		links = append(links, fmt.Sprintf(`{"type":"hardlink","name":"l%d","linkName":"l%d"}`, i, i+1))
	}
	for name, entries := range map[string][]string{"symlinks": symlinks, "links": links} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			compileDoc(t.TempDir(), strings.NewReader(docOf(entries...)), FormatEStargz, false, Limits{})
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	entries := []string{`{"type":"dir","name":"a"}`, `{"name":"b","chunkSize":4,` + tenBytes + `}`, `{"type":"chunk","name":"b","chunkOffset":4,"offset":200,"chunkDigest":"` + sumA + `"}`}
	doc := docOf(entries...)
	for name, lim := range map[string]Limits{"entries": {Entries: 2}, "chunk": {ChunkSize: 5}, "member": {MemberBytes: 99}} {
		if _, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, lim); !errors.Is(err, ErrLimit) {
			t.Errorf("%s: error %v, want one of ErrLimit", name, err)
		}
	}
	if _, err := compileDoc(t.TempDir(), strings.NewReader(doc), FormatEStargz, false, Limits{Entries: 3, ChunkSize: 6}); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

// TestMemory holds Compile to the bound that the package promises.
func TestMemory(t *testing.T) {
	const entries = 200_000
	r := &docWriter{n: entries}
	src := &source{loc: Location{Format: FormatEStargz, Offset: 1 << 40, Size: 100}, blobSize: 1<<40 + 151, lim: Limits{MemberBytes: 1 << 41}.withDefaults()}
	var before, after runtime.MemStats
	check := func(when string) {
		runtime.GC()
		runtime.ReadMemStats(&after)
		per := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / entries
		objects := int64(after.HeapObjects) - int64(before.HeapObjects)
		t.Logf("%s: %d bytes for each entry; %d objects", when, per, objects)
		if per > 250 {
			t.Errorf("%s: %d bytes for each entry, the package promises 250", when, per)
		}
		if objects > entries/50 {
			t.Errorf("%s: %d heap objects for %d entries", when, objects, entries)
		}
	}
	runtime.GC()
	runtime.ReadMemStats(&before)
	b, err := buildFrom(context.Background(), r, src, false)
	if err != nil {
		t.Fatal(err)
	}
	check("built")
	tab, err := b.number()
	if err != nil {
		t.Fatal(err)
	}
	check("numbered")
	runtime.KeepAlive(tab)
}

// TestTenMillionEntries: a TOC with more entries than the limit is refused when it gets
// there, not at its end, and within the memory that the package promises up to there.
func TestTenMillionEntries(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a gigabyte of memory for some seconds")
	}
	lim := Limits{MemberBytes: 1 << 41}.withDefaults()
	r := &docWriter{n: 10_000_000}
	src := &source{loc: Location{Format: FormatEStargz, Offset: 1 << 40, Size: 100}, blobSize: 1<<40 + 151, lim: lim}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	begin := time.Now()
	_, err := buildFrom(context.Background(), r, src, false)
	runtime.ReadMemStats(&after)
	if !errors.Is(err, ErrLimit) {
		t.Fatalf("error %v, want one of ErrLimit", err)
	}
	if int64(r.i) > lim.Entries+10_000 {
		t.Errorf("%d entries were read, at most %d are allowed", r.i, lim.Entries)
	}
	most := int64(after.Sys) - int64(before.Sys)
	t.Logf("%v, %d MB", time.Since(begin), most>>20)
	if most > 2*250*lim.Entries { // garbage included
		t.Errorf("%d bytes", most)
	}
}

// docWriter is a document of n files in directories of a hundred.
type docWriter struct {
	n, i int
	buf  []byte
}

func (d *docWriter) Read(p []byte) (int, error) {
	for len(d.buf) == 0 {
		switch {
		case d.i == 0:
			d.buf = []byte(`{"version":1,"entries":[`)
		case d.i <= d.n:
			sep := ","
			if d.i == d.n {
				sep = "]}"
			}
			d.buf = fmt.Appendf(nil, `{"type":"reg","name":"usr/share/package-%05d/file-%d.txt","size":1000,"modtime":"2024-01-02T03:04:05Z","offset":%d,"mode":420,"digest":"%s","chunkDigest":"%s"}%s`,
				d.i/100, d.i, d.i*500, sumA, sumA, sep)
		default:
			return 0, io.EOF
		}
		d.i++
	}
	n := copy(p, d.buf)
	d.buf = d.buf[n:]
	return n, nil
}

package estargz_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// sharedMember is a layer of several files in one member, its TOC and the bytes
// of that member.
func sharedMember(t testing.TB, format estargz.Format) (*estargz.TOC, []byte, map[string][]byte) {
	files := map[string][]byte{}
	var entries []estargztest.Entry
	for i := range 10 {
		name := fmt.Sprintf("f%d", i)
		files[name] = estargztest.Bytes(uint64(i), 10_000)
		entries = append(entries, estargztest.File(name, files[name]))
	}
	l := estargztest.Build(t, estargztest.Options{Format: format, MinChunkSize: 1 << 20, ChunkSize: 4000}, entries...)
	toc := l.Open(t)
	if toc.Members() != 1 || toc.Chunks() != 30 {
		t.Fatalf("%d members, %d chunks; want 1, 30", toc.Members(), toc.Chunks())
	}
	m, err := toc.Member(0)
	if err != nil {
		t.Fatal(err)
	}
	return toc, l.Blob[m.Offset : m.Offset+m.Size], files
}

var memberFormats = []estargz.Format{estargz.FormatEStargz, estargz.FormatZstdChunked}

func TestDecodeSome(t *testing.T) {
	for _, format := range memberFormats {
		t.Run(format.String(), func(t *testing.T) {
			toc, compressed, _ := sharedMember(t, format)
			for _, tc := range []struct {
				first, last uint32
				stop        int // after so many
				want        []uint32
			}{
				{first: 3, last: 5, want: []uint32{3, 4, 5}},
				{first: 29, last: 100, want: []uint32{29}},
				{first: 0, last: 0, want: []uint32{0}},
				{first: 5, last: 4},
				{first: 30, last: 40},
				{first: 0, last: ^uint32(0), stop: 2, want: []uint32{0, 1}},
			} {
				var got []uint32
				err := toc.Decode(0, compressed, tc.first, tc.last, nil, func(c uint32, data []byte) bool {
					got = append(got, c)
					return len(got) != tc.stop
				})
				if err != nil || !slices.Equal(got, tc.want) {
					t.Errorf("[%d, %d]: chunks %v, %v; want %v", tc.first, tc.last, got, err, tc.want)
				}
			}
		})
	}
}

// TestDecodeFaults damages members: nothing wrong is ever emitted, and the error
// names the chunk.
func TestDecodeFaults(t *testing.T) {
	for _, format := range memberFormats {
		t.Run(format.String(), func(t *testing.T) {
			toc, compressed, _ := sharedMember(t, format)
			want := map[uint32][]byte{}
			if err := toc.Decode(0, compressed, 0, 29, nil, func(c uint32, data []byte) bool {
				want[c] = bytes.Clone(data)
				return true
			}); err != nil {
				t.Fatal(err)
			}
			try := func(what string, bad []byte) {
				t.Helper()
				emitted := 0
				err := toc.Decode(0, bad, 0, 29, nil, func(c uint32, data []byte) bool {
					emitted++
					if !bytes.Equal(data, want[c]) {
						t.Errorf("%s: wrong bytes for chunk %d", what, c)
					}
					return true
				})
				if err == nil && emitted != 30 {
					t.Errorf("%s: %d chunks and no error", what, emitted)
				}
				if err != nil && (!errors.Is(err, estargz.ErrCorrupt) || !strings.Contains(err.Error(), "member 0")) {
					t.Errorf("%s: error %v", what, err)
				}
			}
			for i := range 200 {
				bad := bytes.Clone(compressed)
				bad[i*7919%len(bad)] ^= 1 << (i % 8)
				try(fmt.Sprintf("bit %d", i), bad)
			}
			for i := range 50 {
				bad := bytes.Clone(compressed)
				clear(bad[len(bad)*i/50:])
				try(fmt.Sprintf("zeros from %d/50", i), bad)
			}
			if err := toc.Decode(0, compressed[1:], 0, 29, nil, nil); err == nil || errors.Is(err, estargz.ErrCorrupt) {
				t.Errorf("part of a member: error %v", err)
			}
			if err := toc.Decode(1, compressed, 0, 29, nil, nil); !errors.Is(err, estargz.ErrCorrupt) {
				t.Errorf("member that is not there: error %v", err)
			}
		})
	}
}

func TestDecodeConcurrently(t *testing.T) {
	for _, format := range memberFormats {
		toc, compressed, _ := sharedMember(t, format)
		want := make([][]byte, toc.Chunks())
		err := toc.Decode(0, compressed, 0, 29, nil, func(c uint32, data []byte) bool {
			want[c] = bytes.Clone(data)
			return true
		})
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				for i := range 20 {
					first := uint32(g+i) % 30
					err := toc.Decode(0, compressed, first, first+3, nil, func(c uint32, data []byte) bool {
						if !bytes.Equal(data, want[c]) {
							t.Errorf("wrong bytes for chunk %d", c)
						}
						return true
					})
					if err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
}

// TestDecodeAllocations: what a chunk needs comes out of a pool.
func TestDecodeAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops things under the race detector")
	}
	for _, format := range memberFormats {
		toc, compressed, _ := sharedMember(t, format)
		emit := func(uint32, []byte) bool { return true }
		n := testing.AllocsPerRun(100, func() {
			if err := toc.Decode(0, compressed, 0, 29, nil, emit); err != nil {
				t.Fatal(err)
			}
		})
		if n > 50 { // about one for each chunk's gap, all of a few bytes
			t.Errorf("%s: %.0f allocations for a member of 30 chunks", format, n)
		}
	}
}

func TestLookupAllocations(t *testing.T) {
	l := estargztest.Build(t, writers[0].opts, estargztest.Torture()...)
	toc := l.Open(t)
	dir, err := toc.Lookup(estargz.Root, []byte("many"))
	if err != nil {
		t.Fatal(err)
	}
	contents, err := toc.Lookup(estargz.Root, []byte("contents"))
	if err != nil {
		t.Fatal(err)
	}
	file, err := toc.Lookup(contents, []byte("many-chunks"))
	if err != nil {
		t.Fatal(err)
	}
	there, missing := []byte("1234"), []byte("no such name")
	var in estargz.Inode
	n := testing.AllocsPerRun(100, func() {
		i, err := toc.Lookup(dir, there)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := toc.Lookup(dir, missing); err != estargz.ErrNotExist {
			t.Fatal(err)
		}
		if _, _, err := toc.Entry(dir, 77); err != nil {
			t.Fatal(err)
		}
		if _, err := toc.Xattr(i, missing); err != estargz.ErrNotExist {
			t.Fatal(err)
		}
		if _, err := toc.FindChunk(file, 300_000); err != nil {
			t.Fatal(err)
		}
		if err := toc.Inode(i, &in); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%.0f allocations", n)
	}
}

func BenchmarkLookup(b *testing.B) {
	toc := estargztest.Build(b, writers[0].opts, estargztest.Torture()...).Open(b)
	dir, err := toc.Lookup(estargz.Root, []byte("many"))
	if err != nil {
		b.Fatal(err)
	}
	name := []byte("1234")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := toc.Lookup(dir, name); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkCompile is of a layer with as many files as a large base image has.
func BenchmarkCompile(b *testing.B) {
	var entries []estargztest.Entry
	for i := range 30_000 {
		entries = append(entries, estargztest.File(fmt.Sprintf("usr/share/package%d/file%d", i/20, i), estargztest.Bytes(uint64(i), 40)))
	}
	l := estargztest.Build(b, estargztest.Options{Format: estargz.FormatEStargz}, entries...)
	path := filepath.Join(b.TempDir(), "toc")
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Compile(context.Background(), path, estargz.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, format := range memberFormats {
		b.Run(format.String(), func(b *testing.B) {
			data := bytes.Repeat(estargztest.Bytes(1, 1000), 4000)
			l := estargztest.Build(b, estargztest.Options{Format: format}, estargztest.File("f", data))
			toc := l.Open(b)
			m, err := toc.Member(0)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(len(data)))
			b.ReportAllocs()
			for b.Loop() {
				if err := toc.Decode(0, l.Blob[m.Offset:m.Offset+m.Size], 0, 0, nil, func(uint32, []byte) bool { return true }); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

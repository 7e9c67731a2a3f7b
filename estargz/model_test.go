package estargz_test

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// writer is a way to make a layer that this package must read.
type writer struct {
	name string
	opts estargztest.Options
	// seconds: its TOC has times in seconds. once: it drops all but the last
	// entry of a name, so that what a hard link to an earlier one means is lost.
	seconds, once bool
}

var writers = []writer{
	{name: "estargz", opts: estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10}, seconds: true},
	{name: "estargz in shared members", opts: estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, MinChunkSize: 50_000}, seconds: true},
	{name: "estargz in one member", opts: estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, MinChunkSize: 1 << 30}, seconds: true},
	{name: "estargz, large chunks", opts: estargztest.Options{Format: estargz.FormatEStargz}, seconds: true},
	{name: "estargz, prioritized", opts: estargztest.Options{
		Format: estargz.FormatEStargz, ChunkSize: 64 << 10, Landmark: true,
	}, seconds: true, once: true},
	{name: "estargz, external TOC", opts: estargztest.Options{Format: estargz.FormatEStargzExtern, ChunkSize: 64 << 10}, seconds: true},
	{name: "stargz", opts: estargztest.Options{Format: estargz.FormatStargz, ChunkSize: 64 << 10}, seconds: true},
	{name: "zstd:chunked of stargz-snapshotter", opts: estargztest.Options{Format: estargz.FormatZstdChunked, ChunkSize: 64 << 10}, seconds: true},
	{name: "zstd:chunked in shared members", opts: estargztest.Options{Format: estargz.FormatZstdChunked, ChunkSize: 64 << 10, MinChunkSize: 50_000}, seconds: true},
	{name: "zstd:chunked of containers/storage", opts: estargztest.Options{Format: estargz.FormatZstdChunked, ChunkSize: 64 << 10, Storage: true}},
}

// TestTreeIsTheTars reads layers of every writer and compares the tree, every
// attribute and every byte with what the tar means.
func TestTreeIsTheTars(t *testing.T) {
	layers := map[string][]estargztest.Entry{"torture": estargztest.Torture(), "quirks": estargztest.Quirks()}
	for what, entries := range layers {
		for _, w := range writers {
			t.Run(what+"/"+w.name, func(t *testing.T) {
				t.Parallel()
				entries, opts := entries, w.opts
				if w.once {
					entries = append(lastOfEachName(entries), estargztest.File("first", []byte("to be read")))
					opts.Prioritized = []string{"first", entries[len(entries)/2].Name}
				}
				l := estargztest.Build(t, opts, entries...)
				want, err := estargztest.ModelOfTar(bytes.NewReader(l.Tar))
				if err != nil {
					t.Fatal(err)
				}
				toc := l.Open(t)
				got, err := estargztest.TreeOf(toc, l)
				if err != nil {
					t.Fatal(err)
				}
				for _, n := range want {
					n.Implicit = false
				}
				if w.seconds {
					want = want.RoundTimes(time.Second)
				}
				for _, diff := range estargztest.Compare(want, got) {
					t.Error(diff)
				}
				checkTotals(t, toc, l, got)
			})
		}
	}
}

// checkTotals compares what the header says with the tree.
func checkTotals(t *testing.T, toc *estargz.TOC, l estargztest.Layer, tree estargztest.Tree) {
	t.Helper()
	var bytes int64
	xattrs, seen := false, map[*estargztest.Node]bool{}
	for _, n := range tree {
		if !seen[n] && n.IsFile() {
			bytes += n.Size
		}
		seen[n] = true
		xattrs = xattrs || n.Opaque || len(n.Xattrs) > 0
	}
	if got := toc.FileBytes(); got != bytes {
		t.Errorf("FileBytes is %d, files have %d", got, bytes)
	}
	if int(toc.Len()) != len(seen) {
		t.Errorf("Len is %d, tree has %d inodes", toc.Len(), len(seen))
	}
	if toc.HasXattrs() != xattrs {
		t.Errorf("HasXattrs is %v, want %v", toc.HasXattrs(), xattrs)
	}
	if toc.BlobSize() != int64(len(l.Blob)) {
		t.Errorf("BlobSize is %d, want %d", toc.BlobSize(), len(l.Blob))
	}
	if toc.Format() != estargz.FormatStargz && !toc.HasChunkDigests() {
		t.Errorf("HasChunkDigests is false in %s", toc.Format())
	}
}

// lastOfEachName drops entries that a later one of the same name replaces.
func lastOfEachName(entries []estargztest.Entry) []estargztest.Entry {
	clean := func(e estargztest.Entry) string { return strings.Trim(strings.TrimPrefix(e.Name, "./"), "/") }
	last := map[string]int{}
	for i, e := range entries {
		last[clean(e)] = i
	}
	var out []estargztest.Entry
	for i, e := range entries {
		if last[clean(e)] == i && !strings.Contains(e.Name, "twice/") {
			out = append(out, e)
		}
	}
	return out
}

func TestPrefetchLandmark(t *testing.T) {
	files := []estargztest.Entry{
		estargztest.File("a", estargztest.Bytes(1, 100_000)),
		estargztest.File("b", estargztest.Bytes(2, 100_000)),
		estargztest.File("c", estargztest.Bytes(3, 100_000)),
	}
	for _, f := range []estargz.Format{estargz.FormatEStargz, estargz.FormatZstdChunked} {
		t.Run(f.String(), func(t *testing.T) {
			toc := estargztest.Build(t, estargztest.Options{Format: f, Prioritized: []string{"c"}}, files...).Open(t)
			if got := toc.PrefetchEnd(); got < 100_000 || got > 110_000 {
				t.Errorf("landmark behind one file of 100,000 bytes is at %d", got)
			}
			none := estargztest.Build(t, estargztest.Options{Format: f, Landmark: true}, files...).Open(t)
			if got := none.PrefetchEnd(); got != 0 {
				t.Errorf("no-prefetch landmark: prefetch up to %d", got)
			}
			for _, toc := range []*estargz.TOC{toc, none} {
				if toc.Len() != 4 {
					t.Errorf("%d inodes, want the root and three files: landmarks are to be hidden", toc.Len())
				}
			}
		})
	}
}

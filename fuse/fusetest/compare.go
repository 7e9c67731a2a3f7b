package fusetest

import (
	"io"
	"testing"
	"time"

	"github.com/lazykit/lazykit/estargz/estargztest"
)

// CompareOptions of CompareTree.
type CompareOptions struct {
	// Merged says that dir is an overlay of the layer alone: whiteouts and
	// opaque markers do not show, directories have no link count, and the root
	// directory is the upper one's.
	Merged bool
	// UserXattr says that opaque directories are marked with user.overlay.opaque.
	UserXattr bool
}

// CompareTree compares a mounted layer with the tar that it was made of, entry by
// entry (type, mode, owner, modification time, size, groups of hard links and
// their counts, extended attributes, link targets, device numbers, whiteouts,
// opaque directories) and byte by byte. Times may be rounded to seconds, which is
// all that an eStargz TOC keeps. Each difference is an error of the test.
func CompareTree(t testing.TB, dir string, layer io.Reader, opts CompareOptions) {
	t.Helper()
	opaque := "trusted.overlay.opaque"
	if opts.UserXattr {
		opaque = "user.overlay.opaque"
	}
	want, err := estargztest.ModelOfTar(layer)
	if err != nil {
		t.Fatalf("tar: %v", err)
	}
	// overlayfs lists the whiteouts of a directory that only one layer has.
	got, err := readDir(dir, opaque, opts.Merged)
	if err != nil {
		t.Fatalf("tree: %v", err)
	}
	if opts.Merged {
		merge(want)
		want[""] = got[""]
		dropDirLinks(want)
		dropDirLinks(got)
	}
	forgiveSeconds(want, got)
	report(t, estargztest.Compare(want, got))
}

// merge takes away what an overlay hides.
func merge(tree estargztest.Tree) {
	for name, n := range tree {
		if n.IsWhiteout() {
			delete(tree, name)
		}
		n.Opaque = false
	}
}

func dropDirLinks(tree estargztest.Tree) {
	for _, n := range tree {
		if n.IsDir() {
			n.Nlink = 0
		}
	}
}

// forgiveSeconds makes times of want that were rounded in got the same.
func forgiveSeconds(want, got estargztest.Tree) {
	for name, w := range want {
		if g := got[name]; g != nil && (g.Mtime.Equal(w.Mtime.Round(time.Second)) || g.Mtime.Equal(w.Mtime.Truncate(time.Second))) {
			w.Mtime = g.Mtime
		}
	}
}

func report(t testing.TB, diffs []string) {
	t.Helper()
	for _, d := range diffs {
		t.Error(d)
	}
}

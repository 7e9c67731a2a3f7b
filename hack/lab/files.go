package lab

import (
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// File is a regular file of an image's tree.
type File struct {
	Name string // without a leading slash
	Size int64
}

// Files lists the regular files of the tree that the layers make together, by name;
// of hard links the first only. Every layer has a table of contents.
func (i *Image) Files() ([]File, error) {
	tree := fileTree{}
	for _, l := range i.Layers {
		if err := tree.apply(i.Blob(l.Digest), l); err != nil {
			return nil, fmt.Errorf("list the files of layer %s: %w", l.Digest, err)
		}
	}
	var all []File
	for _, name := range slices.Sorted(maps.Keys(tree)) {
		all = append(all, File{Name: name, Size: tree[name]})
	}
	return all, nil
}

// fileTree are sizes of files by name.
type fileTree map[string]int64

func (t fileTree) apply(blob string, l ocispecs.Descriptor) error {
	file, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer file.Close()
	r, err := estargz.Open(io.NewSectionReader(file, 0, l.Size), estargz.WithDecompressors(&zstdchunked.Decompressor{}))
	if err != nil {
		return err
	}
	root, ok := r.Lookup("")
	if !ok {
		return fmt.Errorf("it has no root")
	}
	// What a layer deletes is what the layers below it have.
	t.walk("", root, t.hide)
	t.walk("", root, t.show)
	return nil
}

func (t fileTree) walk(dir string, e *estargz.TOCEntry, f func(name string, e *estargz.TOCEntry)) {
	e.ForeachChild(func(base string, child *estargz.TOCEntry) bool {
		name := path.Join(dir, base)
		f(name, child)
		if child.Type == "dir" {
			t.walk(name, child, f)
		}
		return true
	})
}

// hide removes what an entry of a layer hides of the layers below.
func (t fileTree) hide(name string, e *estargz.TOCEntry) {
	dir, base := path.Split(name)
	switch deleted, whiteout := strings.CutPrefix(base, ".wh."); {
	case base == ".wh..wh..opq":
		t.remove(dir)
	case whiteout:
		delete(t, dir+deleted)
		t.remove(dir + deleted + "/")
	default:
		delete(t, name)
		if e.Type != "dir" {
			t.remove(name + "/")
		}
	}
}

func (t fileTree) remove(prefix string) {
	maps.DeleteFunc(t, func(name string, _ int64) bool { return strings.HasPrefix(name, prefix) })
}

// show adds a file. A hard link is shown as the entry that it is a link to, under
// that entry's name.
func (t fileTree) show(name string, e *estargz.TOCEntry) {
	switch name {
	case estargz.TOCTarName, estargz.PrefetchLandmark, estargz.NoPrefetchLandmark:
		return // lazy daemons do not show them
	}
	if e.Type == "reg" && !strings.HasPrefix(path.Base(name), ".wh.") && path.Clean(e.Name) == name {
		t[name] = e.Size
	}
}

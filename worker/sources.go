package worker

import (
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// A step mostly runs what a COPY has just brought, with what its base has. The sources lie in
// layers that are plain directories, where it costs nothing to look into them for what they
// name in the base.

// Bounds of the sources that are looked into.
const (
	maxSources    = 64
	maxSourceSize = 256 << 10
	maxSourcesAll = 2 << 20 // bytes of all of them
	maxPlain      = 32      // directories
	maxEntries    = 1 << 10 // of a directory
)

// plainDirs are the directories below root of which a root file system is made, the upper ones
// first.
func plainDirs(mounts []mount.Mount, root string) (dirs []string) {
	add := func(list string) {
		for dir := range strings.SplitSeq(list, ":") {
			if rel, err := filepath.Rel(root, dir); err == nil && filepath.IsLocal(rel) && rel != "." && len(dirs) < maxPlain {
				dirs = append(dirs, dir)
			}
		}
	}
	for _, m := range mounts {
		if m.Type != "overlay" {
			add(m.Source)
			continue
		}
		for _, o := range m.Options {
			if list, ok := strings.CutPrefix(o, "lowerdir="); ok {
				add(list)
			}
		}
	}
	return dirs
}

// readSources reads sources by their paths, each from the first of some directories that has it.
// What can't be read is left out: the step will say why.
func readSources(paths, dirs []string) (sources []layer.Source) {
	size := 0
	for _, p := range paths {
		rel := strings.Trim(p, "/")
		if rel == "" {
			rel = "."
		}
		for _, dir := range dirs {
			if len(sources) >= maxSources || size >= maxSourcesAll {
				return sources
			}
			root, err := os.OpenRoot(dir)
			if err != nil {
				continue
			}
			found := sourcesIn(root, rel, strings.HasSuffix(p, "/"), maxSources-len(sources), maxSourcesAll-size)
			root.Close()
			for _, s := range found {
				size += len(s.Text)
			}
			sources = append(sources, found...)
			if len(found) > 0 {
				break
			}
		}
	}
	return sources
}

// sourcesIn reads a file, or the sources of Go in a directory: n at most, of room bytes.
func sourcesIn(root *os.Root, name string, dir bool, n, room int) (sources []layer.Source) {
	if !dir {
		text, err := readSource(root, name, room)
		if err != nil {
			return nil
		}
		return []layer.Source{{Name: name, Text: text}}
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NONBLOCK, 0) // nothing but a directory is opened
	if err != nil {
		return nil
	}
	defer f.Close()
	entries, _ := f.ReadDir(maxEntries) // what comes before an error will do
	slices.SortFunc(entries, func(a, b os.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	for _, e := range entries {
		if path.Ext(e.Name()) != ".go" || strings.HasSuffix(e.Name(), "_test.go") || len(sources) >= n || room <= 0 {
			continue
		}
		if text, err := readSource(root, path.Join(name, e.Name()), room); err == nil {
			sources = append(sources, layer.Source{Name: e.Name(), Text: text})
			room -= len(text)
		}
	}
	return sources
}

var errNoSource = errors.New("not a regular file")

// readSource reads the beginning of a file, which may be anything: a client's COPY has made it.
func readSource(root *os.Root, name string, room int) ([]byte, error) {
	// To open a device may do something. The layer does not change any more.
	if st, err := root.Stat(name); err != nil || !st.Mode().IsRegular() {
		return nil, errors.Join(err, errNoSource)
	}
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(min(maxSourceSize, room))))
}

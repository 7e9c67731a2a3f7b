package layer

import (
	"bytes"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// What a file names may lie in another layer of its image. An image is the layers
// that are looked through for a path; it is a guess where two images share layers,
// or an upper one hides a file: what comes of it is fetched ahead, not served.

const (
	maxLayers = 128 // of an image that are looked through: more than most builders make
	lowest    = 32  // so many of them are its lowest ones, which have the loader and the C library
	maxLinks  = 8   // symlinks followed for one path
)

// image is layers that the caller holds.
type image []*Layer

// SetImage tells the layer how to find those of its image, itself among them, the topmost first
// as far as that is known. layers is called often and must not block; what it returns may be closed
// meanwhile.
func (l *Layer) SetImage(layers func() []*Layer) { l.siblings.Store(&layers) }

// image holds the layers of l's image, the topmost first. Call release at the end.
func (l *Layer) image() (im image, release func()) {
	var list []*Layer
	if siblings := l.siblings.Load(); siblings != nil {
		list = (*siblings)()
	}
	if n := len(list); n > maxLayers {
		list = slices.Concat(list[:maxLayers-lowest], list[n-lowest:])
	}
	if !slices.Contains(list, l) { // it always is one of them
		list = append([]*Layer{l}, list...)
	}
	for _, o := range list {
		if _, err := o.Acquire(); err == nil {
			im = append(im, o)
		}
	}
	return im, func() {
		for _, l := range im {
			l.Release()
		}
	}
}

// location is a file or a directory of a layer.
type location struct {
	layer *Layer
	inode uint32
	mode  uint32
}

// find follows a path to a file or a directory, through symlinks.
func (im image) find(p string) (at location, ok bool) {
	for range maxLinks {
		link := ""
		if at, link, ok = im.walk(p); link == "" {
			return at, ok
		}
		p = link
	}
	return location{}, false
}

// walk goes down a path in all layers at the same time, up to its end or the first
// symlink, for which it returns the path to go on with.
func (im image) walk(p string) (at location, link string, ok bool) {
	dirs := make([]location, 0, len(im))
	for _, l := range im {
		dirs = append(dirs, location{l, estargz.Root, unix.S_IFDIR})
	}
	p = path.Clean("/" + p)
	for done, rest := "/", p[1:]; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		next := dirs[:0]
		for _, d := range dirs {
			i, err := d.layer.toc.Lookup(d.inode, []byte(name))
			var node estargz.Inode
			if err != nil || d.layer.toc.Inode(i, &node) != nil {
				continue
			}
			switch mode := node.Mode & unix.S_IFMT; {
			case mode == unix.S_IFLNK:
				to, err := d.layer.toc.Symlink(i)
				if err != nil {
					continue
				}
				if !bytes.HasPrefix(to, []byte("/")) {
					return location{}, path.Join(done, string(to), rest), false
				}
				return location{}, path.Join(string(to), rest), false
			case mode == unix.S_IFDIR:
				next = append(next, location{d.layer, i, mode})
			case mode == unix.S_IFREG && rest == "":
				return location{d.layer, i, mode}, "", true
			}
		}
		dirs, done = next, path.Join(done, name)
	}
	if len(dirs) == 0 {
		return location{}, "", false
	}
	return dirs[0], "", true
}

// file finds a regular file.
func (im image) file(p string) (location, bool) {
	at, ok := im.find(p)
	return at, ok && at.mode == unix.S_IFREG
}

// entries calls f with what is in a directory until it returns false.
func (at location) entries(f func(name string, inode uint32) bool) {
	var node estargz.Inode
	toc := at.layer.toc
	if at.mode != unix.S_IFDIR || toc.Inode(at.inode, &node) != nil {
		return
	}
	for n := range node.Entries {
		name, i, err := toc.Entry(at.inode, n)
		if err != nil || !f(string(name), i) {
			return
		}
	}
}

// files lists the regular files in a directory for which want holds.
func (at location) files(limit int, want func(name string) bool) (out []location) {
	at.entries(func(name string, i uint32) bool {
		var node estargz.Inode
		if want(name) && at.layer.toc.Inode(i, &node) == nil && node.Mode&unix.S_IFMT == unix.S_IFREG {
			out = append(out, location{at.layer, i, unix.S_IFREG})
		}
		return len(out) < limit
	})
	return out
}

// names lists what is in a directory.
func (at location) names(limit int) (out []string) {
	at.entries(func(name string, _ uint32) bool {
		out = append(out, name)
		return len(out) < limit
	})
	return out
}

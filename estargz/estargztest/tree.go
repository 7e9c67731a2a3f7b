package estargztest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// Node is an inode of a layer, in the terms of stat(2). Names of the same inode
// share it.
type Node struct {
	Mode     uint32 // with S_IFMT
	UID, GID uint32
	Nlink    uint32
	Rdev     uint32
	Size     int64
	Mtime    time.Time
	Target   string
	Opaque   bool
	Implicit bool // a directory that no entry declares (of ModelOfTar only)
	Xattrs   map[string]string
	Sum      [sha256.Size]byte // of a regular file's bytes
}

// Tree maps paths to inodes; "" is the root.
type Tree map[string]*Node

// IsDir and IsFile tell what a node is.
func (n *Node) IsDir() bool  { return n.Mode&unix.S_IFMT == unix.S_IFDIR }
func (n *Node) IsFile() bool { return n.Mode&unix.S_IFMT == unix.S_IFREG }

// IsWhiteout says whether overlayfs takes the node for one.
func (n *Node) IsWhiteout() bool { return n.Mode&unix.S_IFMT == unix.S_IFCHR && n.Rdev == 0 }

// String is for messages of tests.
func (n *Node) String() string {
	return fmt.Sprintf("mode %o owner %d:%d nlink %d rdev %#x size %d mtime %s target %.40q opaque %v xattrs %q sum %.8x",
		n.Mode, n.UID, n.GID, n.Nlink, n.Rdev, n.Size, n.Mtime.UTC().Format(time.RFC3339Nano), n.Target, n.Opaque, n.Xattrs, n.Sum)
}

// RoundTimes does to times what stargz-snapshotter's and crfs' writers do.
func (t Tree) RoundTimes(d time.Duration) Tree {
	out, seen := Tree{}, map[*Node]*Node{}
	for name, n := range t {
		c, ok := seen[n]
		if !ok {
			copied := *n
			c = &copied
			c.Mtime = n.Mtime.Round(d)
			seen[n] = c
		}
		out[name] = c
	}
	return out
}

// links names each inode by the first of its names.
func (t Tree) links() map[string]string {
	first := map[*Node]string{}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if _, ok := first[t[name]]; !ok {
			first[t[name]] = name
		}
	}
	out := map[string]string{}
	for name, n := range t {
		out[name] = first[n]
	}
	return out
}

// Compare returns what differs between two trees, in words, at most a hundred
// lines; want and got are at liberty to be of any origin.
func Compare(want, got Tree) []string {
	var out []string
	report := func(format string, args ...any) {
		if len(out) < 100 {
			out = append(out, fmt.Sprintf(format, args...))
		}
	}
	names := map[string]bool{}
	for name := range want {
		names[name] = true
	}
	for name := range got {
		names[name] = true
	}
	wl, gl := want.links(), got.links()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		w, g := want[name], got[name]
		switch {
		case w == nil:
			report("%.100q: is there, should not be: %s", name, g)
		case g == nil:
			report("%.100q: is missing: %s", name, w)
		case w.String() != g.String():
			report("%.100q:\n\twant %s\n\tgot  %s", name, w, g)
		case w.Sum != g.Sum:
			report("%.100q: contents differ", name)
		case wl[name] != gl[name]:
			report("%.100q: should be a link to %.100q, is one to %.100q", name, wl[name], gl[name])
		}
	}
	return out
}

// TreeOf is the tree that a TOC describes, with the contents that blob holds;
// nil for no contents.
func TreeOf(toc *estargz.TOC, blob io.ReaderAt) (Tree, error) {
	w := &treeWalk{toc: toc, tree: Tree{}, seen: map[uint32]*Node{}}
	if blob != nil {
		w.reader = &Reader{TOC: toc, Blob: blob}
	}
	return w.tree, w.walk("", estargz.Root)
}

type treeWalk struct {
	toc    *estargz.TOC
	reader *Reader
	tree   Tree
	seen   map[uint32]*Node
}

func (w *treeWalk) walk(name string, i uint32) error {
	n, ok := w.seen[i]
	if ok {
		w.tree[name] = n
		return nil
	}
	var in estargz.Inode
	if err := w.toc.Inode(i, &in); err != nil {
		return err
	}
	n = &Node{
		Mode: in.Mode, UID: in.UID, GID: in.GID, Nlink: in.Nlink, Rdev: in.Rdev, Size: in.Size,
		Mtime: time.Unix(in.Mtime, int64(in.MtimeNsec)), Opaque: in.Opaque,
	}
	w.seen[i], w.tree[name] = n, n
	if err := w.more(n, i, in); err != nil {
		return fmt.Errorf("%.100q: %w", name, err)
	}
	for e := range in.Entries {
		base, child, err := w.toc.Entry(i, e)
		if err != nil {
			return err
		}
		if found, err := w.toc.Lookup(i, base); err != nil || found != child {
			return fmt.Errorf("lookup of %.100q in %.100q: inode %d, %w; entry says %d", base, name, found, err, child)
		}
		if err := w.walk(path.Join(name, string(base)), child); err != nil {
			return err
		}
	}
	return nil
}

// more adds what is not in the inode.
func (w *treeWalk) more(n *Node, i uint32, in estargz.Inode) error {
	err := w.toc.Xattrs(i, func(name, value []byte) bool {
		if n.Xattrs == nil {
			n.Xattrs = map[string]string{}
		}
		n.Xattrs[string(name)] = string(value)
		return true
	})
	if err != nil {
		return err
	}
	if in.Xattrs != (len(n.Xattrs) > 0) {
		return fmt.Errorf("has xattrs: %v, but there are %d", in.Xattrs, len(n.Xattrs))
	}
	switch {
	case n.Mode&unix.S_IFMT == unix.S_IFLNK:
		target, err := w.toc.Symlink(i)
		n.Target = string(target)
		return err
	case n.IsFile() && w.reader != nil:
		n.Sum, err = w.reader.SumFile(i)
		return err
	}
	return nil
}

// Reader reads files of a layer through their chunks. It keeps up to 128 MiB of
// the chunks that it came across, for files share members. For one goroutine.
type Reader struct {
	TOC  *estargz.TOC
	Blob io.ReaderAt

	chunks map[uint32][]byte
	kept   int64
}

// SumFile reads file i and digests it.
func (r *Reader) SumFile(i uint32) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	err = r.ReadFile(i, func(data []byte) { h.Write(data) })
	return [sha256.Size]byte(h.Sum(nil)), err
}

// ReadFile calls f with the contents of file i, chunk by chunk.
func (r *Reader) ReadFile(i uint32, f func([]byte)) error {
	var in estargz.Inode
	if err := r.TOC.Inode(i, &in); err != nil {
		return err
	}
	for off := int64(0); off < in.Size; {
		c, err := r.TOC.FindChunk(i, off)
		if err != nil {
			return err
		}
		var ch estargz.Chunk
		if err := r.TOC.Chunk(c, &ch); err != nil {
			return err
		}
		if ch.FileOffset != off || ch.Size <= 0 {
			return fmt.Errorf("chunk %d is [%d, +%d), expected at %d", c, ch.FileOffset, ch.Size, off)
		}
		if err := r.readChunk(c, ch, f); err != nil {
			return err
		}
		off += ch.Size
	}
	return nil
}

func (r *Reader) readChunk(c uint32, ch estargz.Chunk, f func([]byte)) error {
	if ch.Zeros {
		buf := make([]byte, min(ch.Size, 64<<10))
		for left := ch.Size; left > 0; left -= int64(len(buf)) {
			buf = buf[:min(left, int64(len(buf)))]
			f(buf)
		}
		return nil
	}
	if _, ok := r.chunks[c]; !ok {
		if err := r.readMember(ch.Member); err != nil {
			return err
		}
	}
	data, ok := r.chunks[c]
	if !ok {
		return fmt.Errorf("member %d did not have chunk %d", ch.Member, c)
	}
	if int64(len(data)) != ch.Size {
		return fmt.Errorf("chunk %d has %d bytes, want %d", c, len(data), ch.Size)
	}
	f(data)
	return nil
}

func (r *Reader) readMember(m uint32) error {
	if r.chunks == nil || r.kept > 128<<20 {
		r.chunks, r.kept = map[uint32][]byte{}, 0
	}
	at, err := r.TOC.Member(m)
	if err != nil {
		return err
	}
	first, last, err := r.TOC.MemberChunks(m)
	if err != nil {
		return err
	}
	compressed := make([]byte, at.Size)
	if _, err := r.Blob.ReadAt(compressed, at.Offset); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return r.TOC.Decode(m, compressed, first, last, nil, func(c uint32, data []byte) bool {
		r.chunks[c] = slices.Clone(data)
		r.kept += int64(len(data))
		return true
	})
}

func parentOf(name string) string {
	if i := strings.LastIndexByte(name, '/'); i >= 0 {
		return name[:i]
	}
	return ""
}

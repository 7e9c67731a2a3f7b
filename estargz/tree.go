package estargz

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// tree is the tree of a layer while Compile builds it. Inodes and nodes are
// only ever added: what an entry replaces becomes unreachable, and is left out
// when the compact file is written.
type tree struct {
	strs   *interner
	inodes slab[protoInode]
	nodes  slab[node]
	table  []uint32 // (dir, name) -> node + 1; open addressing

	// The directory of the last entry, for the next is mostly in the same.
	lastPath []byte
	lastDir  uint32
	lastOK   bool

	scratch []byte
	steps   int64 // of all walks
}

// protoInode is an inode before it has its final number.
type protoInode struct {
	mode, uid, gid, rdev uint32
	mtime                int64
	mtimeNsec            uint32
	flags                uint32 // as in the compact file, and inodeWhiteout
	size                 int64
	a, b                 uint32 // directory: first node + 1, depth; file: first chunk, chunks; symlink: target
	parent               uint32 // of a directory; at the end, of any inode, final number
	xattr, xattrs        uint32 // first and number
	chunk                uint32 // of a file, known at the end: number of the first
	nlink, final         uint32 // known at the end; final is the number + 1, 0 for none
}

// inodeWhiteout marks, while building, a device that stands for a whiteout.
const inodeWhiteout = 1 << 31

// node is a name in a directory.
type node struct {
	dir, inode uint32
	name       strRef
	next       uint32 // the next node + 1 of the same directory
	hidden     bool   // the layer has a whiteout of this name
}

var (
	errNotDir = errors.New("parent is not a directory")
	errLoop   = errors.New("too many symlinks")
)

func newTree() *tree {
	t := &tree{strs: newInterner(), table: make([]uint32, 1<<10)}
	t.inodes.add(protoInode{mode: unix.S_IFDIR | 0o755})
	return t
}

func (t *tree) isDir(i uint32) bool { return t.inodes.at(i).mode&unix.S_IFMT == unix.S_IFDIR }

// slot returns the index of (dir, name) in table, or of the free slot for it.
func (t *tree) slot(dir uint32, name strRef) int {
	mask := uint64(len(t.table) - 1)
	// Fibonacci hashing of what identifies the pair; names are interned. Which
	// inode and offset an entry gets is ours to say, so that collisions can't be
	// arranged but by layers of millions of entries, and cost little then.
	h := (uint64(dir)<<32 | uint64(name.off)) * 0x9e3779b97f4a7c15
	h ^= h >> 29
	for i := h & mask; ; i = (i + 1) & mask {
		n := t.table[i]
		if n == 0 {
			return int(i)
		}
		if at := t.nodes.at(n - 1); at.dir == dir && at.name == name {
			return int(i)
		}
	}
}

// find returns the node of name in dir.
func (t *tree) find(dir uint32, name []byte) (*node, bool) {
	ref, ok := t.strs.find(name)
	if !ok {
		return nil, false
	}
	n := t.table[t.slot(dir, ref)]
	if n == 0 {
		return nil, false
	}
	return t.nodes.at(n - 1), true
}

// put gives inode the name in dir, by the rules of extraction (see the package
// comment), and returns the inode that has the name afterwards: the old one
// where a directory is declared again, or a whiteout loses to a real entry.
func (t *tree) put(dir uint32, name []byte, inode uint32) (uint32, error) {
	ref, err := t.strs.add(name)
	if err != nil {
		return 0, err
	}
	s := t.slot(dir, ref)
	if t.table[s] == 0 {
		parent := t.inodes.at(dir)
		i := t.nodes.add(node{dir: dir, inode: inode, name: ref, next: parent.a})
		parent.a = i + 1
		t.table[s] = i + 1
		n := t.nodes.at(i)
		n.hidden = t.inodes.at(inode).flags&inodeWhiteout != 0
		if 4*t.nodes.n > 3*uint32(len(t.table)) {
			t.rehash()
		}
		return inode, nil
	}
	n := t.nodes.at(t.table[s] - 1)
	old, now := t.inodes.at(n.inode), t.inodes.at(inode)
	switch {
	case now.flags&inodeWhiteout != 0:
		n.hidden = true
		if old.flags&inodeWhiteout == 0 {
			if t.isDir(n.inode) {
				old.flags |= inodeOpaque
			}
			return n.inode, nil
		}
	case t.isDir(n.inode) && t.isDir(inode):
		return n.inode, nil
	}
	if n.hidden && t.isDir(inode) {
		now.flags |= inodeOpaque
	}
	n.inode = inode
	t.lastOK = false // it may have been a directory of lastPath
	return inode, nil
}

func (t *tree) rehash() {
	old := t.table
	t.table = make([]uint32, 2*len(old))
	for _, n := range old {
		if n != 0 {
			at := t.nodes.at(n - 1)
			t.table[t.slot(at.dir, at.name)] = n
		}
	}
}

// mkdir makes a directory with default attributes in dir; name may be a
// whiteout's so far.
func (t *tree) mkdir(dir uint32, name []byte) (uint32, error) {
	depth := t.inodes.at(dir).b + 1
	if depth > maxDepth {
		return 0, limitf("directories nested deeper than %d", maxDepth)
	}
	inode := t.inodes.add(protoInode{mode: unix.S_IFDIR | 0o755, b: depth, parent: dir})
	return t.put(dir, name, inode)
}

// parents returns the directory in which an entry's base name lies, and makes
// the ones that are missing.
func (t *tree) parents(path [][]byte) (uint32, error) {
	key := t.scratch[:0]
	for _, c := range path {
		key = append(append(key, c...), '/')
	}
	t.scratch = key
	if t.lastOK && bytes.Equal(key, t.lastPath) {
		return t.lastDir, nil
	}
	dir, err := t.walk(path, true)
	if err != nil {
		return 0, err
	}
	t.lastPath, t.lastDir, t.lastOK = append(t.lastPath[:0], key...), dir, true
	return dir, nil
}

// walk follows path from the root, through symlinks of the layer, never above
// the root. Missing directories are made if create is set, else ErrNotExist.
func (t *tree) walk(path [][]byte, create bool) (uint32, error) {
	dir, followed := uint32(Root), 0
	todo := path
	for len(todo) > 0 {
		if t.steps++; t.steps > maxSteps {
			return 0, limitf("paths need more than %d steps", maxSteps)
		}
		name := todo[0]
		todo = todo[1:]
		switch string(name) {
		case "", ".":
			continue
		case "..":
			dir = t.inodes.at(dir).parent
			continue
		}
		next, target, err := t.step(dir, name, create)
		if err != nil {
			return 0, err
		}
		if target == nil {
			dir = next
			continue
		}
		if followed++; followed > maxFollowed {
			return 0, fmt.Errorf("%.64q: %w", name, errLoop)
		}
		if target[0] == '/' {
			dir = Root
		}
		todo = slices.Concat(bytes.Split(target, []byte{'/'}), todo)
		if len(todo) > maxTodo {
			return 0, limitf("symlinks make a path of %d components", len(todo))
		}
		t.steps += int64(len(todo))
	}
	return dir, nil
}

// step goes from dir to the directory called name, or returns the target of the
// symlink that is there instead.
func (t *tree) step(dir uint32, name []byte, create bool) (next uint32, target []byte, err error) {
	if len(name) > maxName { // of a symlink's target
		return 0, nil, limitf("name of %d bytes", len(name))
	}
	n, ok := t.find(dir, name)
	if !ok || t.inodes.at(n.inode).flags&inodeWhiteout != 0 {
		if !create {
			return 0, nil, ErrNotExist
		}
		next, err = t.mkdir(dir, name)
		return next, nil, err
	}
	at := t.inodes.at(n.inode)
	switch at.mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return n.inode, nil, nil
	case unix.S_IFLNK:
		return 0, t.strs.get(strRef{at.a, at.b}), nil
	}
	return 0, nil, fmt.Errorf("%.64q: %w", name, errNotDir)
}

// lookup returns the inode called path, whose last component is not followed.
func (t *tree) lookup(path [][]byte) (uint32, error) {
	if len(path) == 0 {
		return Root, nil
	}
	dir, err := t.walk(path[:len(path)-1], false)
	if err != nil {
		return 0, err
	}
	n, ok := t.find(dir, path[len(path)-1])
	if !ok {
		return 0, ErrNotExist
	}
	return n.inode, nil
}

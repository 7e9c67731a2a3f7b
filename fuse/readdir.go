package fuse

import (
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// An entry's offset in a directory is its place in it, counted from 1, whatever
// was read before: "." is 1, ".." is 2, child n is n+3. A reader may go back to
// any of them at any time.
const dots = 2

// lister adds the entries of one directory to an answer.
type lister struct {
	list *gofuse.DirEntryList
	plus bool // with attributes
	d    *Dir
	hold hold
}

// ReadDir answers READDIR.
func (m *mount) ReadDir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	m.begin(opReaddir)
	return m.readdir(cancel, in, out, false)
}

// ReadDirPlus answers READDIRPLUS: entries with their attributes, which spare a
// LOOKUP each.
func (m *mount) ReadDirPlus(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList) gofuse.Status {
	m.begin(opReaddirplus)
	return m.readdir(cancel, in, out, true)
}

func (m *mount) readdir(cancel <-chan struct{}, in *gofuse.ReadIn, out *gofuse.DirEntryList, plus bool) gofuse.Status {
	if isRoot(in.NodeId) {
		l := lister{list: out, plus: plus}
		l.addDots(in.Offset, rootIno, rootIno)
		return gofuse.OK
	}
	d, index := m.treeNode(in.NodeId)
	if d == nil {
		return errno(errNoNode)
	}
	r := newRequest(d, cancel, in.Pid)
	defer r.done()
	l := lister{list: out, plus: plus, d: d}
	if err := l.readdir(r, index, in.Offset); err != nil {
		return d.fail("readdir", index, err)
	}
	return gofuse.OK
}

func (l *lister) readdir(r *request, index uint32, off uint64) error {
	switch index {
	case stateDirIndex:
		return l.stateDir(off)
	case stateFileIndex:
		return errNotDir
	}
	h, err := l.d.acquire(r)
	if err != nil {
		return err
	}
	defer h.content.Release()
	l.hold = h
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return err
	}
	if in.Mode&unix.S_IFMT != unix.S_IFDIR {
		return errNotDir
	}
	parent, err := l.parentIno(index)
	if err != nil {
		return err
	}
	if !l.addDots(off, l.d.ino(h.inodes, index), parent) {
		return nil
	}
	return l.children(index, max(off, dots)-dots, uint64(in.Entries))
}

// children adds the entries from the n-th on, as far as there is room.
func (l *lister) children(dir uint32, n, count uint64) error {
	for ; n < count; n++ {
		name, index, err := l.hold.toc.Entry(dir, uint32(n))
		if err != nil {
			return err
		}
		var in estargz.Inode
		if err := l.hold.inode(index, &in); err != nil {
			return err
		}
		if !l.add(name, index, &in, n+dots+1) {
			return nil
		}
	}
	return nil
}

// add reports whether the entry found room.
func (l *lister) add(name []byte, index uint32, in *estargz.Inode, off uint64) bool {
	ino := l.d.ino(l.hold.inodes, index)
	e := gofuse.DirEntry{Name: stringOf(name), Mode: in.Mode, Ino: ino, Off: off}
	if !l.plus {
		return l.list.AddDirEntry(e)
	}
	out := l.list.AddDirLookupEntry(e)
	if out == nil {
		return false
	}
	out.NodeId = nodeID(l.d.number, index)
	out.EntryValid, out.AttrValid = forever, forever
	fillAttr(&out.Attr, in, ino)
	return true
}

// parentIno is the number that ".." has in directory index.
func (l *lister) parentIno(index uint32) (uint64, error) {
	if index == estargz.Root {
		return rootIno, nil
	}
	parent, err := l.hold.toc.Parent(index)
	return l.d.ino(l.hold.inodes, parent), err
}

// addDots adds "." and ".." when off is before them. With READDIRPLUS neither has
// a node, which tells the kernel that it knows them.
func (l *lister) addDots(off, ino, parent uint64) bool {
	for ; off < dots; off++ {
		e := gofuse.DirEntry{Name: ".", Mode: unix.S_IFDIR, Ino: ino, Off: off + 1}
		if off == 1 {
			e.Name, e.Ino = "..", parent
		}
		if !l.addBare(e) {
			return false
		}
	}
	return true
}

// addBare adds an entry without a node behind it.
func (l *lister) addBare(e gofuse.DirEntry) bool {
	if l.plus {
		return l.list.AddDirLookupEntry(e) != nil
	}
	return l.list.AddDirEntry(e)
}

// stateDir lists the hidden directory to who knows its name.
func (l *lister) stateDir(off uint64) error {
	c := l.d.content.Load()
	if c == nil {
		return errRemoved
	}
	if l.addDots(off, l.d.ownInos+1, l.d.ownInos) && off <= dots {
		l.addBare(gofuse.DirEntry{
			Name: stateFileName(c.Status()), Mode: unix.S_IFREG, Ino: l.d.ownInos + 2, Off: dots + 1,
		})
	}
	return nil
}

package fuse

import (
	"errors"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

const (
	// forever is an entry's and an attribute's validity in seconds: the kernel
	// cuts it to the longest time it can count.
	forever = 1 << 40

	// blockSize is what stat and statfs say; blocks are counted as ext4 does, in
	// whole blocks of this size.
	blockSize = 4096
)

// Lookup answers LOOKUP. Misses inside a layer are entries too, valid for ever.
func (m *mount) Lookup(cancel <-chan struct{}, h *gofuse.InHeader, name string, out *gofuse.EntryOut) gofuse.Status {
	m.begin(opLookup)
	if isRoot(h.NodeId) {
		return m.lookupLayer(name, out)
	}
	d, dir := m.treeNode(h.NodeId)
	if d == nil {
		return errno(errNoNode)
	}
	r := newRequest(d, cancel, h.Pid)
	defer r.done()
	if err := d.lookup(r, dir, name, out); err != nil {
		return d.fail("lookup", dir, err)
	}
	return gofuse.OK
}

// lookupLayer finds a layer's directory in the mount's root. It never waits (see
// the package comment), and a name that is not there is asked for again each
// time: it may be the next layer's.
func (m *mount) lookupLayer(name string, out *gofuse.EntryOut) gofuse.Status {
	d, gone := m.named(name)
	if gone {
		return errno(errRemoved)
	}
	if d == nil {
		return gofuse.ENOENT
	}
	out.NodeId, out.EntryValid = nodeID(d.number, estargz.Root), forever
	if d.image != nil {
		out.AttrValid = forever
		d.dataAttr(&out.Attr)
		return gofuse.OK
	}
	if root := d.root.Load(); root != nil {
		out.AttrValid = forever
		fillAttr(&out.Attr, root, d.ownInos)
		return gofuse.OK
	}
	// The layer's TOC is not known yet: what overlayfs needs to see a directory,
	// asked for again at once.
	out.Attr = gofuse.Attr{
		Ino: d.ownInos, Mode: unix.S_IFDIR | 0o755, Nlink: 2,
		Size: blockSize, Blocks: blockSize / 512, Blksize: blockSize,
	}
	return gofuse.OK
}

func (d *Dir) lookup(r *request, dir uint32, name string, out *gofuse.EntryOut) error {
	if dir == stateDirIndex || dir == stateFileIndex {
		return d.lookupStateFile(dir, name, out)
	}
	hidden := dir == estargz.Root && name == stateDirName
	h, err := d.acquire(r)
	if err != nil {
		return err
	}
	defer h.content.Release()
	if dir >= h.inodes.count {
		return errNoNode
	}
	index, err := h.toc.Lookup(dir, bytesOf(name))
	if errors.Is(err, estargz.ErrNotExist) {
		if hidden {
			d.stateDirEntry(out)
			return nil
		}
		out.NodeId, out.EntryValid = 0, forever
		return nil
	}
	if err != nil {
		return err
	}
	return d.entry(h, index, out)
}

// entry describes inode index as an answer to LOOKUP or READDIRPLUS.
func (d *Dir) entry(h hold, index uint32, out *gofuse.EntryOut) error {
	var in estargz.Inode
	if err := h.toc.Inode(index, &in); err != nil {
		return err
	}
	out.NodeId = nodeID(d.number, index)
	out.EntryValid, out.AttrValid = forever, forever
	fillAttr(&out.Attr, &in, d.ino(h.inodes, index))
	return nil
}

func (d *Dir) stateDirEntry(out *gofuse.EntryOut) {
	out.NodeId = nodeID(d.number, stateDirIndex)
	out.EntryValid, out.AttrValid = forever, forever
	d.stateDirAttr(&out.Attr)
}

func (d *Dir) lookupStateFile(dir uint32, name string, out *gofuse.EntryOut) error {
	if dir == stateFileIndex {
		return errNotDir
	}
	c := d.content.Load()
	if c == nil {
		return errRemoved
	}
	out.EntryValid = forever
	if name != stateFileName(c.Status()) {
		return nil
	}
	out.NodeId = nodeID(d.number, stateFileIndex)
	d.stateFileAttr(c, &out.Attr)
	return nil
}

// GetAttr answers GETATTR.
func (m *mount) GetAttr(cancel <-chan struct{}, in *gofuse.GetAttrIn, out *gofuse.AttrOut) gofuse.Status {
	m.begin(opGetattr)
	if isRoot(in.NodeId) {
		out.AttrValid = forever
		out.Attr = gofuse.Attr{
			Ino: rootIno, Mode: unix.S_IFDIR | 0o755, Nlink: 2,
			Size: blockSize, Blocks: blockSize / 512, Blksize: blockSize,
		}
		return gofuse.OK
	}
	d, index := m.node(in.NodeId)
	if d == nil {
		return errno(errNoNode)
	}
	if d.image != nil {
		if index != estargz.Root {
			return errno(errNoNode)
		}
		out.AttrValid = forever
		d.dataAttr(&out.Attr)
		return gofuse.OK
	}
	r := newRequest(d, cancel, in.Pid)
	defer r.done()
	if err := d.getattr(r, index, out); err != nil {
		return d.fail("getattr", index, err)
	}
	return gofuse.OK
}

func (d *Dir) getattr(r *request, index uint32, out *gofuse.AttrOut) error {
	switch index {
	case stateDirIndex:
		out.AttrValid = forever
		d.stateDirAttr(&out.Attr)
		return nil
	case stateFileIndex:
		c := d.content.Load()
		if c == nil {
			return errRemoved
		}
		d.stateFileAttr(c, &out.Attr)
		return nil
	}
	h, err := d.acquire(r)
	if err != nil {
		return err
	}
	defer h.content.Release()
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return err
	}
	out.AttrValid = forever
	fillAttr(&out.Attr, &in, d.ino(h.inodes, index))
	return nil
}

// inode reads an inode that the kernel names: one that is not there is stale.
func (h hold) inode(index uint32, in *estargz.Inode) error {
	if index >= h.inodes.count {
		return errNoNode
	}
	return h.toc.Inode(index, in)
}

// fillAttr says what stat will say.
func fillAttr(out *gofuse.Attr, in *estargz.Inode, ino uint64) {
	*out = gofuse.Attr{
		Ino:   ino,
		Size:  uint64(in.Size),
		Mode:  in.Mode,
		Nlink: max(in.Nlink, 1),
		Owner: gofuse.Owner{Uid: in.UID, Gid: in.GID},
		Rdev:  in.Rdev,
		// A layer knows one time. Seconds before 1970 are negative in 64 bits
		// on both sides.
		Atime: uint64(in.Mtime), Atimensec: in.MtimeNsec,
		Mtime: uint64(in.Mtime), Mtimensec: in.MtimeNsec,
		Ctime: uint64(in.Mtime), Ctimensec: in.MtimeNsec,
		Blksize: blockSize,
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		out.Blocks = (out.Size + blockSize - 1) / blockSize * (blockSize / 512)
	case unix.S_IFDIR:
		out.Size, out.Blocks = blockSize, blockSize/512
	}
}

// Readlink answers READLINK. The target is a copy: go-fuse writes it out after
// the hold on the mapping has ended. The kernel asks once per symlink.
func (m *mount) Readlink(cancel <-chan struct{}, h *gofuse.InHeader) ([]byte, gofuse.Status) {
	m.begin(opReadlink)
	d, index := m.treeNode(h.NodeId)
	if d == nil {
		return nil, errno(errNoNode)
	}
	r := newRequest(d, cancel, h.Pid)
	defer r.done()
	target, err := d.readlink(r, index)
	if err != nil {
		return nil, d.fail("readlink", index, err)
	}
	return target, gofuse.OK
}

func (d *Dir) readlink(r *request, index uint32) ([]byte, error) {
	h, err := d.acquire(r)
	if err != nil {
		return nil, err
	}
	defer h.content.Release()
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return nil, err
	}
	if in.Mode&unix.S_IFMT != unix.S_IFLNK {
		return nil, errNotFile
	}
	target, err := h.toc.Symlink(index)
	return append([]byte(nil), target...), err
}

// StatFs answers STATFS: no space of its own, names as long as Linux has them.
func (m *mount) StatFs(_ <-chan struct{}, _ *gofuse.InHeader, out *gofuse.StatfsOut) gofuse.Status {
	m.begin(opStatfs)
	out.Bsize, out.Frsize, out.NameLen = blockSize, blockSize, 255
	return gofuse.OK
}

// Forget has nothing to do: node ids are computed.
func (m *mount) Forget(_, _ uint64) { m.begin(opForget) }

// bytesOf and stringOf see the same memory in the other type: look-ups and
// listings make no copies of names.
func bytesOf(s string) []byte  { return unsafe.Slice(unsafe.StringData(s), len(s)) }
func stringOf(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

package estargz

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"
)

// Inode is one inode in the kernel's terms.
type Inode struct {
	Mode      uint32 // S_IFMT | permissions | suid, sgid, sticky
	UID, GID  uint32
	Nlink     uint32
	Rdev      uint32 // kernel's encoding (new_encode_dev), as FUSE wants it
	Size      int64  // bytes of a regular file, length of a symlink's target
	Mtime     int64  // seconds
	MtimeNsec uint32
	Opaque    bool   // directory that hides what lies below it
	Xattrs    bool   // has extended attributes (Opaque not counted)
	Entries   uint32 // children of a directory
}

// inodeRecord is one record of the inode table.
type inodeRecord []byte

func (r inodeRecord) u32(off int) uint32 { return binary.LittleEndian.Uint32(r[off:]) }
func (r inodeRecord) u64(off int) uint64 { return binary.LittleEndian.Uint64(r[off:]) }

func (r inodeRecord) kind() uint32  { return r.u32(0) & unix.S_IFMT }
func (r inodeRecord) first() uint32 { return r.u32(40) }
func (r inodeRecord) count() uint32 { return r.u32(44) }

func (t *TOC) inode(i uint32) (inodeRecord, error) {
	r, ok := records(t.inodeTable, inodeSize, i, 1)
	if !ok {
		return nil, corruptf("inode %d of %d", i, t.inodes)
	}
	return r, nil
}

// Inode fills out from inode i. A whiteout is a character device 0:0.
func (t *TOC) Inode(i uint32, out *Inode) error {
	r, err := t.inode(i)
	if err != nil {
		return err
	}
	*out = Inode{
		Mode: r.u32(0), UID: r.u32(4), GID: r.u32(8), Nlink: r.u32(12), Rdev: r.u32(16),
		MtimeNsec: r.u32(20), Mtime: int64(r.u64(24)), Size: int64(r.u64(32)),
		Opaque: r.u32(56)&inodeOpaque != 0, Xattrs: r.u32(52) > 0,
	}
	if out.Size < 0 || out.MtimeNsec >= 1e9 {
		return corruptf("inode %d: size %d, %d ns", i, out.Size, out.MtimeNsec)
	}
	if r.kind() == unix.S_IFDIR {
		out.Entries = r.count()
	}
	return nil
}

// Parent returns the directory that inode i lies in, the one of its first name
// when it has several; the root's is itself.
func (t *TOC) Parent(i uint32) (uint32, error) {
	r, err := t.inode(i)
	if err != nil {
		return 0, err
	}
	p := r.u32(60)
	if p >= i && i != Root {
		return 0, corruptf("inode %d: parent %d", i, p)
	}
	return p, nil
}

// entries returns the records of directory dir's entries, nil when it is not a
// directory.
func (t *TOC) entries(dir uint32) ([]byte, error) {
	r, err := t.inode(dir)
	if err != nil {
		return nil, err
	}
	if r.kind() != unix.S_IFDIR {
		return nil, nil
	}
	list, ok := records(t.direntTable, direntSize, r.first(), r.count())
	if !ok {
		return nil, corruptf("inode %d: entries [%d, +%d) of %d", dir, r.first(), r.count(), t.dirents)
	}
	return list, nil
}

// entryName returns the name in the n-th of list's records.
func (t *TOC) entryName(list []byte, n int) ([]byte, error) {
	r := list[n*direntSize:][:direntSize]
	off, size := binary.LittleEndian.Uint32(r), binary.LittleEndian.Uint32(r[4:])
	name, ok := t.str(off, size)
	if !ok || size == 0 || size > maxName {
		return nil, corruptf("name at [%d, +%d) of %d", off, size, len(t.stringTable))
	}
	return name, nil
}

// entryInode returns the inode in the n-th of list's records, an entry of dir.
func (t *TOC) entryInode(dir uint32, list []byte, n int) (uint32, error) {
	i := binary.LittleEndian.Uint32(list[n*direntSize+8:])
	r, err := t.inode(i)
	if err != nil {
		return 0, err
	}
	if i <= dir && r.kind() == unix.S_IFDIR {
		return 0, corruptf("directory %d in directory %d", i, dir)
	}
	return i, nil
}

// Lookup finds name in directory dir: ErrNotExist when there is none, or when
// dir is not a directory. It does not allocate.
func (t *TOC) Lookup(dir uint32, name []byte) (uint32, error) {
	list, err := t.entries(dir)
	if err != nil {
		return 0, err
	}
	lo, hi := 0, len(list)/direntSize
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		s, err := t.entryName(list, mid)
		if err != nil {
			return 0, err
		}
		switch c := bytes.Compare(s, name); {
		case c == 0:
			return t.entryInode(dir, list, mid)
		case c < 0:
			lo = mid + 1
		default:
			hi = mid
		}
	}
	return 0, ErrNotExist
}

// Entry returns the n-th child of directory dir, in the order of names (n is
// below Inode.Entries, else ErrNotExist). name points into the mapping: copy it
// to keep it.
func (t *TOC) Entry(dir uint32, n uint32) (name []byte, inode uint32, err error) {
	list, err := t.entries(dir)
	if err != nil {
		return nil, 0, err
	}
	if int64(n) >= int64(len(list)/direntSize) {
		return nil, 0, ErrNotExist
	}
	if name, err = t.entryName(list, int(n)); err != nil {
		return nil, 0, err
	}
	inode, err = t.entryInode(dir, list, int(n))
	return name, inode, err
}

// Symlink returns the target of a symlink, ErrNotExist for another inode; it
// points into the mapping.
func (t *TOC) Symlink(i uint32) ([]byte, error) {
	r, err := t.inode(i)
	if err != nil {
		return nil, err
	}
	if r.kind() != unix.S_IFLNK {
		return nil, ErrNotExist
	}
	s, ok := t.str(r.first(), r.count())
	if !ok || len(s) == 0 || len(s) > maxSymlink {
		return nil, corruptf("inode %d: symlink at [%d, +%d) of %d", i, r.first(), r.count(), len(t.stringTable))
	}
	return s, nil
}

// Xattr returns one extended attribute, ErrNotExist without it; the bytes point
// into the mapping. trusted.* and user.overlay.* are never there.
func (t *TOC) Xattr(i uint32, name []byte) ([]byte, error) {
	list, err := t.xattrList(i)
	if err != nil {
		return nil, err
	}
	for ; len(list) > 0; list = list[xattrSize:] {
		n, v, err := t.xattr(i, list)
		if err != nil {
			return nil, err
		}
		if bytes.Equal(n, name) {
			return v, nil
		}
	}
	return nil, ErrNotExist
}

// Xattrs calls f with each attribute of inode i, by name, until f returns false.
func (t *TOC) Xattrs(i uint32, f func(name, value []byte) bool) error {
	list, err := t.xattrList(i)
	if err != nil {
		return err
	}
	for ; len(list) > 0; list = list[xattrSize:] {
		n, v, err := t.xattr(i, list)
		if err != nil {
			return err
		}
		if !f(n, v) {
			break
		}
	}
	return nil
}

func (t *TOC) xattrList(i uint32) ([]byte, error) {
	r, err := t.inode(i)
	if err != nil {
		return nil, err
	}
	list, ok := records(t.xattrTable, xattrSize, r.u32(48), r.u32(52))
	if !ok {
		return nil, corruptf("inode %d: xattrs [%d, +%d) of %d", i, r.u32(48), r.u32(52), t.xattrs)
	}
	return list, nil
}

// xattr returns the attribute in the first record of list, of inode i.
func (t *TOC) xattr(i uint32, list []byte) (name, value []byte, err error) {
	le := binary.LittleEndian
	name, ok := t.str(le.Uint32(list), le.Uint32(list[4:]))
	value, ok2 := t.str(le.Uint32(list[8:]), le.Uint32(list[12:]))
	if !ok || !ok2 || len(name) == 0 || len(name) > maxXattrName || len(value) > maxXattr || isHiddenXattr(name) {
		return nil, nil, corruptf("inode %d: xattr outside the string table, or not to be served", i)
	}
	return name, value, nil
}

// Path returns a path of inode i from the layer's root, for messages.
func (t *TOC) Path(i uint32) (string, error) {
	var parts [][]byte
	for i != Root {
		dir, err := t.Parent(i)
		if err != nil {
			return "", err
		}
		name, err := t.nameOf(dir, i)
		if err != nil {
			return "", err
		}
		parts = append([][]byte{name}, parts...)
		i = dir
	}
	return "/" + string(bytes.Join(parts, []byte{'/'})), nil
}

func (t *TOC) nameOf(dir, i uint32) ([]byte, error) {
	list, err := t.entries(dir)
	if err != nil {
		return nil, err
	}
	for n := range len(list) / direntSize {
		if binary.LittleEndian.Uint32(list[n*direntSize+8:]) == i {
			return t.entryName(list, n)
		}
	}
	return nil, fmt.Errorf("inode %d in directory %d: %w", i, dir, ErrNotExist)
}

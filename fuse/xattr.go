package fuse

import (
	"errors"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazykit/lazykit/estargz"
)

// What overlayfs asks of a lower directory to learn that it hides what lies
// below: the user.* name in overlays mounted with userxattr (rootless).
const (
	trustedOpaque = "trusted.overlay.opaque"
	userOpaque    = "user.overlay.opaque"
	opaqueValue   = "y"
)

// Opaque is the name of the attribute of opaque directories, which has the value "y".
func Opaque(userXattr bool) string {
	if userXattr {
		return userOpaque
	}
	return trustedOpaque
}

// GetXAttr answers GETXATTR. An empty dest asks for the size.
func (m *mount) GetXAttr(cancel <-chan struct{}, h *gofuse.InHeader, name string, dest []byte) (uint32, gofuse.Status) {
	m.begin(opGetxattr)
	if m.plain {
		return 0, gofuse.ENOSYS
	}
	d, index := m.treeNode(h.NodeId)
	switch {
	case isRoot(h.NodeId):
		return 0, errno(errNoAttr)
	case d == nil:
		return 0, errno(errNoNode)
	case index == stateDirIndex, index == stateFileIndex:
		return 0, errno(errNoAttr)
	}
	r := newRequest(d, cancel, h.Pid)
	defer r.done()
	n, err := d.getxattr(r, index, name, dest)
	if err != nil {
		return uint32(n), d.fail("getxattr", index, err)
	}
	return uint32(n), gofuse.OK
}

func (d *Dir) getxattr(r *request, index uint32, name string, dest []byte) (int, error) {
	h, err := d.acquire(r)
	if err != nil {
		return 0, err
	}
	defer h.content.Release()
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return 0, err
	}
	if in.Opaque && name == d.m.opaque {
		return give(dest, bytesOf(opaqueValue))
	}
	if !in.Xattrs {
		return 0, errNoAttr
	}
	value, err := h.toc.Xattr(index, bytesOf(name))
	if errors.Is(err, estargz.ErrNotExist) {
		return 0, errNoAttr
	}
	if err != nil {
		return 0, err
	}
	return give(dest, value)
}

// give copies a value for who brought room for it, and tells its size otherwise.
func give(dest, value []byte) (int, error) {
	if len(dest) != 0 && len(dest) < len(value) {
		return len(value), errRange
	}
	copy(dest, value)
	return len(value), nil
}

// ListXAttr answers LISTXATTR: names, each with a zero byte behind it.
func (m *mount) ListXAttr(cancel <-chan struct{}, h *gofuse.InHeader, dest []byte) (uint32, gofuse.Status) {
	m.begin(opListxattr)
	d, index := m.treeNode(h.NodeId)
	switch {
	case isRoot(h.NodeId):
		return 0, gofuse.OK
	case d == nil:
		return 0, errno(errNoNode)
	case index == stateDirIndex, index == stateFileIndex:
		return 0, gofuse.OK
	}
	r := newRequest(d, cancel, h.Pid)
	defer r.done()
	n, err := d.listxattr(r, index, dest)
	if err != nil {
		return uint32(n), d.fail("listxattr", index, err)
	}
	return uint32(n), gofuse.OK
}

func (d *Dir) listxattr(r *request, index uint32, dest []byte) (int, error) {
	h, err := d.acquire(r)
	if err != nil {
		return 0, err
	}
	defer h.content.Release()
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return 0, err
	}
	l := nameList{dest: dest}
	if in.Opaque {
		l.add(bytesOf(d.m.opaque))
	}
	if in.Xattrs {
		if err := h.toc.Xattrs(index, func(name, _ []byte) bool {
			l.add(name)
			return true
		}); err != nil {
			return 0, err
		}
	}
	if len(dest) != 0 && l.size > len(dest) {
		return l.size, errRange
	}
	return l.size, nil
}

// nameList fills dest with names as long as they fit and counts on.
type nameList struct {
	dest []byte
	size int
}

func (l *nameList) add(name []byte) {
	if end := l.size + len(name); end < len(l.dest) {
		copy(l.dest[l.size:], name)
		l.dest[end] = 0
	}
	l.size += len(name) + 1
}

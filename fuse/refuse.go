package fuse

import (
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// Zero-message opens: after one ENOSYS the kernel opens files and directories by
// itself, keeps their pages and listings, and sends neither RELEASE nor FLUSH
// (FUSE_NO_OPEN_SUPPORT and FUSE_NO_OPENDIR_SUPPORT of linux/fuse.h).

func (m *mount) Open(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	m.begin(opOpen)
	return gofuse.ENOSYS
}

func (m *mount) OpenDir(<-chan struct{}, *gofuse.OpenIn, *gofuse.OpenOut) gofuse.Status {
	m.begin(opOpendir)
	return gofuse.ENOSYS
}

func (m *mount) Release(<-chan struct{}, *gofuse.ReleaseIn) { m.begin(opOther) }
func (m *mount) ReleaseDir(*gofuse.ReleaseIn)               { m.begin(opOther) }

// unsupported are calls for which ENOSYS makes the kernel do without, for good:
// it checks permissions by itself (default_permissions), finds no holes in files,
// syncs nothing.
func (m *mount) unsupported() gofuse.Status {
	m.begin(opOther)
	return gofuse.ENOSYS
}

func (m *mount) Flush(<-chan struct{}, *gofuse.FlushIn) gofuse.Status    { return m.unsupported() }
func (m *mount) Fsync(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status    { return m.unsupported() }
func (m *mount) FsyncDir(<-chan struct{}, *gofuse.FsyncIn) gofuse.Status { return m.unsupported() }
func (m *mount) Access(<-chan struct{}, *gofuse.AccessIn) gofuse.Status  { return m.unsupported() }
func (m *mount) GetLk(<-chan struct{}, *gofuse.LkIn, *gofuse.LkOut) gofuse.Status {
	return m.unsupported()
}
func (m *mount) SetLk(<-chan struct{}, *gofuse.LkIn) gofuse.Status  { return m.unsupported() }
func (m *mount) SetLkw(<-chan struct{}, *gofuse.LkIn) gofuse.Status { return m.unsupported() }
func (m *mount) Lseek(<-chan struct{}, *gofuse.LseekIn, *gofuse.LseekOut) gofuse.Status {
	return m.unsupported()
}
func (m *mount) Statx(<-chan struct{}, *gofuse.StatxIn, *gofuse.StatxOut) gofuse.Status {
	return m.unsupported()
}

// Ioctl is ENOTTY, as of a file system without any: ENOSYS would reach the caller.
func (m *mount) Ioctl(<-chan struct{}, *gofuse.IoctlIn, []byte, *gofuse.IoctlOut, []byte) gofuse.Status {
	m.begin(opOther)
	return gofuse.Status(syscall.ENOTTY)
}

// readOnly answers what would change the file system. The mount's MS_RDONLY
// keeps the kernel from asking.
func (m *mount) readOnly() gofuse.Status {
	m.begin(opOther)
	return gofuse.EROFS
}

func (m *mount) SetAttr(<-chan struct{}, *gofuse.SetAttrIn, *gofuse.AttrOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Mknod(<-chan struct{}, *gofuse.MknodIn, string, *gofuse.EntryOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Mkdir(<-chan struct{}, *gofuse.MkdirIn, string, *gofuse.EntryOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Unlink(<-chan struct{}, *gofuse.InHeader, string) gofuse.Status { return m.readOnly() }
func (m *mount) Rmdir(<-chan struct{}, *gofuse.InHeader, string) gofuse.Status  { return m.readOnly() }
func (m *mount) Rename(<-chan struct{}, *gofuse.RenameIn, string, string) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Link(<-chan struct{}, *gofuse.LinkIn, string, *gofuse.EntryOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Symlink(<-chan struct{}, *gofuse.InHeader, string, string, *gofuse.EntryOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) SetXAttr(<-chan struct{}, *gofuse.SetXAttrIn, string, []byte) gofuse.Status {
	return m.readOnly()
}
func (m *mount) RemoveXAttr(<-chan struct{}, *gofuse.InHeader, string) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Create(<-chan struct{}, *gofuse.CreateIn, string, *gofuse.CreateOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Tmpfile(<-chan struct{}, *gofuse.CreateIn, *gofuse.CreateOut) gofuse.Status {
	return m.readOnly()
}
func (m *mount) Write(<-chan struct{}, *gofuse.WriteIn, []byte) (uint32, gofuse.Status) {
	return 0, m.readOnly()
}
func (m *mount) Writev(<-chan struct{}, *gofuse.WriteIn, [][]byte) (uint32, gofuse.Status) {
	return 0, m.readOnly()
}
func (m *mount) CopyFileRange(<-chan struct{}, *gofuse.CopyFileRangeIn) (uint32, gofuse.Status) {
	return 0, m.readOnly()
}
func (m *mount) Fallocate(<-chan struct{}, *gofuse.FallocateIn) gofuse.Status { return m.readOnly() }

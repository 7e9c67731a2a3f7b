package writepoint

import "golang.org/x/sys/unix"

const auditArch = unix.AUDIT_ARCH_X86_64

// machineCalls are those that newer machines do not have.
var machineCalls = map[uintptr]call{
	unix.SYS_OPEN:     {name: "open", fd: -1, paths: []int{0}, flags: 1, grows: true},
	unix.SYS_CREAT:    byPath("creat", true, 0),
	unix.SYS_MKDIR:    byPath("mkdir", true, 0),
	unix.SYS_RMDIR:    byPath("rmdir", false, 0),
	unix.SYS_UNLINK:   byPath("unlink", false, 0),
	unix.SYS_RENAME:   byPath("rename", false, 0, 1),
	unix.SYS_RENAMEAT: at("renameat", false, 1, 3),
	unix.SYS_LINK:     byPath("link", true, 1),
	unix.SYS_SYMLINK:  byPath("symlink", true, 1),
	unix.SYS_MKNOD:    byPath("mknod", true, 0),
	unix.SYS_CHMOD:    byPath("chmod", false, 0),
	unix.SYS_CHOWN:    byPath("chown", false, 0),
	unix.SYS_LCHOWN:   byPath("lchown", false, 0),
}

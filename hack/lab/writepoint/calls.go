package writepoint

import (
	"maps"

	"golang.org/x/sys/unix"
)

// call says where a system call names what it changes.
type call struct {
	name  string
	fd    int   // argument that is a descriptor of the file; -1: none
	paths []int // arguments that are paths; where at is set, the one before is a directory's descriptor
	at    bool
	flags int  // > 0: argument with the flags of an open
	grows bool // may need room on the disk
}

func byFD(name string, fd int, grows bool) call { return call{name: name, fd: fd, grows: grows} }

func byPath(name string, grows bool, paths ...int) call {
	return call{name: name, fd: -1, paths: paths, grows: grows}
}

func at(name string, grows bool, paths ...int) call {
	return call{name: name, fd: -1, paths: paths, at: true, grows: grows}
}

// calls are the write points by their numbers.
var calls = func() map[uintptr]call {
	m := map[uintptr]call{
		unix.SYS_WRITE:           byFD("write", 0, true),
		unix.SYS_WRITEV:          byFD("writev", 0, true),
		unix.SYS_PWRITE64:        byFD("pwrite64", 0, true),
		unix.SYS_PWRITEV:         byFD("pwritev", 0, true),
		unix.SYS_PWRITEV2:        byFD("pwritev2", 0, true),
		unix.SYS_SENDFILE:        byFD("sendfile", 0, true),
		unix.SYS_SPLICE:          byFD("splice", 2, true),
		unix.SYS_COPY_FILE_RANGE: byFD("copy_file_range", 2, true),
		unix.SYS_FALLOCATE:       byFD("fallocate", 0, true),
		unix.SYS_FTRUNCATE:       byFD("ftruncate", 0, false),
		unix.SYS_FSYNC:           byFD("fsync", 0, false),
		unix.SYS_FDATASYNC:       byFD("fdatasync", 0, false),
		unix.SYS_FCHMOD:          byFD("fchmod", 0, false),
		unix.SYS_FCHOWN:          byFD("fchown", 0, false),
		unix.SYS_FSETXATTR:       byFD("fsetxattr", 0, true),
		unix.SYS_TRUNCATE:        byPath("truncate", false, 0),
		unix.SYS_SETXATTR:        byPath("setxattr", true, 0),
		unix.SYS_LSETXATTR:       byPath("lsetxattr", true, 0),
		unix.SYS_MKDIRAT:         at("mkdirat", true, 1),
		unix.SYS_MKNODAT:         at("mknodat", true, 1),
		unix.SYS_SYMLINKAT:       at("symlinkat", true, 2),
		unix.SYS_LINKAT:          at("linkat", true, 3),
		unix.SYS_UNLINKAT:        at("unlinkat", false, 1),
		unix.SYS_RENAMEAT2:       at("renameat2", false, 1, 3),
		unix.SYS_FCHMODAT:        at("fchmodat", false, 1),
		unix.SYS_FCHOWNAT:        at("fchownat", false, 1),
		unix.SYS_UTIMENSAT:       at("utimensat", false, 1),
		unix.SYS_OPENAT:          {name: "openat", fd: -1, paths: []int{1}, at: true, flags: 2, grows: true},
	}
	maps.Copy(m, machineCalls)
	return m
}()

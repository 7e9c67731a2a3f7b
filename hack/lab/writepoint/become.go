package writepoint

import (
	"fmt"
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	envSocket  = "LAZYKIT_WRITEPOINT_SOCKET"
	envProgram = "LAZYKIT_WRITEPOINT_PROGRAM"
)

// Become turns this process into the program that a Watcher has asked for, with
// this process' arguments, and does not return then. In any other process it does
// nothing.
func Become() {
	socket, program := os.Getenv(envSocket), os.Getenv(envProgram)
	if socket == "" {
		return
	}
	err := become(socket, program)
	fmt.Fprintf(os.Stderr, "writepoint: become %s: %v\n", program, err)
	os.Exit(3)
}

func become(socket, program string) error {
	runtime.LockOSThread() // the filter is this thread's, which becomes the program
	os.Unsetenv(envSocket)
	os.Unsetenv(envProgram)
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if err := unix.Connect(s, &unix.SockaddrUnix{Name: socket}); err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	listener, err := filter()
	if err != nil {
		return fmt.Errorf("set the filter: %w", err)
	}
	if err := unix.Sendmsg(s, []byte{0}, unix.UnixRights(listener), nil, 0); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return syscall.Exec(program, append([]string{program}, os.Args[1:]...), os.Environ())
}

// filter makes the kernel ask about the calls of this thread, and of all that it
// will start, and returns where it asks.
func filter() (int, error) {
	prog := program()
	f := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	flags := unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
	fd, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&f)))
	runtime.KeepAlive(prog)
	if errno != 0 {
		return -1, errno
	}
	return int(fd), nil
}

// Offsets in struct seccomp_data; the machines that we run on are little endian.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

// program is the filter: calls of the table are asked about, opens only when they
// may create or cut a file, others go on.
func program() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	ask, allow := stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_USER_NOTIF), stmt(unix.BPF_RET|unix.BPF_K, unix.SECCOMP_RET_ALLOW)
	jump := func(code uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | code | unix.BPF_K, Jt: yes, Jf: no, K: k}
	}
	load := func(off uint32) unix.SockFilter { return stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, off) }
	out := []unix.SockFilter{load(dataArch), jump(unix.BPF_JEQ, auditArch, 1, 0), allow, load(dataNr)}
	for nr, c := range calls {
		if c.flags == 0 {
			out = append(out, jump(unix.BPF_JEQ, uint32(nr), 0, 1), ask)
			continue
		}
		out = append(out, jump(unix.BPF_JEQ, uint32(nr), 0, 4),
			load(dataArgs+8*uint32(c.flags)), jump(unix.BPF_JSET, unix.O_CREAT|unix.O_TRUNC, 0, 1), ask, allow)
	}
	return append(out, allow)
}

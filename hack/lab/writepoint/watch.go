package writepoint

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Point is one write point.
type Point struct {
	N     int    // counted from 1
	Call  string // name of the system call
	Path  string // below the directory
	Grows bool   // it may need room on the disk
}

// String names the point for reports.
func (p Point) String() string { return fmt.Sprintf("#%d %s %s", p.N, p.Call, p.Path) }

// Verdict is what becomes of a write point.
type Verdict struct {
	Kill  bool          // the daemon is killed before the call happens
	Errno syscall.Errno // it fails with this error; 0: it goes on
}

// Watcher is asked about the writes of one daemon and its children. Safe for
// concurrent use.
type Watcher struct {
	dir  string
	conn *net.UnixListener
	done chan struct{} // closed when no process is watched any more, or Close was called
	quit chan struct{}
	stop func()
	err  error // why it ended; valid after done

	mu struct {
		sync.Mutex
		root   string
		pid    int
		n      int
		decide func(Point) Verdict
	}
}

// Watch begins to wait for the process that Env is given to. Until Decide is
// called, everything goes on. Close ends it.
func Watch() (*Watcher, error) {
	dir, err := os.MkdirTemp("", "writepoint-")
	if err != nil {
		return nil, fmt.Errorf("watch writes: %w", err)
	}
	conn, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "s"), Net: "unix"})
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("watch writes: %w", err)
	}
	w := &Watcher{dir: dir, conn: conn, done: make(chan struct{}), quit: make(chan struct{})}
	w.stop = sync.OnceFunc(func() { close(w.quit) })
	go func() {
		defer close(w.done)
		w.err = w.serve()
	}()
	return w, nil
}

// Env makes a process that calls Become the program.
func (w *Watcher) Env(program string) []string {
	return []string{envSocket + "=" + filepath.Join(w.dir, "s"), envProgram + "=" + program}
}

// Decide asks f about each write point of the process pid below root from now on,
// counting from 1; pid 0 is the watched process itself. f is called by one goroutine at a
// time, and must not wait for the daemon. nil lets everything go on, and still counts.
func (w *Watcher) Decide(root string, pid int, f func(Point) Verdict) {
	if f == nil {
		f = func(Point) Verdict { return Verdict{} }
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.root, w.mu.n, w.mu.decide = root, 0, f
	if pid != 0 {
		w.mu.pid = pid
	}
}

// Count is how many write points there were since Decide.
func (w *Watcher) Count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.n
}

// Signal sends the watched process a signal.
func (w *Watcher) Signal(sig syscall.Signal) error {
	w.mu.Lock()
	pid := w.mu.pid
	w.mu.Unlock()
	return unix.Kill(pid, sig)
}

// Close ends the watch. Calls of processes that are still there fail from now on.
func (w *Watcher) Close() error {
	w.stop()
	w.conn.Close()
	<-w.done
	os.RemoveAll(w.dir)
	return w.err
}

func (w *Watcher) serve() error {
	conn, err := w.conn.AcceptUnix()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, pid, err := receive(conn)
	conn.Close()
	if err != nil {
		return fmt.Errorf("watch writes: %w", err)
	}
	defer unix.Close(fd)
	w.mu.Lock()
	if w.mu.pid == 0 {
		w.mu.pid = pid
	}
	w.mu.Unlock()
	for {
		select {
		case <-w.quit:
			return nil
		default:
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(p, 100); err != nil && err != unix.EINTR {
			return fmt.Errorf("watch writes: %w", err)
		} else if n <= 0 {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return nil // nobody is left
		}
		if err := w.answer(fd); err != nil {
			return fmt.Errorf("watch writes: %w", err)
		}
	}
}

// receive takes the descriptor and the pid of the process that connected.
func receive(conn *net.UnixConn) (fd, pid int, err error) {
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	oob := make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(make([]byte, 1), oob)
	if err != nil {
		return 0, 0, err
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(msgs) != 1 {
		return 0, 0, fmt.Errorf("no descriptor came (%w)", err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		return 0, 0, fmt.Errorf("no descriptor came (%w)", err)
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, 0, err
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(s uintptr) { cred, cerr = unix.GetsockoptUcred(int(s), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, cerr); err != nil {
		return 0, 0, err
	}
	return fds[0], int(cred.Pid), nil
}

// struct seccomp_notif and struct seccomp_notif_resp.
type notif struct {
	id    uint64
	pid   uint32 // of the thread
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

type response struct {
	id    uint64
	val   int64
	errno int32
	flags uint32
}

// answer takes one question and answers it.
func (w *Watcher) answer(fd int) error {
	var n notif
	switch errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n)); errno {
	case 0:
	case unix.ENOENT, unix.EINTR: // the process has ended meanwhile
		return nil
	default:
		return errno
	}
	r := response{id: n.id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	v, pid := w.judge(&n)
	if v.Kill {
		return unix.Kill(pid, unix.SIGKILL) // unanswered: the call never happens
	}
	if v.Errno != 0 {
		r.flags, r.errno = 0, -int32(v.Errno)
	}
	if errno := ioctl(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&r)); errno != 0 && errno != unix.ENOENT {
		return errno
	}
	return nil
}

func ioctl(fd int, req uintptr, arg unsafe.Pointer) unix.Errno {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), req, uintptr(arg))
	return errno
}

// judge finds out whether a call is a write point, and asks about it.
func (w *Watcher) judge(n *notif) (Verdict, int) {
	w.mu.Lock()
	root, pid, decide := w.mu.root, w.mu.pid, w.mu.decide
	w.mu.Unlock()
	if decide == nil {
		return Verdict{}, pid
	}
	if _, err := os.Stat(fmt.Sprintf("/proc/%d/task/%d", pid, n.pid)); err != nil {
		return Verdict{}, pid // a child's
	}
	c := calls[uintptr(n.nr)]
	rel, ok := c.below(root, n)
	if !ok {
		return Verdict{}, pid
	}
	w.mu.Lock()
	w.mu.n++
	p := Point{N: w.mu.n, Call: c.name, Path: rel, Grows: c.grows}
	w.mu.Unlock()
	return decide(p), pid
}

// below says whether the call changes something below root, and what.
func (c call) below(root string, n *notif) (string, bool) {
	proc := fmt.Sprintf("/proc/%d/", n.pid)
	if c.fd >= 0 {
		path, err := os.Readlink(fmt.Sprintf("%sfd/%d", proc, int32(n.args[c.fd])))
		if err != nil {
			return "", false
		}
		return within(root, path)
	}
	for _, arg := range c.paths {
		path := readString(proc+"mem", n.args[arg])
		dir := ""
		switch {
		case filepath.IsAbs(path):
		case c.at && int32(n.args[arg-1]) != unix.AT_FDCWD:
			dir, _ = os.Readlink(fmt.Sprintf("%sfd/%d", proc, int32(n.args[arg-1])))
		default:
			dir, _ = os.Readlink(proc + "cwd")
		}
		if rel, ok := within(root, filepath.Join(dir, path)); ok {
			return rel, true
		}
	}
	return "", false
}

func within(root, path string) (string, bool) {
	if path == root {
		return ".", true
	}
	return strings.CutPrefix(path, root+"/")
}

// readString reads a C string of another process; "" when it can't.
func readString(mem string, addr uint64) string {
	f, err := os.Open(mem)
	if err != nil {
		return ""
	}
	defer f.Close()
	buf := make([]byte, unix.PathMax)
	n, _ := f.ReadAt(buf, int64(addr)) // may end at the end of a mapping
	s, _, _ := bytes.Cut(buf[:n], []byte{0})
	return string(s)
}

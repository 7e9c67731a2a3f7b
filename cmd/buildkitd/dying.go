package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/worker"
)

// A daemon that is killed while a thread of it waits for an answer from its own FUSE
// mount, as when it looks up names for the hash of a COPY from a lazy base, does not
// end. The kernel waits for the answer to what it has sent, whatever signal comes,
// nobody is left to answer, and the thread that waits keeps the connection open, and
// the lock of the state directory. (From Linux 6.14 on the sysctl
// fs.fuse.default_request_timeout ends it.) So the next daemon ends the connections of
// one that is dying.

// dyingWait is how long a killed daemon may take to end without its connections.
const dyingWait = 10 * time.Second

// endDying ends the FUSE connections below root if the process that has locked path
// was killed, and says whether the lock is free then. It leaves a living one alone.
func endDying(root, path string) bool {
	pid, err := lockedBy(path)
	if err != nil || !isDying(pid) {
		return false
	}
	bklog.L.Warnf("process %d was killed and has not ended: ending the FUSE connections below %s", pid, root)
	if err := worker.EndConnections(root); err != nil {
		bklog.L.WithError(err).Warn("FUSE connections can't be ended")
	}
	for deadline := time.Now().Add(dyingWait); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if now, err := lockedBy(path); err != nil || now != pid {
			return true
		}
	}
	return false
}

// lockedBy returns the process that holds a flock on a file (see proc_locks(5)).
func lockedBy(path string) (pid int, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, err
	}
	key := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	locks, err := os.ReadFile("/proc/locks")
	if err != nil {
		return 0, err
	}
	for lines := bufio.NewScanner(bytes.NewReader(locks)); lines.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF
		f := strings.Fields(lines.Text())
		if len(f) >= 6 && f[1] == "FLOCK" && f[5] == key {
			return strconv.Atoi(f[4])
		}
	}
	return 0, fmt.Errorf("nobody has locked %s", path)
}

// isDying says whether a process has a SIGKILL to obey, or whether only threads of it
// are left (see proc_pid_status(5)).
func isDying(pid int) bool {
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		return false
	}
	for lines := bufio.NewScanner(bytes.NewReader(status)); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		value = strings.TrimSpace(value)
		switch key {
		case "State":
			if strings.HasPrefix(value, "Z") || strings.HasPrefix(value, "X") {
				return true
			}
		case "SigPnd", "ShdPnd":
			pending, err := strconv.ParseUint(value, 16, 64)
			if err == nil && pending&(1<<(unix.SIGKILL-1)) != 0 {
				return true
			}
		}
	}
	return false
}

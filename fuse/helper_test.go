package fuse_test

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// newServer mounts a server for the time of the test.
func newServer(t testing.TB, opts fuse.Options) *fuse.Server {
	t.Helper()
	ft.RequireFUSE(t)
	if opts.Root == "" {
		opts.Root = filepath.Join(t.TempDir(), "fuse")
	}
	s, err := fuse.NewServer(context.Background(), opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, s.Close())
		require.Empty(t, mountsBelow(t, opts.Root))
	})
	return s
}

func add(t testing.TB, s *fuse.Server, c fuse.Content) *fuse.Dir {
	t.Helper()
	d, err := s.Add(c)
	require.NoError(t, err)
	t.Cleanup(d.Remove)
	return d
}

// mountsBelow lists the mount points under dir.
func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	var found []string
	for line := range strings.Lines(string(table)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			found = append(found, f[4])
		}
	}
	return found
}

// messages counts what f makes the kernel send, FORGET aside: that one comes
// whenever the kernel's caches shrink.
func messages(s *fuse.Server, f func()) map[string]uint64 {
	before := s.Requests()
	f()
	sent := map[string]uint64{}
	for name, n := range s.Requests() {
		if n > before[name] && name != "FORGET" {
			sent[name] = n - before[name]
		}
	}
	return sent
}

func stat(t testing.TB, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st), path)
	return st
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// pattern is n bytes that tell their place.
func pattern(n int) string {
	var b bytes.Buffer
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "%07d\n", i)
	}
	return b.String()[:n]
}

// torture has one of everything that a layer can hold; attributes are what sets
// the plain and the xattr mount apart.
func torture(xattrs bool) []ft.Entry {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	entries := []ft.Entry{
		ft.Dir("./", 0o751).Owned(3, 4),
		ft.Dir("bin", 0o755),
		ft.File("bin/su", 0o4755, "suid\n"),
		ft.File("bin/wall", 0o2755, "sgid\n").Owned(0, 5),
		ft.Dir("tmp", 0o1777),
		ft.Dir("root", 0o700),
		ft.File("root/secret", 0o600, "s"),
		ft.File("etc/implicit/parents", 0o644, "p"),
		ft.File("empty", 0o644, ""),
		ft.File("one", 0o644, "1"),
		ft.File("page", 0o644, pattern(4096)),
		ft.File("chunked", 0o644, pattern(300_000)),
		ft.File("no-permissions", 0, "x"),
		ft.File("owned", 0o640, "o").Owned(65534, 100000),
		ft.File("old", 0o644, "").With(func(h *tar.Header) { h.ModTime = time.Unix(-86400*365*20, 0) }),
		ft.File("epoch", 0o644, "").With(func(h *tar.Header) { h.ModTime = time.Unix(0, 0) }),
		ft.File("future", 0o644, "").With(func(h *tar.Header) { h.ModTime = time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC) }),
		ft.Link("link-a", "chunked"),
		ft.Link("bin/link-b", "chunked"),
		ft.Link("link-to-one", "one"),
		ft.Symlink("relative", "bin/su"),
		ft.Symlink("absolute", "/etc/implicit"),
		ft.Symlink("dangling", "../../nowhere"),
		ft.Symlink("long-target", strings.Repeat("t/", 2000)),
		ft.Device("null", 'c', 1, 3),
		ft.Device("loop300", 'b', 7, 300),
		ft.Device("large-minor", 'c', 4095, 1048575),
		ft.Fifo("pipe"),
		ft.Link("pipe-link", "pipe"),
		ft.File("name with spaces\nand a line", 0o644, "n"),
		ft.File("umlaut-\u00fc", 0o644, "n"), // not any bytes: a TOC is JSON
		ft.File(strings.Repeat("l", 255), 0o644, "long"),
		ft.File(strings.Repeat("deep/", 200)+"end", 0o644, "deep"),
		ft.Whiteout("gone"),
		ft.Whiteout("bin/gone-too"),
		ft.Dir("empty-dir", 0o755),
		ft.File("twice", 0o600, "first"),
		ft.File("twice", 0o644, "second"),
	}
	if xattrs {
		entries = append(entries,
			ft.File("bin/ping", 0o755, "ping").Xattr("security.capability", capability),
			ft.File("many", 0o644, "").Xattr("user.a", "1").Xattr("user.b", strings.Repeat("b", 4000)).Xattr("user.empty", ""),
			ft.File("own", 0o644, "").Xattr("trusted.overlay.opaque", "y").Xattr("user.overlay.redirect", "/x").Xattr("trusted.other", "t").Xattr("user.other", "t"),
			ft.Dir("hides", 0o755).Xattr("user.dir", "d"),
			ft.Opaque("hides"),
			ft.File("hides/new", 0o644, "new"),
			ft.Opaque("implicit-opaque"),
		)
	}
	return entries
}

// lines are the paths under dir as find prints them, sorted.
func find(t testing.TB, dir string) []string {
	t.Helper()
	var found []string
	require.NoError(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
		if rel, _ := filepath.Rel(dir, p); rel != "." {
			found = append(found, rel)
		}
		return err
	}))
	slices.Sort(found)
	return found
}

func contains(b []byte, s string) bool { return bytes.Contains(b, []byte(s)) }

// lockedBuffer collects the output of a process.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// as is a command of another user, in dir. Not by way of Cmd.Dir: between fork and
// exec the parent's processor stands still, and the parent is the server that the
// child would wait for.
func as(uid uint32, dir, name string, args ...string) *exec.Cmd {
	cmd := exec.Command("env", append([]string{"-C", dir, name}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

// letIn opens the way to path to other users, whom a test's directory keeps out.
func letIn(t testing.TB, path string) {
	t.Helper()
	for dir := filepath.Dir(path); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			require.ErrorIs(t, err, unix.EROFS) // in the mount, whose root is open
		}
	}
}

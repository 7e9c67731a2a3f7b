package fuse_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// dead is a layer of n files whose registry does not answer: reads wait until
// release is closed or their context ends. waiting counts them. Only files that
// are larger than the read-ahead (128 KiB) are read in the kernel's background,
// whose requests are limited.
type dead struct {
	*ft.Content
	waiting atomic.Int64
	release chan struct{}
}

func deadLayer(t testing.TB, n, size int) *dead {
	var entries []string
	for i := range n { // of zeros, which cost nothing
		entries = append(entries, fmt.Sprintf(`{"name":"f%d","type":"reg","mode":420,"size":%[2]d,"chunkType":"zeros","chunkSize":%[2]d,"digest":"sha256:%064[3]d"}`, i, size, 0))
	}
	toc := `{"version":1,"entries":[` + strings.Join(entries, ",") + `]}`
	d := &dead{Content: ft.Raw(t, nil, toc), release: make(chan struct{})}
	d.Before = func(ctx context.Context, _ uint32, _ int64, _ int) error {
		d.waiting.Add(1)
		defer d.waiting.Add(-1)
		select {
		case <-d.release:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return d
}

// readers starts n processes that read one file of dir each, and waits until all
// of them wait for the registry.
func (d *dead) readers(t testing.TB, dir string, n int) []*exec.Cmd {
	t.Helper()
	var cmds []*exec.Cmd
	for i := range n {
		cmd := exec.Command("cat", filepath.Join(dir, "f"+strconv.Itoa(i)))
		require.NoError(t, cmd.Start())
		cmds = append(cmds, cmd)
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	}
	eventually(t, "readers wait", func() bool { return d.waiting.Load() >= int64(n) })
	return cmds
}

// One dead registry stops nothing but the reads of its own layers.
func TestIsolation(t *testing.T) {
	s := newServer(t, fuse.Options{})
	slow := deadLayer(t, 50, 300_000)
	blocked := add(t, s, slow)
	slow.readers(t, ft.Overlay(t, blocked.Path()), 50)

	alive := add(t, s, wide(t, ""))
	start := time.Now()
	run(t, "tar", "cf", "/dev/zero", "-C", ft.Overlay(t, alive.Path()), ".") // not /dev/null: GNU tar reads nothing then
	took := time.Since(start)
	require.Less(t, took, 5*time.Second)
	t.Logf("2,000 files of another layer beside 50 blocked readers: %s", took)

	// The blocked layer itself still answers all but reads.
	require.EqualValues(t, 300_000, stat(t, blocked.Path()+"/f0").Size)
	require.Len(t, find(t, blocked.Path()), 50)
}

// Close returns in seconds while readers wait and an overlay pins the mount.
func TestCloseWhileBlocked(t *testing.T) {
	ft.RequireFUSE(t)
	root := filepath.Join(t.TempDir(), "fuse")
	s, err := fuse.NewServer(context.Background(), fuse.Options{Root: root})
	require.NoError(t, err)
	slow := deadLayer(t, 50, 300_000)
	d, err := s.Add(slow)
	require.NoError(t, err)
	merged := ft.Overlay(t, d.Path())
	cmds := slow.readers(t, merged, 50)

	start := time.Now()
	require.NoError(t, s.Close())
	require.Less(t, time.Since(start), 3*time.Second)
	require.Empty(t, mountsBelow(t, root))
	require.Zero(t, slow.Holders(), "no request uses the content after Close")
	for _, cmd := range cmds {
		require.Error(t, cmd.Wait(), "the reader got an error, and ended")
	}
	_, err = os.ReadFile(merged + "/f0")
	require.Error(t, err)
	require.NoError(t, s.Close(), "a second Close")
	d.Remove()
	_, err = s.Add(slow)
	require.Error(t, err, "a closed server takes no layer")

	// The same root serves again at once, overlay or not.
	again := newServer(t, fuse.Options{Root: root})
	_, err = os.Stat(add(t, again, slow).Path() + "/f0")
	require.NoError(t, err)
}

// A content that never ends its reads delays Close, but not for ever.
func TestCloseWithDeafContent(t *testing.T) {
	ft.RequireFUSE(t)
	fuse.SetCloseWait(t, 200*time.Millisecond)
	s, err := fuse.NewServer(context.Background(), fuse.Options{Root: filepath.Join(t.TempDir(), "fuse")})
	require.NoError(t, err)
	deaf := deadLayer(t, 1, 10)
	deaf.Before = func(context.Context, uint32, int64, int) error {
		deaf.waiting.Add(1)
		<-deaf.release
		return nil
	}
	d, err := s.Add(deaf)
	require.NoError(t, err)
	cmd := deaf.readers(t, d.Path(), 1)[0]
	err = s.Close()
	require.ErrorContains(t, err, "did not end")
	require.Error(t, cmd.Wait(), "the reader does not wait for it")
	close(deaf.release)
	eventually(t, "the request ends", func() bool { return deaf.Holders() == 0 })
}

func TestRemoveEndsReads(t *testing.T) {
	s := newServer(t, fuse.Options{})
	slow := deadLayer(t, 5, 10_000)
	d := add(t, s, slow)
	cmds := slow.readers(t, d.Path(), 5)
	d.Remove()
	for _, cmd := range cmds {
		require.Error(t, cmd.Wait())
	}
	eventually(t, "holds end", func() bool { return slow.Holders() == 0 })
}

// A server that was killed leaves dead mounts, which answer ENOTCONN to all but
// umount; the next one comes up in their place.
func TestStaleMounts(t *testing.T) {
	ft.RequireFUSE(t)
	root := filepath.Join(t.TempDir(), "fuse")
	t.Cleanup(func() { // of what a failure leaves
		for _, m := range mountsBelow(t, root) {
			unix.Unmount(m, unix.MNT_DETACH)
		}
	})
	for range 2 { // the second finds two layers of dead mounts
		cmd := child("serve", root)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		line, err := bufio.NewReader(out).ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "mounted\n", line)
		require.NoError(t, cmd.Process.Kill())
		cmd.Wait()
		_, err = os.Stat(root + "/p/1")
		require.ErrorIs(t, err, unix.ENOTCONN)
	}
	s := newServer(t, fuse.Options{Root: root})
	require.Len(t, mountsBelow(t, root), 2)
	_, err := os.ReadDir(filepath.Dir(add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f")))).Path()))
	require.NoError(t, err)
}

// Signals at readers that wait: the read goes on. EINTR would surface from
// programs that do not expect it, and as SIGBUS from mappings.
func TestSignalStorm(t *testing.T) {
	s := newServer(t, fuse.Options{})
	slow := deadLayer(t, 8, 5000)
	var ended atomic.Int64
	before := slow.Before
	slow.Before = func(ctx context.Context, i uint32, off int64, n int) error {
		err := before(ctx, i, off, n)
		if err != nil {
			ended.Add(1)
		}
		return err
	}
	d := add(t, s, slow)
	cmd := child("storm", d.Path(), "8")
	cmd.Env = append(cmd.Env, "GOMAXPROCS=32") // a page fault keeps its processor
	var out lockedBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	t.Cleanup(func() { t.Log(out.String()) })
	eventually(t, "readers wait", func() bool { return slow.waiting.Load() >= 8 })
	time.Sleep(500 * time.Millisecond) // of signals
	require.Zero(t, ended.Load(), "a signal ended a read")
	close(slow.release)
	require.NoError(t, cmd.Wait(), out.String())
}

// A process that is killed while it waits in a request that the kernel can't
// drop (a direct read, say) is let go.
func TestKilledReaderIsLetGo(t *testing.T) {
	s := newServer(t, fuse.Options{})
	for _, how := range []string{"iflag=direct", "iflag=count_bytes"} {
		for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
			t.Run(fmt.Sprintf("%q %s", how, sig), func(t *testing.T) {
				slow := deadLayer(t, 1, 8192)
				d := add(t, s, slow)
				// Not a Go program: that handles SIGTERM, and it is no death then.
				cmd := exec.Command("dd", "if="+d.Path()+"/f0", "of=/dev/null", "bs=4096", how)
				require.NoError(t, cmd.Start())
				eventually(t, "the reader waits", func() bool { return slow.waiting.Load() > 0 })
				// A stray signal first: the kernel sends one INTERRUPT per request.
				require.NoError(t, cmd.Process.Signal(syscall.SIGURG))
				start := time.Now()
				require.NoError(t, cmd.Process.Signal(sig))
				require.Error(t, cmd.Wait())
				require.Less(t, time.Since(start), 3*time.Second)
			})
		}
	}
}

// pending is a content whose TOC comes later, or never.
type pending struct {
	*ft.Content
	ready chan struct{} // closed when the TOC is there
	fail  error
}

func (p *pending) Acquire() (*estargz.TOC, error) {
	select {
	case <-p.ready:
		return p.Content.Acquire()
	default:
		return nil, errors.New("no TOC yet")
	}
}

// waiting is a pending content that can be waited for.
type waiting struct{ *pending }

func (w waiting) Wait(ctx context.Context) error {
	if w.fail != nil {
		return w.fail
	}
	select {
	case <-w.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestPending(t *testing.T) {
	s := newServer(t, fuse.Options{})
	content := ft.Layer(t, ft.Tar(t, torture(false)...))
	p := &pending{Content: content, ready: make(chan struct{})}
	d, err := s.AddPending(p)
	require.NoError(t, err)
	defer d.Remove()
	require.False(t, d.Plain())
	for _, name := range []string{"", "/bin/su"} {
		_, err = os.Stat(d.Path() + name)
		require.ErrorIs(t, err, unix.EIO)
	}

	close(p.ready)
	require.EqualValues(t, 0o4755, stat(t, d.Path()+"/bin/su").Mode&0o7777)
	require.EqualValues(t, 0o751, stat(t, d.Path()).Mode&0o7777, "the real root directory shows")
	merged := ft.Overlay(t, d.Path())
	require.EqualValues(t, 0o4755, stat(t, merged+"/bin/su").Mode&0o7777)
}

// While one layer's TOC is waited for, look-ups of other layers go on, and a
// process that waits for it can be killed.
func TestPendingWaits(t *testing.T) {
	s := newServer(t, fuse.Options{})
	content := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f")))
	p := &pending{Content: content, ready: make(chan struct{})}
	d, err := s.AddPending(waiting{p})
	require.NoError(t, err)
	defer d.Remove()

	killed := exec.Command("cat", d.Path()+"/f")
	require.NoError(t, killed.Start())
	patient := exec.Command("cat", d.Path()+"/f")
	require.NoError(t, patient.Start())
	eventually(t, "both wait", func() bool {
		return blockedIn(killed.Process.Pid) && blockedIn(patient.Process.Pid)
	})
	other := add(t, s, content)
	_, err = os.ReadFile(other.Path() + "/f")
	require.NoError(t, err)

	require.NoError(t, killed.Process.Kill())
	require.Error(t, killed.Wait())
	close(p.ready)
	require.NoError(t, patient.Wait())

	failing := waiting{&pending{Content: content, ready: make(chan struct{}), fail: errors.New("no route")}}
	f, err := s.AddPending(failing)
	require.NoError(t, err)
	defer f.Remove()
	_, err = os.ReadFile(f.Path() + "/f")
	require.ErrorIs(t, err, unix.EIO)
}

// blockedIn says whether a process waits inside a FUSE request.
func blockedIn(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stack", pid))
	if err == nil && len(b) > 0 {
		return contains(b, "fuse")
	}
	b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/wchan", pid))
	return contains(b, "request_wait_answer")
}

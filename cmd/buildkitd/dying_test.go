package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/worker"
)

// runStuck in the environment makes the test binary a process that has locked the
// state directory of that name and waits for an answer from its own FUSE mount in it.
const runStuck = "LAZYKIT_TEST_RUN_STUCK"

// silent answers no look-up.
type silent struct{ gofuse.RawFileSystem }

func (silent) Lookup(<-chan struct{}, *gofuse.InHeader, string, *gofuse.EntryOut) gofuse.Status {
	select {}
}

func beStuck(root string) {
	unlock, err := lockRoot(&config.Config{Root: root})
	if err != nil {
		panic(err)
	}
	defer unlock()
	at := filepath.Join(root, "mnt")
	server, err := gofuse.NewServer(silent{gofuse.NewDefaultRawFileSystem()}, at, &gofuse.MountOptions{DirectMountStrict: true})
	if err != nil {
		panic(err)
	}
	go server.Serve()
	if err := server.WaitMount(); err != nil {
		panic(err)
	}
	go func() {
		time.Sleep(100 * time.Millisecond)
		fmt.Println("waiting")
	}()
	os.Stat(filepath.Join(at, "file"))
}

// stuck starts such a process.
func stuck(t *testing.T) (root string, cmd *exec.Cmd) {
	t.Helper()
	root = t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(root, "mnt"), 0o700))
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), runStuck+"="+root)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		worker.EndConnections(root)
		cmd.Process.Kill()
		cmd.Wait()
		found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
		require.NoError(t, err)
		for _, m := range found {
			require.NoError(t, unix.Unmount(m.Mountpoint, unix.MNT_DETACH))
		}
	})
	line, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "waiting\n", line)
	return root, cmd
}

func TestKilledDaemonIsEnded(t *testing.T) {
	needRoot(t)
	root, cmd := stuck(t)
	require.NoError(t, cmd.Process.Kill())
	time.Sleep(500 * time.Millisecond)
	require.NoError(t, cmd.Process.Signal(syscall.Signal(0)))
	pid, err := lockedBy(filepath.Join(root, "buildkitd.lock"))
	require.NoError(t, err, "it has not ended, or this tests nothing")
	require.Equal(t, cmd.Process.Pid, pid)

	link := filepath.Join(t.TempDir(), "link") // the kernel lists mounts by their real paths
	require.NoError(t, os.Symlink(root, link))
	unlock, err := lockRoot(&config.Config{Root: link})
	require.NoError(t, err)
	unlock()
}

func TestLivingDaemonIsLeftAlone(t *testing.T) {
	needRoot(t)
	root, cmd := stuck(t)
	_, err := lockRoot(&config.Config{Root: root})
	require.ErrorContains(t, err, "another instance running?")
	require.False(t, isDying(cmd.Process.Pid))
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	require.NoError(t, err)
	require.Len(t, found, 1)
}

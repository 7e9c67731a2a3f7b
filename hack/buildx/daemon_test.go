package buildx

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// daemon is a buildkitd on fresh state.
type daemon struct {
	addr string // for buildx's remote driver
	log  string
}

// startDaemon starts the daemon under test. It ends with the test, and fails it
// if a mount is left.
func startDaemon(t *testing.T, f *fixture, flags ...string) *daemon {
	t.Helper()
	// Not t.TempDir: a socket's path must stay short.
	dir, err := os.MkdirTemp("/tmp", "lkbx")
	must(t, err)
	d := &daemon{addr: "unix://" + filepath.Join(dir, "sock"), log: filepath.Join(dir, "log")}
	log, err := os.Create(d.log)
	must(t, err)
	defer log.Close()
	// The trace socket has one path for the whole machine, which every daemon that
	// ends removes; and a configuration of the machine must not count.
	config := filepath.Join(dir, "buildkitd.toml")
	must(t, os.WriteFile(config, fmt.Appendf(nil, "[otel]\n  socketPath = %q\n", filepath.Join(dir, "otel.sock")), 0o644))
	args := append([]string{
		"--config", config, "--debug", "--root", filepath.Join(dir, "root"), "--addr", d.addr,
		"--oci-worker=true", "--containerd-worker=false", "--oci-worker-snapshotter=" + f.snapshotter,
	}, flags...)
	cmd := exec.Command(f.programs.Buildkitd, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "HOME="+dir)
	must(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { d.stop(t, dir, cmd, exited) })
	waitFor(t, 30*time.Second, "buildkitd to answer", func() error {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("buildkitd ended: %v\n%s", err, tail(d.log))
		default:
		}
		return exec.Command(f.programs.Buildctl, "--addr", d.addr, "debug", "workers").Run()
	})
	return d
}

// stop ends the daemon as a service manager would.
func (d *daemon) stop(t *testing.T, dir string, cmd *exec.Cmd, exited chan error) {
	if t.Failed() {
		t.Logf("the end of buildkitd's log:\n%s", tail(d.log))
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(20 * time.Second):
		t.Error("buildkitd does not end within 20 s of SIGTERM")
		_ = cmd.Process.Kill()
		<-exited
	}
	detachMounts(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// detachMounts fails the test for every mount below dir, and takes it away so
// that the next test starts clean. Stock is known to leave its FUSE mounts.
func detachMounts(t *testing.T, dir string) {
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Error(err)
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		report := t.Errorf
		if os.Getenv("LAZYKIT_BUILDKITD") != "" {
			report = t.Logf
		}
		report("mount left: %s (%s)", mounts[i].Mountpoint, mounts[i].FSType)
		_ = syscall.Unmount(mounts[i].Mountpoint, syscall.MNT_DETACH)
	}
}

// waitFor calls f until it succeeds.
func waitFor(t *testing.T, limit time.Duration, what string, f func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited %s for %s: %v", limit, what, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// tail is the last part of a file, for a failure's message.
func tail(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(string(data), "\n")
	const most = 40
	if n := len(lines); n > most {
		lines = append([]string{fmt.Sprintf("(%d lines before)", n-most)}, lines[n-most:]...)
	}
	for i, line := range lines {
		const wide = 300
		if len(line) > wide {
			lines[i] = line[:wide] + "..."
		}
	}
	return strings.Join(lines, "\n")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

package buildx

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/capability"
)

// engine is a Docker engine of our own, on a private socket.
type engine struct {
	host string // for DOCKER_HOST
	log  string
}

// startEngine starts dockerd with its whole state in one directory, without
// bridges or firewall rules, so that it needs nothing of the machine and leaves
// nothing. Containers use the host's network.
func startEngine(t *testing.T) *engine {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "lkdk")
	must(t, err)
	e := &engine{host: "unix://" + filepath.Join(dir, "sock"), log: filepath.Join(dir, "log")}
	log, err := os.Create(e.log)
	must(t, err)
	defer log.Close()
	args := []string{
		"--data-root", filepath.Join(dir, "data"), "--exec-root", filepath.Join(dir, "exec"),
		"--host", e.host, "--pidfile", filepath.Join(dir, "pid"),
		"--bridge", "none", "--iptables=false",
	}
	cmd := exec.Command("dockerd", append(args, runtimeArgs(t, dir)...)...)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	t.Cleanup(func() { e.stop(t, dir, cmd, exited) })
	waitFor(t, time.Minute, "dockerd to answer", func() error {
		select {
		case err := <-exited:
			exited <- err
			t.Fatalf("dockerd ended: %v\n%s", err, tail(e.log))
		default:
		}
		_, err := e.try("version")
		return err
	})
	return e
}

// runtimeArgs puts our runtime before runc on a machine where runc can't start a
// privileged container.
func runtimeArgs(t *testing.T, dir string) []string {
	t.Helper()
	caps, err := capability.NewPid2(0)
	must(t, err)
	must(t, caps.Load())
	last, err := capability.LastCap()
	must(t, err)
	missing := false
	for c := capability.Cap(0); c <= last; c++ {
		missing = missing || !caps.Get(capability.BOUNDING, c)
	}
	if !missing {
		return nil
	}
	t.Log("root lacks a capability here: runc is run through hack/buildx/runtime")
	program := filepath.Join(dir, "runtime")
	build := exec.Command("go", "build", "-o", program, "./runtime")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the runtime: %v\n%s", err, out)
	}
	return []string{"--add-runtime", "lazykit=" + program, "--default-runtime", "lazykit"}
}

// stop ends the engine; it ends its containers and its containerd.
func (e *engine) stop(t *testing.T, dir string, cmd *exec.Cmd, exited chan error) {
	if t.Failed() {
		t.Logf("the end of dockerd's log:\n%s", tail(e.log))
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited:
	case <-time.After(60 * time.Second):
		t.Error("dockerd does not end within 60 s of SIGTERM")
		_ = cmd.Process.Kill()
		<-exited
	}
	// dockerd leaves the bind mount of the host's network namespace.
	_ = syscall.Unmount(filepath.Join(dir, "exec", "netns", "default"), syscall.MNT_DETACH)
	detachMounts(t, dir)
	if err := os.RemoveAll(dir); err != nil {
		t.Error(err)
	}
}

// docker runs one command of the docker client and returns its output.
func (e *engine) docker(t *testing.T, args ...string) string {
	t.Helper()
	out, err := e.try(args...)
	if err != nil {
		t.Fatalf("docker %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (e *engine) try(args ...string) (string, error) {
	cmd := exec.Command("docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+e.host)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

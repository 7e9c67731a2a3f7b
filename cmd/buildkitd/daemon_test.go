package main

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gofrs/flock"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	"github.com/tonistiigi/fsutil"
)

// needRoot skips, unless the machine is meant to run everything.
func needRoot(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("runc")
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatalf("LAZYKIT_PRIVILEGED=1, but uid is %d and runc: %v", os.Geteuid(), err)
	}
	t.Skip("needs root and runc")
}

// process is a daemon that a test has started.
type process struct {
	root   string
	addr   string
	logs   string // the file with what it has written
	cmd    *exec.Cmd
	exited chan error
}

// startDaemon runs the test binary as a buildkitd on a root of its own and waits
// until it has a worker.
func startDaemon(t *testing.T, root string, args ...string) *process {
	t.Helper()
	dir := shortDir(t)
	p := &process{root: root, addr: "unix://" + filepath.Join(dir, "s"), logs: filepath.Join(dir, "log"), exited: make(chan error, 1)}
	p.cmd = exec.Command(os.Args[0], append([]string{
		"--root", root, "--addr", p.addr, "--otel-socket-path", filepath.Join(dir, "otel"),
		"--config", filepath.Join(dir, "none.toml"),
	}, args...)...)
	p.cmd.Env = append(os.Environ(), runAsDaemon+"=1")
	out, err := os.Create(p.logs)
	require.NoError(t, err)
	defer out.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, out
	require.NoError(t, p.cmd.Start())
	go func() { p.exited <- p.cmd.Wait() }()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", p.log())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for p.workers(ctx) == nil {
		select {
		case err := <-p.exited:
			t.Fatalf("the daemon has ended: %v\n%s", err, p.log())
		case <-ctx.Done():
			t.Fatal("the daemon does not answer")
		case <-time.After(50 * time.Millisecond):
		}
	}
	return p
}

// log is what the daemon has written so far.
func (p *process) log() string {
	b, err := os.ReadFile(p.logs)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

func (p *process) workers(ctx context.Context) []*client.WorkerInfo {
	c, err := client.New(ctx, p.addr)
	if err != nil {
		return nil
	}
	defer c.Close()
	ws, err := c.ListWorkers(ctx)
	if err != nil {
		return nil
	}
	return ws
}

// stop sends SIGTERM and checks how the daemon ends: soon, with stock's exit
// code, and nothing mounted.
func (p *process) stop(t *testing.T) {
	t.Helper()
	began := time.Now()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case err := <-p.exited:
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit)
		require.Equal(t, 1, exit.ExitCode(), "stock's code after a signal")
		t.Logf("stopped after %v", time.Since(began))
	case <-time.After(10 * time.Second):
		t.Fatal("the daemon runs 10 s after SIGTERM")
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(p.root))
	require.NoError(t, err)
	require.Empty(t, left, "mounts that are left")
	require.NoFileExists(t, filepath.Join(p.root, "buildkitd.lock"))
}

// TestDaemonBuilds builds a Dockerfile with a RUN, without an image, and the same
// again after a restart, from the cache.
func TestDaemonBuilds(t *testing.T) {
	for _, snapshotter := range []string{"overlayfs", "stargz"} {
		t.Run(snapshotter, func(t *testing.T) { testDaemonBuilds(t, snapshotter) })
	}
}

func testDaemonBuilds(t *testing.T, snapshotter string) {
	needRoot(t)
	root := t.TempDir()
	d := startDaemon(t, root, "--oci-worker-snapshotter="+snapshotter, "--containerd-worker=false", "--oci-worker-labels=x=y")
	w := d.workers(t.Context())
	require.Len(t, w, 1)
	require.Equal(t, snapshotter, w[0].Labels["org.mobyproject.buildkit.worker.snapshotter"])
	require.Equal(t, "y", w[0].Labels["x"])
	require.Equal(t, "v0.33.1", w[0].BuildkitVersion.Version)

	src := buildContext(t)
	out := t.TempDir()
	require.Empty(t, d.build(t, src, out))
	got, err := os.ReadFile(filepath.Join(out, "hello"))
	require.NoError(t, err)
	require.Equal(t, "hello from a step\n", string(got))
	d.stop(t)

	d = startDaemon(t, root, "--oci-worker-snapshotter=auto")
	require.Contains(t, d.log(), "using "+snapshotter+": ", "the cache that is there is kept in use")
	require.Contains(t, d.build(t, src, t.TempDir()), "RUN", "the step is cached")
	d.stop(t)
}

func TestDaemonLocksItsRoot(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	d := startDaemon(t, root, "--oci-worker-snapshotter=native")
	cmd := exec.CommandContext(t.Context(), os.Args[0], "--root", root, "--addr", "unix://"+filepath.Join(shortDir(t), "s"), "--config", "/none")
	cmd.Env = append(os.Environ(), runAsDaemon+"=1")
	out, err := cmd.CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "another instance running?")
	d.stop(t)
}

func TestDaemonWithoutWorker(t *testing.T) {
	needRoot(t)
	for _, args := range [][]string{{"--oci-worker=false"}, {"--containerd-worker=true"}, {"--oci-worker-snapshotter=none"}} {
		cmd := exec.CommandContext(t.Context(), os.Args[0], append(args, "--root", t.TempDir(),
			"--addr", "unix://"+filepath.Join(shortDir(t), "s"), "--otel-socket-path", filepath.Join(shortDir(t), "o"), "--config", "/none")...)
		cmd.Env = append(os.Environ(), runAsDaemon+"=1")
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		require.True(t, errors.As(err, &exit), "%v: %v", args, err)
		require.Regexp(t, "no worker found|no containerd worker|unknown snapshotter", string(out))
	}
}

// buildContext holds a static program and a Dockerfile that runs it.
func buildContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "prog"), "./testdata/prog")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(
		"FROM scratch AS run\nCOPY prog /prog\nRUN [\"/prog\", \"/hello\"]\nFROM scratch\nCOPY --from=run /hello /\n"), 0o600))
	return dir
}

// build exports to a directory and returns the names of the cached steps.
func (p *process) build(t *testing.T, src, out string) (cached string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := client.New(ctx, p.addr)
	require.NoError(t, err)
	defer c.Close()
	fs, err := fsutil.NewFS(src)
	require.NoError(t, err)
	status := make(chan *client.SolveStatus)
	names := make(chan string, 1)
	go func() {
		var seen []string
		for s := range status {
			for _, v := range s.Vertexes {
				if v.Cached && !strings.Contains(v.Name, "internal") {
					seen = append(seen, v.Name)
				}
			}
		}
		names <- strings.Join(seen, "\n")
	}()
	_, err = c.Solve(ctx, nil, client.SolveOpt{
		Frontend:    "dockerfile.v0",
		LocalMounts: map[string]fsutil.FS{"context": fs, "dockerfile": fs},
		Exports:     []client.ExportEntry{{Type: client.ExporterLocal, OutputDir: out}},
	}, status)
	require.NoError(t, err)
	return <-names
}

// A lock file that another daemon removes while this one takes it keeps nobody out.
func TestLockOfAFileThatIsGone(t *testing.T) {
	cfg := &config.Config{Root: t.TempDir()}
	unlock, err := lockRoot(cfg)
	require.NoError(t, err)
	path := filepath.Join(cfg.Root, "buildkitd.lock")
	_, err = lockRoot(cfg)
	require.ErrorContains(t, err, "another instance running?")

	unlock()
	require.NoFileExists(t, path)

	// One that has opened the file locks it after the first one has removed it.
	late := flock.New(path)
	locked, err := late.TryLock()
	require.NoError(t, err)
	require.True(t, locked)
	require.True(t, isFileAt(late, path))
	require.NoError(t, os.Remove(path))
	require.False(t, isFileAt(late, path), "what it has locked keeps nobody out")
	unlock, err = lockRoot(cfg)
	require.NoError(t, err)
	unlock()
	require.NoError(t, late.Close())
}

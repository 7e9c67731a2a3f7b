package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// side is one of the two daemons.
type side string

const (
	stock side = "stock"
	ours  side = "ours"
)

// testRun is one execution of a test binary.
type testRun struct {
	layout   layout
	mirror   string
	pkg      string
	side     side
	mode     string
	pattern  string // for -test.run
	parallel int
	timeout  time.Duration
	log      string // file for the output of the tests, test2json's lines
	races    string // prefix of files for reports of the race detector
}

// run executes the tests and returns what became of them. That tests fail is
// not an error. Every process and mount of the run is gone when it returns.
func (r testRun) run(ctx context.Context) (_ results, err error) {
	// The sockets of the daemons lie in it: keep the name short.
	tmp, err := os.MkdirTemp("/tmp", "lkup")
	if err != nil {
		return nil, err
	}
	defer func() {
		if cerr := sweep(tmp); cerr != nil && err == nil {
			err = cerr
		}
	}()
	log, err := createLog(r.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()

	cmd := r.command(ctx, tmp)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if _, err := log.Seek(0, 0); err != nil {
		return nil, err
	}
	res, err := readEvents(log)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", r.log, err)
	}
	if len(res) == 0 {
		return nil, fmt.Errorf("no test ran, see %s", r.log)
	}
	return res, nil
}

// command is "go tool test2json TEST -test.v=test2json ...", in the package's
// own directory, since tests read files beside their sources.
func (r testRun) command(ctx context.Context, tmp string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", "tool", "test2json", "-p", r.pkg,
		r.layout.testBinary(r.pkg),
		"-test.v=test2json",
		"-test.run="+r.pattern,
		"-test.parallel="+strconv.Itoa(r.parallel),
		"-test.timeout="+r.timeout.String(),
	)
	cmd.Dir = filepath.Join(r.layout.src(), filepath.FromSlash(r.pkg))
	cmd.Env = append(os.Environ(),
		"PATH="+r.layout.sideDir(r.side)+":"+r.layout.bin()+":"+os.Getenv("PATH"),
		registryEnv,
		"TMPDIR="+tmp,
		"GORACE=log_path="+r.races,
		"DOCKER_CONFIG="+tmp, // no credentials or proxies of the person at the keyboard
		"BUILDKIT_INTEGRATION_SNAPSHOTTER="+r.mode,
		"BUILDKIT_REGISTRY_MIRROR_DIR="+r.mirror,
	)
	// A group of its own, so that an interrupt ends the test binary too.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 20 * time.Second
	return cmd
}

func createLog(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	return os.Create(path)
}

// sweep ends what a run left: daemons whose command line names its directory
// (they lead sessions of their own, so no group signal reaches them), mounts
// in it, and the directory itself.
func sweep(dir string) error {
	for _, pid := range processesNaming(dir + "/") {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return err
	}
	for i := len(mounts) - 1; i >= 0; i-- {
		_ = unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH)
	}
	// A killed daemon may still be writing for a moment.
	for range 50 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("remove what the tests left: %w", err)
}

// processesNaming are the processes with text in their command line.
func processesNaming(text string) []int {
	var pids []int
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range files {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		if data, err := os.ReadFile(file); err == nil && bytes.Contains(data, []byte(text)) {
			pids = append(pids, pid)
		}
	}
	return pids
}

package lab

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
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// DaemonOptions describe a buildkitd to start.
type DaemonOptions struct {
	Program     string   // path of buildkitd, ours or any other
	Root        string   // state directory, which is kept; "" is a fresh one that Remove deletes
	Snapshotter string   // of the OCI worker; "" leaves the choice to the daemon
	Registries  []string // host:port of registries that speak plain HTTP
	Config      string   // more of buildkitd.toml
	Args        []string // more flags
	Debug       bool     // Vitals and Profile are to be asked for
	Env         []string // more environment, KEY=VALUE
	Log         string   // file for its output, appended to; "" is buildkitd.log beside the state
	LeaveMounts bool     // when it does not start, leave what is mounted in Root to the next one
}

// Daemon is a buildkitd process that listens on a unix socket of its own. Kill,
// Stop and Remove are for its one owner; the rest may be called from anywhere.
type Daemon struct {
	Addr string // for clients: unix:///...
	Root string
	Log  string
	Pid  int

	cmd      *exec.Cmd
	dir      string // holds socket and configuration
	ownsRoot bool
	peak     atomic.Int64
	exited   chan struct{}
	err      error // of the process; valid after exited
	polling  sync.WaitGroup
}

// StartDaemon starts a daemon and returns when it answers with a worker, or with
// the end of its log when it does not. The caller ends it with Stop, then
// Remove, whatever happened in between.
func StartDaemon(ctx context.Context, opts DaemonOptions) (_ *Daemon, err error) {
	d := &Daemon{Root: opts.Root, Log: opts.Log, exited: make(chan struct{})}
	// A short path: a unix socket's has at most 107 bytes.
	if d.dir, err = os.MkdirTemp("", "lab-"); err != nil {
		return nil, fmt.Errorf("start buildkitd: %w", err)
	}
	if d.Root == "" {
		d.ownsRoot = true
		if d.Root, err = freshRoot(); err != nil {
			os.RemoveAll(d.dir)
			return nil, fmt.Errorf("start buildkitd: %w", err)
		}
	}
	if d.Log == "" {
		d.Log = filepath.Join(d.dir, "buildkitd.log")
	}
	if err := d.start(ctx, opts); err != nil {
		return nil, errors.Join(fmt.Errorf("start buildkitd: %w", err), d.Remove())
	}
	if err := d.waitReady(ctx); err != nil {
		err = fmt.Errorf("start buildkitd: %w\n%s", err, d.LogTail(30))
		d.Kill()
		if opts.LeaveMounts && !d.ownsRoot {
			return nil, errors.Join(err, os.RemoveAll(d.dir))
		}
		return nil, errors.Join(err, d.Remove())
	}
	return d, nil
}

// freshRoot makes a state directory in the cache, which is on a disk that holds
// images, while the temporary directory may be in memory.
func freshRoot() (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	run := filepath.Join(cache, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return "", fmt.Errorf("make a state directory: %w", err)
	}
	return os.MkdirTemp(run, "root-")
}

func (d *Daemon) start(ctx context.Context, opts DaemonOptions) error {
	config := opts.Config + "\n"
	for _, host := range opts.Registries {
		config += fmt.Sprintf("[registry.%q]\n  http = true\n", host)
	}
	configPath := filepath.Join(d.dir, "buildkitd.toml")
	if err := os.WriteFile(configPath, []byte(config), 0o644); err != nil {
		return fmt.Errorf("write its configuration: %w", err)
	}
	socket := filepath.Join(d.dir, "s")
	d.Addr = "unix://" + socket
	args := []string{"--config", configPath, "--root", d.Root, "--addr", d.Addr,
		"--oci-worker=true", "--containerd-worker=false", "--oci-worker-net=host",
		// The default is one place for all daemons, and the first that ends takes it away.
		"--otel-socket-path", filepath.Join(d.dir, "otel.sock")}
	if opts.Debug {
		args = append(args, "--debugaddr", "unix://"+d.debugSocket())
	}
	if opts.Snapshotter != "" {
		args = append(args, "--oci-worker-snapshotter="+opts.Snapshotter)
	}
	log, err := os.OpenFile(d.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open its log: %w", err)
	}
	defer log.Close()
	d.cmd = exec.Command(opts.Program, append(args, opts.Args...)...)
	d.cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	d.cmd.Env = append(d.cmd.Env, opts.Env...)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := d.cmd.Start(); err != nil {
		return err
	}
	d.Pid = d.cmd.Process.Pid
	go func() {
		defer close(d.exited)
		d.err = d.cmd.Wait()
	}()
	d.polling.Add(1)
	go func() {
		defer d.polling.Done()
		d.pollMemory()
	}()
	return nil
}

func (d *Daemon) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	c, err := d.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	for {
		workers, err := c.ListWorkers(ctx)
		if err == nil && len(workers) > 0 {
			return nil
		}
		select {
		case <-d.exited:
			return fmt.Errorf("it ended at once: %w", d.err)
		case <-ctx.Done():
			return fmt.Errorf("it does not answer: %w", errors.Join(ctx.Err(), err))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Client connects to the daemon.
func (d *Daemon) Client(ctx context.Context) (*client.Client, error) {
	c, err := client.New(ctx, d.Addr)
	if err != nil {
		return nil, fmt.Errorf("connect to buildkitd at %s: %w", d.Addr, err)
	}
	return c, nil
}

// Kill ends the daemon as a crash would, and waits for it, but not for a thread of it
// that waits for an answer from its own mount, for ever: the kernel has sent the
// request, and nobody is left to answer. That is the next daemon's to end, or Remove's.
func (d *Daemon) Kill() {
	if d.cmd == nil || d.cmd.Process == nil {
		return
	}
	d.cmd.Process.Kill() // an error means that it ended already
	if d.Ended(killTimeout) {
		d.polling.Wait()
	}
	d.cmd = nil
}

// killTimeout is more than a killed process needs to end by itself.
const killTimeout = 3 * time.Second

// abortMounts ends the FUSE connections of a daemon that was killed.
func (d *Daemon) abortMounts() {
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d.Root))
	if err != nil {
		Logf("list the mounts of %s: %v", d.Root, err)
		return
	}
	for _, m := range infos {
		if strings.HasPrefix(m.FSType, "fuse") {
			unix.Unmount(m.Mountpoint, unix.MNT_FORCE) // ends the connection, also where the mount is busy
		}
	}
}

// Ended waits until the daemon has ended by itself, or for timeout, and says whether it has.
func (d *Daemon) Ended(timeout time.Duration) bool {
	select {
	case <-d.exited:
		return true
	case <-time.After(timeout):
		return false
	}
}

// LeftMountsError says that a daemon ended and left mounts in its root.
type LeftMountsError struct{ Mounts []string }

func (e *LeftMountsError) Error() string {
	return fmt.Sprintf("buildkitd left %d mounts: %s", len(e.Mounts), strings.Join(e.Mounts, " "))
}

// stopTimeout is more than a daemon may take to end.
const stopTimeout = 30 * time.Second

// Stop asks the daemon to end (SIGTERM), kills it when that takes more than 30
// s, and checks that it ended well and left no mount: a LeftMountsError
// otherwise. The second call does nothing.
func (d *Daemon) Stop() error {
	if d.cmd == nil || d.cmd.Process == nil {
		return nil
	}
	select {
	case <-d.exited:
		d.cmd = nil
		return fmt.Errorf("buildkitd ended by itself: %w\n%s", d.err, d.LogTail(20))
	default:
	}
	d.cmd.Process.Signal(syscall.SIGTERM) // an error means that it ended already
	var errs []error
	select {
	case <-d.exited:
		d.polling.Wait()
		// Stock ends with status 1 on a signal. A panic's is 2.
		if code := d.cmd.ProcessState.ExitCode(); code != 0 && code != 1 {
			errs = append(errs, fmt.Errorf("buildkitd ended on SIGTERM with: %w", d.err))
		}
	case <-time.After(stopTimeout):
		errs = append(errs, fmt.Errorf("buildkitd did not end within %v of SIGTERM\n%s", stopTimeout, d.LogTail(20)))
		d.Kill()
	}
	d.cmd = nil
	mounts, err := d.Mounts()
	if err != nil {
		errs = append(errs, err)
	}
	if len(mounts) > 0 {
		errs = append(errs, &LeftMountsError{Mounts: mounts})
	}
	return errors.Join(errs...)
}

// Mounts are the mount points in the daemon's root, and elsewhere those of what lies
// there, the latest first.
func (d *Daemon) Mounts() ([]string, error) {
	infos, err := Mounts(d.Root)
	if err != nil {
		return nil, fmt.Errorf("list the mounts of %s: %w", d.Root, err)
	}
	var mounts []string
	for i := len(infos) - 1; i >= 0; i-- {
		mounts = append(mounts, infos[i].Mountpoint)
	}
	return mounts, nil
}

// Remove detaches whatever is mounted in, or from, the root of a stopped daemon and, when
// StartDaemon made the root, deletes it. A log that StartDaemon placed goes too.
func (d *Daemon) Remove() error {
	if d.Pid != 0 && !d.Ended(0) {
		d.abortMounts()
		<-d.exited
		d.polling.Wait()
	}
	mounts, err := d.Mounts()
	errs := []error{err}
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m, err))
		}
	}
	if left, err := d.Mounts(); err != nil || len(left) > 0 {
		return errors.Join(append(errs, err, fmt.Errorf("not removing %s with mounts in it: %v", d.Root, left))...)
	}
	if d.ownsRoot {
		errs = append(errs, os.RemoveAll(d.Root))
	}
	return errors.Join(append(errs, os.RemoveAll(d.dir))...)
}

// LogTail is the last n lines of the daemon's log.
func (d *Daemon) LogTail(n int) string {
	data, err := os.ReadFile(d.Log)
	if err != nil {
		return fmt.Sprintf("(no log: %v)", err)
	}
	return tail(string(data), n)
}

// PeakMemory is the most anonymous memory (RssAnon, in bytes) that the daemon
// was seen to use, looked at every 50 ms.
func (d *Daemon) PeakMemory() int64 { return d.peak.Load() }

// ResetPeakMemory starts PeakMemory anew.
func (d *Daemon) ResetPeakMemory() { d.peak.Store(0) }

func (d *Daemon) pollMemory() {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if n := rssAnon(d.Pid); n > d.peak.Load() {
			d.peak.Store(n)
		}
		select {
		case <-tick.C:
		case <-d.exited:
			return
		}
	}
}

// rssAnon reads a process's anonymous memory in bytes; 0 when it has ended.
func rssAnon(pid int) int64 {
	file, err := os.Open(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if value, ok := strings.CutPrefix(lines.Text(), "RssAnon:"); ok {
			kb, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(value, "kB")), 10, 64)
			return kb << 10
		}
	}
	return 0
}

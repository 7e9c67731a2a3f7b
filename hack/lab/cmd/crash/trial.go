package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/writepoint"
)

// kind is what happens at a write point.
type kind string

const (
	none     kind = ""
	kill     kind = "kill"     // the daemon is killed before the call
	term     kind = "term"     // it is asked to end
	power    kind = "power"    // what was not synced is lost, and it is killed
	nospace  kind = "nospace"  // this call and later ones find no room
	readonly kind = "readonly" // they find a read-only file system
)

var kinds = []kind{kill, term, power, nospace, readonly}

func (k kind) called() string { return string(k) }

// errno is what calls fail with, 0 for the kinds that end the daemon.
func (k kind) errno() unix.Errno {
	switch k {
	case nospace:
		return unix.ENOSPC
	case readonly:
		return unix.EROFS
	}
	return 0
}

// trial is one run.
type trial struct {
	b     *bench
	fault fault

	disk    *disk // power: its file system
	root    string
	watcher *writepoint.Watcher
	daemon  *lab.Daemon // nil while there is none
	dead    *lab.Daemon // killed: what it left is not tidied up
	at      atomic.Pointer[string]
	fetched int64 // bytes of layers until the work ended
	hinted  int64 // noted on disk before the work
	kept    int64 // noted on disk when the daemon was gone
}

// run makes one fault happen and checks what comes of it. It returns where the fault
// came, "" when the work was over before.
func (b *bench) run(ctx context.Context, f fault) (at string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	r := &trial{b: b, fault: f}
	defer func() {
		if p := r.at.Load(); p != nil {
			at = *p
		}
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, r.log())
			if b.opts.keep {
				fmt.Println("left in", r.root)
				return
			}
		}
		if eerr := r.end(); err == nil {
			err = eerr
		}
	}()
	if err := r.setUp(ctx); err != nil {
		return "", err
	}
	_, werr := r.strike(ctx)
	if err := r.after(ctx, werr); err != nil {
		return "", err
	}
	return "", r.check(ctx)
}

// setUp makes the state and starts the daemon, if the work is not the start.
func (r *trial) setUp(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp(r.b.dir, "run-")
	if err != nil {
		return err
	}
	r.root = filepath.Join(dir, "root")
	if r.fault.kind == power {
		if r.disk, err = newDisk(ctx, dir); err != nil {
			return err
		}
		r.root = filepath.Join(r.disk.mount, "root")
	}
	if err := r.b.copyState(ctx, r.fault.moment.state, r.root); err != nil {
		return err
	}
	if r.disk != nil {
		if err := r.disk.sync(); err != nil {
			return err
		}
	}
	if r.hinted, err = hinted(r.root, r.b.image); err != nil {
		return err
	}
	if r.watcher, err = writepoint.Watch(); err != nil {
		return err
	}
	return nil
}

// strike does the work, into which the fault comes.
func (r *trial) strike(ctx context.Context) (out output, err error) {
	m := r.fault.moment
	if err := r.b.registry.Reset(ctx); err != nil {
		return nil, err
	}
	starting := m.name == "start"
	if starting {
		r.watcher.Decide(r.root, 0, r.decide)
	}
	r.daemon, err = lab.StartDaemon(ctx, r.b.daemon(r.root, r.watcher))
	if err != nil || starting {
		return nil, err
	}
	if m.name != "idle" {
		r.watcher.Decide(r.root, r.daemon.Pid, r.decide)
	}
	out, err = m.do(ctx, r.b, r.daemon)
	if m.name == "idle" && r.fault.kind != none {
		r.note("some time after the start")
		err = r.idleFault()
	}
	s, serr := r.b.registry.Stats(ctx)
	r.fetched = s.LayerBytes
	return out, errors.Join(err, serr)
}

func (r *trial) note(at string) { r.at.CompareAndSwap(nil, &at) }

// decide is asked about each write point.
func (r *trial) decide(p writepoint.Point) writepoint.Verdict {
	if p.N < r.fault.point || r.fault.kind == none {
		return writepoint.Verdict{}
	}
	r.note(p.String())
	switch r.fault.kind {
	case kill:
		return writepoint.Verdict{Kill: true}
	case power:
		r.disk.cut()
		return writepoint.Verdict{Kill: true}
	case term:
		if p.N == r.fault.point {
			r.watcher.Signal(unix.SIGTERM)
		}
	case nospace:
		if p.Grows {
			return writepoint.Verdict{Errno: unix.ENOSPC}
		}
	case readonly:
		return writepoint.Verdict{Errno: unix.EROFS}
	}
	return writepoint.Verdict{}
}

// idleFault is the fault of a daemon that writes nothing by itself.
func (r *trial) idleFault() error {
	switch r.fault.kind {
	case power:
		r.disk.cut()
		r.daemon.Kill()
	case kill:
		r.daemon.Kill()
	case term:
		return unix.Kill(r.daemon.Pid, unix.SIGTERM)
	}
	return nil
}

// after brings the daemon back. werr is the error of the work.
func (r *trial) after(ctx context.Context, werr error) error {
	struck := r.at.Load() != nil
	if !struck {
		r.watcher.Decide(r.root, 0, nil) // the work was over before: no fault in what follows
	}
	if r.fault.kind.errno() != 0 {
		r.watcher.Decide(r.root, 0, nil) // there is room again
		if werr != nil && !strings.Contains(werr.Error(), r.fault.kind.errno().Error()) {
			return fmt.Errorf("the error does not say what is wrong (%v): %w", r.fault.kind.errno(), werr)
		}
		if r.daemon != nil {
			if r.daemon.Ended(0) {
				return fmt.Errorf("the daemon has ended: %w", werr)
			}
			return nil
		}
		return r.restart(ctx)
	}
	if werr != nil && !struck {
		return fmt.Errorf("the work failed without a fault: %w", werr)
	}
	if r.daemon != nil {
		d := r.daemon
		r.daemon, r.dead = nil, d
		switch {
		case !struck:
			if err := d.Stop(); err != nil {
				return err
			}
		case r.fault.kind == term:
			if !d.Ended(20 * time.Second) {
				return errors.New("the daemon did not end on SIGTERM")
			}
			if left, err := d.Mounts(); err != nil || len(left) > 0 {
				return fmt.Errorf("the daemon left mounts on SIGTERM: %v (%w)", left, err)
			}
		default:
			if !d.Ended(5 * time.Second) {
				lab.Logf("%s: the killed daemon waits for its own mount, which is aborted", r.fault)
			}
		}
		d.Kill()
	}
	if r.disk != nil {
		if err := r.disk.again(r.root); err != nil {
			return err
		}
	}
	var err error
	if r.kept, err = hinted(r.root, r.b.image); err != nil {
		return err
	}
	return r.restart(ctx)
}

// restart starts the daemon on what is left.
func (r *trial) restart(ctx context.Context) (err error) {
	r.daemon, err = lab.StartDaemon(ctx, r.b.daemon(r.root, nil))
	if err != nil {
		return fmt.Errorf("it does not start again: %w", err)
	}
	return nil
}

// log is the end of what the daemons said.
func (r *trial) log() string {
	data, err := os.ReadFile(r.root + ".log")
	if err != nil {
		return err.Error()
	}
	lines := slices.DeleteFunc(strings.Split(string(data), "\n"), func(l string) bool {
		return strings.Contains(l, "CDI setup error") || strings.Contains(l, "fsverity") || strings.Contains(l, "msg=\"found ")
	})
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}

// end removes all that the trial made.
func (r *trial) end() error {
	var errs []error
	for _, d := range []*lab.Daemon{r.daemon, r.dead} {
		if d != nil {
			if d == r.daemon {
				d.Kill()
			}
			errs = append(errs, d.Remove())
		}
	}
	if r.watcher != nil {
		errs = append(errs, r.watcher.Close())
	}
	if r.disk != nil {
		errs = append(errs, r.disk.remove())
	}
	if r.root != "" {
		dir := filepath.Dir(r.root)
		if r.disk != nil {
			dir = filepath.Dir(r.disk.mount)
		}
		// Nothing is deleted where something is still mounted.
		if left, err := (&lab.Daemon{Root: dir}).Mounts(); err != nil || len(left) > 0 {
			return errors.Join(append(errs, err, fmt.Errorf("mounts are left: %v", left))...)
		}
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

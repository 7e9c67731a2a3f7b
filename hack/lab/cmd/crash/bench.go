package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/writepoint"
)

// bench is what all runs share.
type bench struct {
	opts     options
	self     string // this program, which becomes the daemon
	programs lab.Programs
	image    *lab.Image
	base     string // the image's name in the registry
	registry *lab.Registry
	dir      string // of all states
	empty    map[string]bool

	seedCached bool // by the last build
}

// ttl of layers is short, so that what nobody needs is soon freed.
const ttl = time.Second

func newBench(ctx context.Context, o options) (_ *bench, err error) {
	b := &bench{opts: o}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.self, err = os.Executable(); err != nil {
		return nil, err
	}
	if b.programs, err = lab.Ours(ctx); err != nil {
		return nil, err
	}
	if err := lab.Install(ctx, "runc", "fuse3", "e2fsprogs"); err != nil {
		return nil, err
	}
	demo, err := lab.FindBase("demo")
	if err != nil {
		return nil, err
	}
	if b.image, err = lab.MakeImage(ctx, demo, lab.EStargz); err != nil {
		return nil, err
	}
	if b.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{}); err != nil {
		return nil, err
	}
	if _, err := lab.Push(ctx, b.registry.Direct, b.image); err != nil {
		return nil, err
	}
	b.base = b.registry.Link + "/" + b.image.Tag()
	cache, err := lab.CacheDir()
	if err != nil {
		return nil, err
	}
	run := filepath.Join(cache, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return nil, err
	}
	b.dir, err = os.MkdirTemp(run, "crash-")
	return b, err
}

func (b *bench) close() {
	if b.registry != nil {
		b.registry.Stop()
	}
	if b.dir != "" && !b.opts.keep {
		os.RemoveAll(b.dir)
	}
}

// daemon describes the daemon on root; w may watch it.
func (b *bench) daemon(root string, w *writepoint.Watcher) lab.DaemonOptions {
	o := lab.DaemonOptions{
		Program: b.programs.Buildkitd, Root: root, Snapshotter: "stargz", Registries: []string{b.registry.Link},
		Config:      fmt.Sprintf("[worker.oci.stargzSnapshotter]\n  resolve_result_entry_ttl_sec = %d\n", ttl/time.Second),
		Log:         root + ".log",
		LeaveMounts: true,
	}
	if w != nil {
		o.Program, o.Env = b.self, w.Env(b.programs.Buildkitd)
	}
	return o
}

// prepare makes the states and does each moment's work once without a fault.
func (b *bench) prepare(ctx context.Context, ms []*moment) error {
	for _, s := range []struct {
		name, from string
		do         func(context.Context, *bench, *lab.Daemon) (output, error)
	}{
		{stateEmpty, "", nothing},
		{stateSeeded, stateEmpty, buildSeed},
		{stateLocal, stateSeeded, export},
	} {
		root := b.stateOf(s.name)
		if err := b.copyState(ctx, s.from, root); err != nil {
			return err
		}
		if err := b.with(ctx, root, s.do); err != nil {
			return fmt.Errorf("make the state %q: %w", s.name, err)
		}
		os.Remove(root + ".log")
	}
	if err := b.baseline(ctx); err != nil {
		return fmt.Errorf("a prune without a fault: %w", err)
	}
	for _, m := range ms {
		if err := b.measure(ctx, m); err != nil {
			return fmt.Errorf("%s without a fault: %w", m.name, err)
		}
		lab.Logf("%s: %d write points, %.1f MB fetched", m.name, m.points, float64(m.bytes)/1e6)
	}
	return nil
}

func (b *bench) stateOf(name string) string { return filepath.Join(b.dir, name) }

// copyState copies a state, or makes an empty directory.
func (b *bench) copyState(ctx context.Context, name, root string) error {
	if name == "" {
		return os.MkdirAll(root, 0o755)
	}
	out, err := exec.CommandContext(ctx, "cp", "-a", "--sparse=always", b.stateOf(name), root).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy the state %q: %w: %s", name, err, out)
	}
	return nil
}

// with runs f on a daemon that ends well.
func (b *bench) with(ctx context.Context, root string, f func(context.Context, *bench, *lab.Daemon) (output, error)) error {
	d, err := lab.StartDaemon(ctx, b.daemon(root, nil))
	if err != nil {
		return err
	}
	_, err = f(ctx, b, d)
	return errors.Join(err, d.Stop(), d.Remove())
}

// baseline learns what a prune without a fault leaves, and what the seed's step asks
// the registry for though it was run before.
func (b *bench) baseline(ctx context.Context) error {
	r := &trial{b: b, fault: fault{kind: none, moment: &moment{state: stateLocal}}}
	defer r.end()
	if err := r.setUp(ctx); err != nil {
		return err
	}
	if err := r.restart(ctx); err != nil {
		return err
	}
	if err := r.clear(ctx); err != nil {
		return err
	}
	time.Sleep(ttl + 6*time.Second) // the last look of the collector
	var err error
	if b.empty, err = paths(r.root); err != nil {
		return err
	}
	for p := range b.empty {
		if e, err := os.Lstat(r.root + p); err == nil && !e.IsDir() {
			lab.Logf("a prune leaves %s", p)
		}
	}
	if err := r.daemon.Stop(); err != nil {
		return err
	}
	return r.databases()
}

// measure does a moment's work without a fault.
func (b *bench) measure(ctx context.Context, m *moment) error {
	r := &trial{b: b, fault: fault{kind: none, moment: m}}
	defer r.end()
	if err := r.setUp(ctx); err != nil {
		return err
	}
	out, err := r.strike(ctx)
	if err != nil {
		return err
	}
	m.points, m.want, m.bytes = r.watcher.Count(), out, r.fetched
	if m.redo != nil {
		if m.want, err = m.redo(ctx, b, r.daemon); err != nil {
			return err
		}
	}
	if m.name == "idle" {
		m.points = 1
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/link"
)

// training is what one unmeasured run of ours has left.
type training struct {
	dir    string // the profiles
	chunks int64  // compressed bytes that the build read
	err    error  // why there is nothing
}

// train runs a workload once on a daemon that records profiles, and keeps them.
// What went wrong is in the result: other variants are measured all the same.
func (b *bench) train(ctx context.Context, w workload) *training {
	if t := b.trained[w.id]; t != nil {
		return t
	}
	t := &training{}
	if t.err = b.record(ctx, w, t); t.err != nil {
		t.err = fmt.Errorf("record a profile of %s: %w", w.id, t.err)
		lab.Logf("%v", t.err)
	} else {
		lab.Logf("%-8s profile recorded, %.1f MB of chunks read", w.id, float64(t.chunks)/1e6)
	}
	if ctx.Err() == nil {
		b.trained[w.id] = t
	}
	return t
}

func (b *bench) record(ctx context.Context, w workload, t *training) (err error) {
	if t.dir, err = b.dir(); err != nil {
		return err
	}
	if err := b.registry.SetShape(ctx, link.Shape{}); err != nil {
		return err
	}
	opts, err := b.daemonOptions(variants[0], fmt.Sprintf("training-%s.log", w.id))
	if err != nil {
		return err
	}
	opts.Config = profileConfig(t.dir)
	if err := b.buildOnce(ctx, opts, w); err != nil {
		return err
	}
	profiles, err := readProfiles(t.dir)
	if err != nil {
		return err
	}
	if len(profiles) == 0 {
		return errors.New("the daemon has left no profile")
	}
	t.chunks, err = bytesRead(profiles)
	return err
}

// buildOnce builds a workload on a daemon that ends afterwards.
func (b *bench) buildOnce(ctx context.Context, opts lab.DaemonOptions, w workload) (err error) {
	d, err := lab.StartDaemon(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Stop(), d.Remove()) }()
	_, err = b.build(ctx, d, w)
	return err
}

// copyProfiles gives a run profiles that it may change.
func (b *bench) copyProfiles(t *training) (dir string, err error) {
	if t.err != nil {
		return "", t.err
	}
	if dir, err = b.dir(); err != nil {
		return "", err
	}
	if err := os.CopyFS(dir, os.DirFS(t.dir)); err != nil {
		return "", fmt.Errorf("copy the profiles: %w", err)
	}
	return dir, nil
}

// dir makes a directory that end removes.
func (b *bench) dir() (string, error) {
	dir, err := benchDir()
	if err == nil {
		b.dirs = append(b.dirs, dir)
	}
	return dir, err
}

// benchDir makes a directory on the disk that holds the daemons' state.
func benchDir() (string, error) {
	cache, err := lab.CacheDir()
	if err != nil {
		return "", err
	}
	run := filepath.Join(cache, "run")
	if err := os.MkdirAll(run, 0o755); err != nil {
		return "", fmt.Errorf("make a directory: %w", err)
	}
	dir, err := os.MkdirTemp(run, "bench-")
	if err != nil {
		return "", fmt.Errorf("make a directory: %w", err)
	}
	return dir, nil
}

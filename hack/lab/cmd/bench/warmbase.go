package main

import (
	"context"
	"errors"

	"github.com/moby/buildkit/identity"

	"github.com/lazykit/lazykit/hack/lab"
)

// warmDaemon returns the daemon of the baseline, whose base is extracted. It lives
// until end, so that the base is pulled once.
func (b *bench) warmDaemon(ctx context.Context, v variant) (*lab.Daemon, error) {
	if b.warm != nil {
		return b.warm, nil
	}
	opts, err := b.daemonOptions(v, v.id+".log")
	if err != nil {
		return nil, err
	}
	b.warm, err = lab.StartDaemon(ctx, opts)
	return b.warm, err
}

// warmUp builds the workload with a file that differs from all others: what it reads
// of the base is in the page cache afterwards, and no step of the next such build is
// in the daemon's cache.
func (b *bench) warmUp(ctx context.Context, d *lab.Daemon, w workload) error {
	_, err := b.build(ctx, d, w.salted())
	return err
}

// salted is the same build on a context that no other build has had.
func (w workload) salted() workload {
	files := map[string]string{"salt": identity.NewID()}
	for name, text := range w.files {
		files[name] = text
	}
	w.files = files
	return w
}

// end stops what outlives the runs, and removes their directories.
func (b *bench) end() error {
	var errs []error
	if b.warm != nil {
		// Stock leaves mounts, which Remove detaches.
		if err := b.warm.Stop(); err != nil {
			var left *lab.LeftMountsError
			if !errors.As(err, &left) {
				errs = append(errs, err)
			}
		}
		errs = append(errs, b.warm.Remove())
		b.warm = nil
	}
	errs = append(errs, removeAll(b.dirs))
	b.dirs = nil
	return errors.Join(errs...)
}

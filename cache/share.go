package cache

import (
	"context"
	"sync/atomic"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/flightcontrol"
	"github.com/moby/buildkit/util/leaseutil"
)

// Work that several callers want at the same time runs once, for as long as one of
// them waits. It runs with what the first one has, its handlers and sessions, and
// that may be not enough where another caller's would be: so an error of somebody
// else's run is no answer, and the caller runs the work itself.
func share[T any](ctx context.Context, g *flightcontrol.Group[T], key string, work func(context.Context) (T, error)) (T, error) {
	for {
		var mine atomic.Bool
		v, err := g.Do(ctx, key, func(ctx context.Context) (T, error) {
			mine.Store(true)
			return work(ctx)
		})
		if err == nil || mine.Load() || ctx.Err() != nil {
			return v, err
		}
	}
}

// alone is share for work without a result that makes snapshots or blobs: it runs
// under a temporary lease of its own, since the callers' leases may end before it
// does. What is to stay is in a record's lease when the work ends.
func (m *Manager) alone(ctx context.Context, key string, work func(context.Context) error) error {
	_, err := share(ctx, &m.filling, key, func(ctx context.Context) (struct{}, error) {
		l, lctx, err := leaseutil.NewLease(ctx, m.leases, leaseutil.MakeTemporary)
		if err != nil {
			return struct{}{}, err
		}
		defer func() {
			if err := l.Discard(ctx); err != nil {
				bklog.G(ctx).WithError(err).Warn("cache: a temporary lease stays until it expires")
			}
		}()
		return struct{}{}, work(lctx)
	})
	return err
}

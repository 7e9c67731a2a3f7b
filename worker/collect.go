package worker

import (
	"context"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/moby/buildkit/util/bklog"
)

// collector frees the blobs and TOCs that no snapshot needs any more, after each
// garbage collection of the database. A layer stays open for a while after its
// last snapshot, and what an open layer has is not freed: so it looks again once
// that while is over.
type collector struct {
	collect func(context.Context) (freed int64, err error)
	again   time.Duration // a little more than a layer stays open

	ctx    context.Context // of the second looks
	cancel context.CancelFunc
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		timer  *time.Timer // of the look to come; nil: none
		closed bool
	}
}

func newCollector(ctx context.Context, collect func(context.Context) (int64, error), again time.Duration) *collector {
	c := &collector{collect: collect, again: again}
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return c
}

// run frees what can be freed now, and looks again later.
func (c *collector) run(ctx context.Context) error {
	c.schedule()
	return c.look(ctx)
}

func (c *collector) look(ctx context.Context) error {
	freed, err := c.collect(ctx)
	if freed > 0 {
		bklog.G(ctx).Debugf("freed %d bytes of lazy layers that no snapshot needs", freed)
	}
	return err
}

// schedule puts the look to come off until after the last collection.
func (c *collector) schedule() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return
	}
	c.stopLocked()
	c.wg.Add(1)
	c.mu.timer = time.AfterFunc(c.again, func() {
		defer c.wg.Done()
		if err := c.look(c.ctx); err != nil && c.ctx.Err() == nil {
			bklog.L.WithError(err).Warn("can't free lazy layers that no snapshot needs")
		}
	})
}

func (c *collector) stopLocked() {
	if c.mu.timer != nil && c.mu.timer.Stop() {
		c.wg.Done()
	}
	c.mu.timer = nil
}

// close ends a look under way and waits for it.
func (c *collector) close() {
	c.mu.Lock()
	c.mu.closed = true
	c.stopLocked()
	c.mu.Unlock()
	c.cancel()
	c.wg.Wait()
}

// garbageCollect removes what no lease, record or snapshot refers to, then what
// the snapshotter kept for it.
func (p *parts) garbageCollect(ctx context.Context) (gc.Stats, error) {
	stats, err := p.dbs.containerd.GarbageCollect(ctx)
	if err != nil || p.storage.collect == nil {
		return stats, err
	}
	return stats, p.storage.collect(ctx)
}

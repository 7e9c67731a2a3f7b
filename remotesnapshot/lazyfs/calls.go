package lazyfs

import (
	"context"
	"sync"
)

// calls shares work between those who want the same at the same time. Work goes
// on as long as somebody waits for it, whoever came first.
type calls struct {
	ctx context.Context // of all work
	wg  sync.WaitGroup

	mu struct {
		sync.Mutex
		closed  bool
		running map[key]*call
	}
}

type call struct {
	cancel  context.CancelFunc
	waiters int // guarded by calls.mu
	done    chan struct{}
	err     error // final when done is closed
}

func newCalls(ctx context.Context) *calls {
	c := &calls{ctx: ctx}
	c.mu.running = make(map[key]*call)
	return c
}

// do runs work, or waits for the same work that runs already.
func (c *calls) do(ctx context.Context, k key, work func(context.Context) error) error {
	w, err := c.join(k, work)
	if err != nil {
		return err
	}
	defer c.leave(k, w)
	select {
	case <-w.done:
		return w.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *calls) join(k key, work func(context.Context) error) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, ErrClosed
	}
	if w := c.mu.running[k]; w != nil {
		w.waiters++
		return w, nil
	}
	ctx, cancel := context.WithCancel(c.ctx)
	w := &call{cancel: cancel, waiters: 1, done: make(chan struct{})}
	c.mu.running[k] = w
	c.wg.Go(func() {
		w.err = work(ctx)
		c.finish(k, w)
	})
	return w, nil
}

func (c *calls) leave(k key, w *call) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.waiters--; w.waiters == 0 {
		c.forgetLocked(k, w)
		w.cancel()
	}
}

// forgetLocked lets later callers start anew instead of joining what has ended.
func (c *calls) forgetLocked(k key, w *call) {
	if c.mu.running[k] == w {
		delete(c.mu.running, k)
	}
}

func (c *calls) finish(k key, w *call) {
	c.mu.Lock()
	c.forgetLocked(k, w)
	c.mu.Unlock()
	close(w.done)
}

// close refuses new work and waits for what runs. End ctx before.
func (c *calls) close() {
	c.mu.Lock()
	c.mu.closed = true
	c.mu.Unlock()
	c.wg.Wait()
}

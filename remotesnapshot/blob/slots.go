package blob

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// slots are the connections that may be used to one host at a time. The waiting
// one of the highest priority is served first, then the one whose flight began first.
// Some are kept for higher priorities, so that a blocked read never waits for a
// background request to end.
type slots struct {
	n  int
	mu struct {
		sync.Mutex
		busy  int
		queue []*ticket
	}
}

type ticket struct {
	prio  *atomic.Int32 // may rise while the ticket waits; call kick then
	turn  int64         // lower ones first among equals
	grant chan struct{} // closed when granted
}

func (t *ticket) before(o *ticket) bool {
	if p, q := t.prio.Load(), o.prio.Load(); p != q {
		return p > q
	}
	return t.turn < o.turn
}

func newSlots(n int) *slots { return &slots{n: max(n, 1)} }

// limit is how many connections may be busy when p gets one.
func (s *slots) limit(p Priority) int {
	kept := 0
	switch p {
	case Background:
		kept = max(1, s.n*3/10)
	case Prefetch:
		kept = max(1, s.n/10)
	}
	return s.n - min(kept, s.n-1)
}

// acquire waits for a connection. The caller releases it unless an error is returned.
func (s *slots) acquire(ctx context.Context, prio *atomic.Int32, turn int64) error {
	t := &ticket{prio: prio, turn: turn, grant: make(chan struct{})}
	s.mu.Lock()
	s.mu.queue = append(s.mu.queue, t)
	s.grantLocked()
	s.mu.Unlock()
	select {
	case <-t.grant:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	i := slices.Index(s.mu.queue, t)
	if i >= 0 {
		s.mu.queue = slices.Delete(s.mu.queue, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 { // granted in the meantime
		s.release()
	}
	return context.Cause(ctx)
}

// release gives a connection back.
func (s *slots) release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.busy--
	s.grantLocked()
}

// kick looks at the priorities of those who wait again.
func (s *slots) kick() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.grantLocked()
}

func (s *slots) grantLocked() {
	for len(s.mu.queue) > 0 {
		best := 0
		for i, t := range s.mu.queue {
			if t.before(s.mu.queue[best]) {
				best = i
			}
		}
		t := s.mu.queue[best]
		// A lower priority has a lower limit: nobody else fits if this one doesn't.
		if s.mu.busy >= s.limit(Priority(t.prio.Load())) {
			return
		}
		s.mu.busy++
		s.mu.queue = slices.Delete(s.mu.queue, best, best+1)
		close(t.grant)
	}
}

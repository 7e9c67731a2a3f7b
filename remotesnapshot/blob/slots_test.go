package blob

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func prio(p Priority) *atomic.Int32 {
	v := new(atomic.Int32)
	v.Store(int32(p))
	return v
}

func (s *slots) waiting() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.mu.queue)
}

func TestSlotsKeepSomeForBlockedReads(t *testing.T) {
	for _, tc := range []struct{ n, background, prefetch, blocked int }{
		{1, 1, 1, 1}, {2, 1, 1, 2}, {4, 3, 3, 4}, {10, 7, 9, 10}, {20, 14, 18, 20},
	} {
		s := newSlots(tc.n)
		require.Equal(t, tc.background, s.limit(Background))
		require.Equal(t, tc.prefetch, s.limit(Prefetch))
		require.Equal(t, tc.blocked, s.limit(Blocked))
	}
}

func TestSlotsServeTheHighestPriorityFirst(t *testing.T) {
	s := newSlots(1)
	ctx := context.Background()
	require.NoError(t, s.acquire(ctx, prio(Blocked), 0))
	order := make(chan string, 4)
	raised := prio(Background)
	for i, w := range []struct {
		name string
		p    *atomic.Int32
	}{{"background", prio(Background)}, {"raised", raised}, {"blocked 1", prio(Blocked)}, {"blocked 2", prio(Blocked)}} {
		go func() {
			if s.acquire(ctx, w.p, int64(-i)) == nil {
				order <- w.name
				s.release()
			}
		}()
		require.Eventually(t, func() bool { return s.waiting() == i+1 }, 5e9, 1e5)
	}
	raised.Store(int32(Blocked))
	s.kick()
	require.Equal(t, 4, s.waiting())
	s.release()
	for _, want := range []string{"blocked 2", "blocked 1", "raised", "background"} {
		require.Equal(t, want, <-order)
	}
}

func TestSlotsForgetThoseWhoLeave(t *testing.T) {
	s := newSlots(1)
	require.NoError(t, s.acquire(context.Background(), prio(Blocked), 0))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, s.acquire(ctx, prio(Blocked), 0), context.Canceled)
	require.Zero(t, s.waiting())
	s.release()
	require.NoError(t, s.acquire(context.Background(), prio(Background), 0))
}

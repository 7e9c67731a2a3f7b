package blob_test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// Readers, leavers, droppers and a whole fetch at once, on a registry that does
// everything wrong that one can: nobody gets wrong bytes, an error, or stuck.
func TestChaos(t *testing.T) {
	r := newRig(t, 6*mib)
	r.opts.RequestSize = 512 * kib
	r.opts.Connections = 4
	r.opts.StallTimeout = 100 * time.Millisecond
	r.opts.HeaderTimeout = time.Second
	r.opts.FlushInterval = 5 * time.Millisecond
	r.opts.RetryAfterMax = 10 * time.Millisecond
	r.opts.GiveUp = 30 * time.Second
	r.reg.RequireToken("user", "secret", 300*time.Millisecond)
	r.reg.Redirect(100 * time.Millisecond)
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 40 {
		f := blobtest.Fault{Skip: rnd.IntN(100), Times: 1 + rnd.IntN(2), After: rnd.Int64N(200 * kib)}
		switch rnd.IntN(5) {
		case 0:
			f.Status = []int{500, 502, 503, 429, 408}[rnd.IntN(5)]
			f.RetryAfter = "1"
		case 1:
			f.Cut = true
		case 2:
			f.Stall = true
		case 3:
			f.Hangup = true
		case 4:
			f.ContentRange = "bytes 1-2/3"
		}
		r.reg.Fault(f)
	}
	b := r.open()
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second)
	defer cancel()
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(3, uint64(i)))
			for range 25 {
				off, n := rnd.IntN(len(r.data)), 1+rnd.IntN(200_000)
				switch rnd.IntN(6) {
				case 0: // leaves early
					short, cancel := context.WithTimeout(ctx, time.Duration(rnd.IntN(5))*time.Millisecond)
					b.Fetch(short, blob.Priority(rnd.IntN(3)), int64(off), int64(n))
					cancel()
				case 1:
					b.Drop(int64(off), int64(n/4))
				case 2:
					_, _, err := b.Tail(ctx, int64(n))
					require.NoError(t, err)
				default:
					r.readsCtx(ctx, b, blob.Priority(rnd.IntN(3)), off, n)
				}
			}
		})
	}
	wg.Go(func() { require.NoError(t, b.Complete(ctx, blob.Background)) })
	wg.Go(func() {
		for i := range 6 {
			time.Sleep(50 * time.Millisecond)
			r.reg.IgnoreRange(i%3 == 0)
		}
	})
	wg.Wait()
	require.NoError(t, b.Complete(ctx, blob.Blocked))
	r.fileIsRight(b)
	require.Zero(t, blob.Waiting(b))
	require.Zero(t, blob.Flights(b))
	r.restart()
	r.fileIsRight(r.open())
}

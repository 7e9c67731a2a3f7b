package blob_test

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

func TestReadFetchesOnlyWhatIsMissing(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	require.Zero(t, b.Size())
	r.reads(b, blob.Blocked, 100_000, 50_000)
	require.EqualValues(t, 4*mib, b.Size())
	require.EqualValues(t, 50_000, b.Fetched())
	r.reads(b, blob.Blocked, 100_000, 50_000) // from disk
	r.reads(b, blob.Blocked, 110_000, 1)
	require.Equal(t, 1, r.reg.Requests())
	r.reads(b, blob.Blocked, 90_000, 100_000) // both sides of what is there
	require.Equal(t, 3, r.reg.Requests())
	require.EqualValues(t, 100_000, r.reg.Bytes(), "nothing twice")
	require.EqualValues(t, 100_000, b.Fetched())
	// A read is answered with its last byte; its request is counted when it has ended.
	eventually(t, "the last request has ended", func() bool { return r.store.Stats().TotalBytes() >= 100_000 })
	require.EqualValues(t, 3, r.store.Stats().Requests[blob.KindRange])
	require.EqualValues(t, 100_000, r.store.Stats().TotalBytes())
}

func TestReadAtTheEnd(t *testing.T) {
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("size known %v", known), func(t *testing.T) {
			r := newRig(t, 1000)
			b := r.open()
			if known {
				r.reads(b, blob.Blocked, 0, 10)
			}
			r.reads(b, blob.Blocked, 990, 100)
			r.reads(b, blob.Blocked, 1000, 1)
			r.reads(b, blob.Blocked, 5000, 10)
			require.EqualValues(t, 1000, b.Size())
		})
	}
}

func TestReadBehindTheEndFirst(t *testing.T) {
	r := newRig(t, 1000)
	b := r.open()
	r.reads(b, blob.Blocked, 5000, 10)
	require.EqualValues(t, 1000, b.Size())
	r.reads(b, blob.Blocked, 0, 1000)
}

func TestEmptyBlob(t *testing.T) {
	for _, first := range []string{"tail", "read", "complete"} {
		t.Run(first, func(t *testing.T) {
			r := newRig(t, 0)
			b := r.open()
			ctx := context.Background()
			switch first {
			case "tail":
				tail, size, err := b.Tail(ctx, 10)
				require.NoError(t, err)
				require.Empty(t, tail)
				require.Zero(t, size)
			case "read":
				r.reads(b, blob.Blocked, 0, 10)
			}
			require.NoError(t, b.Complete(ctx, blob.Background))
			r.fileIsRight(b)
		})
	}
}

func TestBadArguments(t *testing.T) {
	r := newRig(t, 10)
	b := r.open()
	ctx := context.Background()
	_, err := b.ReadAt(ctx, blob.Blocked, make([]byte, 1), -1)
	require.ErrorContains(t, err, "negative offset -1")
	_, _, err = b.Tail(ctx, 0)
	require.Error(t, err)
	require.Error(t, b.Fetch(ctx, blob.Blocked, 0, -1))
	_, err = r.store.Open("sha256:short", blob.Origin{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	_, err = blob.NewStore(blob.Options{})
	require.ErrorIs(t, err, errdefs.ErrInvalidArgument)
	require.Zero(t, r.reg.Requests())
}

func TestTail(t *testing.T) {
	for _, tc := range []struct {
		name      string
		n         int64
		behave    func(*blobtest.Registry)
		requests  int
		bytes     int64
		noSuffix2 int // requests of a second blob's tail on the same host
	}{
		{name: "one request", n: 1000, requests: 1, bytes: 1000, noSuffix2: 1},
		{name: "longer than the blob", n: 1 << 30, requests: 1, bytes: mib, noSuffix2: 1},
		{name: "suffix 416", n: 1000, behave: func(r *blobtest.Registry) { r.RefuseSuffix(416) }, requests: 3, bytes: 1001, noSuffix2: 2},
		{name: "suffix 501", n: 1000, behave: func(r *blobtest.Registry) { r.RefuseSuffix(501) }, requests: 3, bytes: 1001, noSuffix2: 2},
		{name: "suffix 405", n: 1000, behave: func(r *blobtest.Registry) { r.RefuseSuffix(405) }, requests: 3, bytes: 1001, noSuffix2: 2},
		{name: "range ignored", n: 1000, behave: func(r *blobtest.Registry) { r.IgnoreRange(true) }, requests: 1, bytes: mib, noSuffix2: 1},
		{name: "total hidden", n: 1000, behave: func(r *blobtest.Registry) { r.HideTotal(true) }, requests: 1, bytes: 1000, noSuffix2: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, mib)
			if tc.behave != nil {
				tc.behave(r.reg)
			}
			check := func(b *blob.Blob) {
				t.Helper()
				tail, size, err := b.Tail(context.Background(), tc.n)
				require.NoError(t, err)
				require.EqualValues(t, len(r.data), size)
				require.Equal(t, r.data[max(0, size-tc.n):], tail)
			}
			b := r.open()
			check(b)
			require.Equal(t, tc.requests, r.reg.Requests())
			check(b) // nothing is missing now
			require.Equal(t, tc.requests, r.reg.Requests())
			eventually(t, "all bytes sent", func() bool { return r.reg.Bytes() == tc.bytes })
			r.restart()
			check(r.open())
			require.Zero(t, r.reg.Requests(), "known from the run before")

			r.data = randomBytes(mib + 1)
			r.dgst = r.reg.AddBlob(r.data)
			b2 := r.open()
			check(b2)
			if tc.noSuffix2 != tc.requests {
				r.reg.Reset()
				r.data = randomBytes(mib + 2)
				r.dgst = r.reg.AddBlob(r.data)
				check(r.open())
				require.Equal(t, tc.noSuffix2, r.reg.Requests(), "the host's refusal is remembered")
			}
		})
	}
}

func TestReadersShareRequests(t *testing.T) {
	r := newRig(t, mib)
	r.reg.SetLatency(50 * time.Millisecond)
	b := r.open()
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if i%2 == 0 {
				r.reads(b, blob.Blocked, 1000*i, 100_000)
				return
			}
			_, _, err := b.Tail(context.Background(), 5000)
			require.NoError(t, err)
		})
	}
	wg.Wait()
	require.EqualValues(t, b.Fetched(), r.reg.Bytes(), "no byte was fetched twice")
	require.LessOrEqual(t, r.reg.Requests(), 12)
}

func TestManyReaders(t *testing.T) {
	r := newRig(t, 8*mib)
	r.reg.SetLatency(time.Millisecond)
	b := r.open()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(1, uint64(i)))
			for range 30 {
				n := 1 + rnd.IntN(100_000)
				r.reads(b, blob.Priority(rnd.IntN(3)), rnd.IntN(len(r.data)), n)
			}
		})
	}
	wg.Wait()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	r.fileIsRight(b)
	// A blocked read may cut a running request short: what was on the wire then is
	// sent twice. Anything beyond that is a mistake of the planner.
	require.Less(t, r.reg.Bytes(), int64(len(r.data))*13/10)
}

func TestBytesAreUsableAsTheyArrive(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1) // the size
	r.reg.Fault(blobtest.Fault{Stall: true, After: 64 * kib})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Fetch(ctx, blob.Background, 0, 8*mib) }()
	eventually(t, "first bytes", func() bool { return b.Fetched() >= 64*kib })
	r.reads(b, blob.Blocked, 0, 4*kib) // the request for 8 MiB hangs
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	require.Equal(t, 2, r.reg.Requests())
}

// A part of a range that was started is answered before the whole, by its request.
func TestStart(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1) // the size
	r.reg.Fault(blobtest.Fault{Stall: true, After: 64 * kib})
	wait := b.Start(blob.Blocked, blob.Range{Size: 8 * mib})
	r.reads(b, blob.Blocked, 32*kib, 4*kib)
	require.Equal(t, 2, r.reg.Requests())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	require.ErrorIs(t, wait(ctx), context.Canceled)
	eventually(t, "no flight is left", func() bool { return blob.Flights(b) == 0 })

	require.NoError(t, b.Start(blob.Blocked, blob.Range{Size: 1})(ctx), "it is there")
	require.Error(t, b.Start(blob.Blocked, blob.Range{Off: -1, Size: 1})(ctx))
}

// Ranges that were started together are requests of their own, though they lie side by
// side: what is in one does not wait for what is in another.
func TestStartedRangesAreApart(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1) // the size
	r.reg.Reset()
	wait := b.Start(blob.Blocked, blob.Range{Off: 6 * mib, Size: mib}, blob.Range{Off: 5 * mib, Size: mib}, blob.Range{Off: 7 * mib, Size: mib})
	r.reads(b, blob.Blocked, 6*mib, 4*kib)
	require.NoError(t, wait(context.Background()))
	require.Equal(t, 3, r.reg.Requests())
	require.EqualValues(t, 3*mib, r.reg.Bytes())

	r.reg.Reset()
	require.Error(t, b.Start(blob.Blocked, blob.Range{Off: mib, Size: mib}, blob.Range{Off: -1, Size: 1})(context.Background()))
	eventually(t, "no flight is left", func() bool { return blob.Flights(b) == 0 })
}

// A request that has not begun to answer is not cut short for a part of its range
// that it will bring soon, by what the host has shown.
func TestStartedRangeIsNotCut(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	r.reg.SetLatency(200 * time.Millisecond) // in which loopback brings all of it
	r.reads(b, blob.Blocked, 0, mib)
	r.reg.Reset()
	wait := b.Start(blob.Prefetch, blob.Range{Off: mib, Size: 7 * mib})
	eventually(t, "request", func() bool { return len(r.reg.Log()) > 0 })
	r.reads(b, blob.Blocked, 5*mib, 4*kib)
	require.NoError(t, wait(context.Background()))
	require.Equal(t, 1, r.reg.Requests())
}

func TestLargeRangesAreSplit(t *testing.T) {
	r := newRig(t, 8*mib)
	r.opts.RequestSize = mib
	r.reg.SetLatency(200 * time.Millisecond)
	b := r.open()
	start := time.Now()
	require.NoError(t, b.Fetch(context.Background(), blob.Blocked, 0, 8*mib))
	require.Equal(t, 8, r.reg.Requests())
	require.Less(t, time.Since(start), 6*200*time.Millisecond, "the requests run in parallel")
	require.EqualValues(t, 8*mib, r.reg.Bytes())
}

func TestWaitingRangesAreJoined(t *testing.T) {
	r := newRig(t, 4*mib)
	r.opts.Connections = 1
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1)
	r.reg.Reset()
	stall := r.reg.Fault(blobtest.Fault{Stall: true, Times: 1})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go b.Fetch(ctx, blob.Blocked, 3*mib, 100) // keeps the only connection
	eventually(t, "stall", func() bool { return stall.Hits() == 1 })
	var wg sync.WaitGroup
	for i := range 10 { // neighbours with gaps of 10,000 bytes
		wg.Go(func() { r.reads(b, blob.Blocked, mib+60_000*i, 50_000) })
	}
	eventually(t, "queue", func() bool { return blob.Waiting(b) == 11 })
	cancel()
	wg.Wait()
	for _, q := range r.reg.Blobs() {
		t.Log(q.Range, q.Status, q.Bytes)
	}
	require.Equal(t, 2, r.reg.Requests(), "ten reads, one request")
}

func TestBlockedReadOvertakes(t *testing.T) {
	r := newRig(t, 12*mib)
	r.opts.RequestSize = 2 * mib
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1)
	r.reg.SetBandwidth(8*mib, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Complete(ctx, blob.Background) }()
	eventually(t, "the fetch has begun", func() bool { return r.reg.Requests() >= 5 })
	start := time.Now()
	r.reads(b, blob.Blocked, 11*mib, 50_000) // in a range that is queued
	r.reads(b, blob.Blocked, 2*mib+1900*kib, 50_000)
	require.Less(t, time.Since(start), 700*time.Millisecond)
	require.Less(t, b.Fetched(), int64(9*mib), "the whole fetch is far from done")
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
}

func TestCancelledReadEndsItsRequest(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1)
	stall := r.reg.Fault(blobtest.Fault{Stall: true})
	ctx, cancel := context.WithCancelCause(context.Background())
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(ctx, blob.Blocked, make([]byte, mib), mib)
		done <- err
	}()
	eventually(t, "stall", func() bool { return stall.Hits() == 1 })
	cause := fmt.Errorf("the build has ended")
	cancel(cause)
	require.ErrorIs(t, <-done, cause)
	eventually(t, "no flight is left", func() bool { return blob.Flights(b) == 0 })
	stall.Clear()
	r.reads(b, blob.Blocked, mib, mib)
}

func TestOneOfTwoReadersLeaves(t *testing.T) {
	r := newRig(t, 8*mib)
	r.reg.SetLatency(100 * time.Millisecond)
	b := r.open()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Fetch(ctx, blob.Blocked, 0, 100_000) }()
	eventually(t, "request", func() bool { return len(r.reg.Log()) == 1 })
	var wg sync.WaitGroup
	wg.Go(func() { r.reads(b, blob.Blocked, 50_000, 50_000) })
	eventually(t, "both wait", func() bool { return blob.Waiting(b) == 2 })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	wg.Wait()
	require.Equal(t, 1, r.reg.Requests())
}

func TestDrop(t *testing.T) {
	r := newRig(t, mib)
	flip := r.reg.Fault(blobtest.Fault{Flip: true, At: 5000, Times: 1})
	b := r.open()
	p := make([]byte, 10_000)
	_, err := b.ReadAt(context.Background(), blob.Blocked, p, 0)
	require.NoError(t, err)
	require.NotEqual(t, r.data[:10_000], p)
	require.Equal(t, 1, flip.Hits())
	b.Drop(4000, 2000)
	require.EqualValues(t, 8000, b.Fetched())
	r.reads(b, blob.Blocked, 0, 10_000)
	require.EqualValues(t, 12_000, r.reg.Bytes(), "only the dropped part again")
	require.EqualValues(t, 2000, r.store.Stats().Dropped)
}

func TestClosed(t *testing.T) {
	r := newRig(t, mib)
	stall := r.reg.Fault(blobtest.Fault{Stall: true})
	b, b2 := r.open(), r.open()
	require.NoError(t, b2.Close())
	require.NoError(t, b2.Close())
	_, err := b2.ReadAt(context.Background(), blob.Blocked, make([]byte, 1), 0)
	require.ErrorIs(t, err, blob.ErrClosed)
	require.ErrorIs(t, r.store.Remove(r.dgst), errdefs.ErrFailedPrecondition)
	done := make(chan error)
	go func() {
		_, err := b.ReadAt(context.Background(), blob.Blocked, make([]byte, 1), 0)
		done <- err
	}()
	eventually(t, "stall", func() bool { return stall.Hits() == 1 })
	start := time.Now()
	require.NoError(t, r.store.Close())
	require.ErrorIs(t, <-done, blob.ErrClosed)
	require.Less(t, time.Since(start), 2*time.Second)
	_, err = r.store.Open(r.dgst, blob.Origin{})
	require.ErrorIs(t, err, blob.ErrClosed)
	require.NoError(t, b.Close())
}

func TestReaderIsEOFAware(t *testing.T) {
	r := newRig(t, 300_000)
	b := r.open()
	got, err := io.ReadAll(io.NewSectionReader(readerAt{b}, 0, 1<<40))
	require.NoError(t, err)
	require.Equal(t, r.data, got)
}

type readerAt struct{ b *blob.Blob }

func (r readerAt) ReadAt(p []byte, off int64) (int, error) {
	return r.b.ReadAt(context.Background(), blob.Blocked, p, off)
}

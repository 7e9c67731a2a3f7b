package layer

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazykit/lazykit/estargz"
)

// ErrClosed is what requests get once a layer is closed.
var ErrClosed = errors.New("layer is closed")

// Layer is one lazily readable layer. Safe for concurrent use.
type Layer struct {
	pool *Pool
	blob Blob
	toc  *estargz.TOC
	id   uint64 // names the layer in the pool's cache

	holds  atomic.Int64 // 0: unmapped
	ctx    context.Context
	cancel context.CancelFunc

	goroutines struct {
		sync.Mutex
		closed bool
		sync.WaitGroup
	}
	flights struct {
		sync.Mutex
		of map[uint32]*flight // by member
	}
	windows   *windows
	wishes    wishes
	python    python
	siblings  atomic.Pointer[func() []*Layer]
	recorders recorders
	known     atomic.Int32 // > 0: what will be read is known; misses that may be
	replaying atomic.Pointer[unpacking]
	ahead     readAhead
	stats     stats

	walks    walks
	scanning atomic.Bool  // what fetches ahead of scans is under way
	scanned  atomic.Int64 // when a scan read last, Unix nanoseconds
	// scannedRoot is the directory that it goes through.
	scannedRoot atomic.Uint32
	// scannedBytes is what that scan has passed.
	scannedBytes atomic.Int64
	unpacking    atomic.Int32 // goroutines that decompress ahead of them
	taker        atomic.Pointer[Taker]

	prefetchOnce sync.Once
	closeOnce    sync.Once
}

// Open makes a Layer of a TOC and its blob, and owns both from then on. Close it.
func Open(p *Pool, b Blob, toc *estargz.TOC) *Layer {
	l := &Layer{pool: p, blob: b, toc: toc, id: p.lastID.Add(1)}
	// The layer's own life, not a caller's: it ends with Close.
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.holds.Store(1)
	l.flights.of = make(map[uint32]*flight)
	l.windows = newWindows(toc, p.opts.Window, func() time.Duration {
		_, wait := b.Link()
		return wait
	})
	l.walks.toc = toc
	return l
}

// Acquire holds the layer for the time of one request: the TOC stays mapped
// until Release. It fails with ErrClosed once Close was called.
func (l *Layer) Acquire() (*estargz.TOC, error) {
	for l.ctx.Err() == nil {
		n := l.holds.Load()
		if n == 0 {
			break
		}
		if l.holds.CompareAndSwap(n, n+1) {
			return l.toc, nil
		}
	}
	return nil, fmt.Errorf("layer %s: %w", l.blob.Digest(), ErrClosed)
}

// Release ends a hold of Acquire.
func (l *Layer) Release() {
	switch n := l.holds.Add(-1); {
	case n < 0:
		panic("layer: released twice")
	case n == 0:
		l.pool.cache.dropLayer(l.id)
		l.stats.fail(l.toc.Close())
		l.stats.fail(l.blob.Close())
	}
}

// Close ends the reads under way, waits for the layer's own work and gives up
// the first hold. It may be called more than once.
func (l *Layer) Close() {
	l.closeOnce.Do(func() {
		l.goroutines.Lock()
		l.goroutines.closed = true
		l.goroutines.Unlock()
		l.cancel()
		l.goroutines.Wait()
		l.Release()
	})
}

// start runs f in a goroutine that Close waits for. False when the layer is closed.
func (l *Layer) start(f func()) bool {
	l.goroutines.Lock()
	defer l.goroutines.Unlock()
	if l.goroutines.closed {
		return false
	}
	l.goroutines.Go(func() { l.guarded(f) })
	return true
}

// guarded runs work that nobody waits for. The TOC is a mapped file: one that the
// disk does not give back is a fault, which ends this work and not the process.
func (l *Layer) guarded(f func()) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		v := recover()
		if fault, ok := v.(interface{ Addr() uintptr }); ok { // runtime.Error of a fault
			l.stats.fail(fmt.Errorf("layer %s: its table of contents can't be read: %v", l.blob.Digest(), fault))
			return
		}
		if v != nil {
			panic(v)
		}
	}()
	f()
}

// Check asks whether the rest of the blob can still be had, with one small
// request; nothing is asked for a local layer.
func (l *Layer) Check(ctx context.Context) error {
	if l.blob.Local() {
		return nil
	}
	if err := l.blob.Check(ctx); err != nil {
		return fmt.Errorf("layer %s: %w", l.blob.Digest(), err)
	}
	return nil
}

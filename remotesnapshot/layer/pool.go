package layer

import (
	"context"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Options of a Pool. Zero values are the documented defaults.
type Options struct {
	// CacheBytes bounds the decompressed chunks kept in memory; 0: 16 MiB. The
	// kernel keeps the pages that were read, so a chunk is of use here only while
	// a program reads the rest of it.
	CacheBytes int64
	// DecodeBytes bounds the memory of members that are being decompressed,
	// all layers together; 0: 16 MiB. A member that needs more goes alone.
	DecodeBytes int64
	// ReadTimeout ends a read that waits for its bytes; 0: 5 minutes, below 0: never.
	ReadTimeout time.Duration
	// PrefetchSize is how much of the beginning of a layer is fetched ahead when
	// the layer has no landmark that says it; 0: nothing.
	PrefetchSize int64
	// Window bounds how much one request asks for around a member that somebody
	// waits for; 0: 4 MiB, below 0: the member alone.
	Window int64
	// BackgroundFetch makes each layer local in the end, in the pauses between reads.
	BackgroundFetch bool
	// IdleTime is how long a layer has not been read when background fetch goes
	// on; 0: 1 second.
	IdleTime time.Duration
}

func (o Options) withDefaults() Options {
	setDefault(&o.CacheBytes, 16<<20)
	setDefault(&o.DecodeBytes, 16<<20)
	setDefault(&o.ReadTimeout, 5*time.Minute)
	setDefault(&o.Window, 4<<20)
	setDefault(&o.IdleTime, time.Second)
	return o
}

func setDefault[T int64 | time.Duration](v *T, def T) {
	if *v == 0 {
		*v = def
	}
}

// Pool is what the layers of a daemon share. Safe for concurrent use.
type Pool struct {
	opts   Options
	mem    memory
	cache  *cache
	budget *semaphore.Weighted
	lastID atomic.Uint64
}

// NewPool makes a Pool; layers get it from Open.
func NewPool(opts Options) *Pool {
	opts = opts.withDefaults()
	return &Pool{
		opts:   opts,
		cache:  newCache(opts.CacheBytes),
		budget: semaphore.NewWeighted(opts.DecodeBytes),
	}
}

// Close gives memory back. Call it when all layers are closed.
func (p *Pool) Close() { p.mem.releaseSpare() }

// Memory is the bytes of chunk memory in use or kept for use at this moment,
// outside of Go's heap.
func (p *Pool) Memory() int64 { return p.mem.mapped.Load() }

// reserve waits until n bytes of the budget are free. Everything is free when
// nobody decompresses, so what needs more than the whole budget goes alone.
func (p *Pool) reserve(ctx context.Context, n int64) (release func(), err error) {
	n = min(n, p.opts.DecodeBytes)
	if err := p.budget.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { p.budget.Release(n) }, nil
}

package layer

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/semaphore"
)

// Options of a Pool. Zero values are the documented defaults.
type Options struct {
	// CacheBytes bounds the decompressed chunks kept in memory; 0: 32 MiB. They
	// are forgotten when they were not used for a second: what was read is in the
	// kernel's page cache.
	CacheBytes int64
	// DecodeBytes bounds the memory of members that are being decompressed,
	// all layers together; 0: 16 MiB. Of members that need more, or take long,
	// there is one at a time, beside the others.
	DecodeBytes int64
	// ReadTimeout ends a read that waits for its bytes, also when some of them
	// arrive now and then; 0: 15 minutes, below 0: never. It should be more than the
	// blob's own limit, whose error says more.
	ReadTimeout time.Duration
	// PrefetchSize is how much of the beginning of a layer is fetched ahead when
	// the layer has no landmark that says it; 0: nothing.
	PrefetchSize int64
	// Window bounds how much one request asks for around a member that somebody
	// waits for; 0: 8 MiB, below 0: the member alone.
	Window int64
	// BackgroundFetch makes each layer local in the end, in the pauses between reads.
	BackgroundFetch bool
	// IdleTime is how long a layer has not been read when background fetch goes
	// on; 0: 1 second.
	IdleTime time.Duration
}

func (o Options) withDefaults() Options {
	setDefault(&o.CacheBytes, 32<<20)
	setDefault(&o.DecodeBytes, 16<<20)
	setDefault(&o.ReadTimeout, 15*time.Minute)
	setDefault(&o.Window, 8<<20)
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
	long   *semaphore.Weighted // one: see isLong
	lastID atomic.Uint64
	// scanned is when a scan read last in any layer, Unix nanoseconds.
	scanned atomic.Int64

	expiry struct {
		sync.Mutex
		closed  bool
		running bool
		stop    chan struct{}
		sync.WaitGroup
	}
}

// NewPool makes a Pool; layers get it from Open.
func NewPool(opts Options) *Pool {
	opts = opts.withDefaults()
	p := &Pool{
		opts:   opts,
		cache:  newCache(opts.CacheBytes),
		budget: semaphore.NewWeighted(opts.DecodeBytes),
		long:   semaphore.NewWeighted(1),
	}
	p.expiry.stop = make(chan struct{})
	return p
}

// Close gives memory back. Call it when all layers are closed. Closing
// twice does nothing.
func (p *Pool) Close() {
	p.expiry.Lock()
	if !p.expiry.closed {
		p.expiry.closed = true
		close(p.expiry.stop)
	}
	p.expiry.Unlock()
	p.expiry.Wait()
	p.mem.releaseSpare(true)
}

// keep puts a chunk into the cache.
func (p *Pool) keep(k chunkKey, b *buffer) {
	p.cache.put(k, b)
	p.expiry.Lock()
	defer p.expiry.Unlock()
	if !p.expiry.running && !p.expiry.closed {
		p.expiry.running = true
		p.expiry.Go(p.expire)
	}
}

// expire empties the cache as its chunks come of age. It ends with the last one.
func (p *Pool) expire() {
	t := time.NewTicker(cacheIdle / 2)
	defer t.Stop()
	for {
		select {
		case <-p.expiry.stop:
			return
		case now := <-t.C:
			if !p.cache.expire(now.Add(-cacheIdle)) && p.rest() {
				p.mem.releaseSpare(false)
				return
			}
		}
	}
}

// rest ends the expiry, unless a chunk has come just now.
func (p *Pool) rest() bool {
	p.expiry.Lock()
	defer p.expiry.Unlock()
	if p.cache.bytes() > 0 {
		return false
	}
	p.expiry.running = false
	return true
}

// Memory is the bytes of chunk memory in use or kept for use at this moment,
// outside of Go's heap.
func (p *Pool) Memory() int64 { return p.mem.mapped.Load() }

// longReach is how much may have to be decompressed for a chunk, in bytes, that still
// counts as usual. Writers end members after some megabytes.
const longReach = 64 << 20

// isLong says of a chunk that its decompression takes n bytes of memory, and comes to
// it after reach bytes, that those of other layers must not wait behind it. A few
// kilobytes of a hostile layer can stand for a gigabyte.
func (p *Pool) isLong(n, reach int64) bool { return n > p.opts.DecodeBytes || reach > longReach }

// reserve waits until n bytes of the budget are free, or until nothing else that is
// long is decompressed.
func (p *Pool) reserve(ctx context.Context, n, reach int64) (release func(), err error) {
	from, n := p.reserveOf(n, reach)
	if err := from.Acquire(ctx, n); err != nil {
		return nil, err
	}
	return func() { from.Release(n) }, nil
}

// tryReserve is reserve for those who do without rather than wait.
func (p *Pool) tryReserve(n, reach int64) (release func(), ok bool) {
	from, n := p.reserveOf(n, reach)
	if !from.TryAcquire(n) {
		return nil, false
	}
	return func() { from.Release(n) }, true
}

func (p *Pool) reserveOf(n, reach int64) (from *semaphore.Weighted, weight int64) {
	if p.isLong(n, reach) {
		return p.long, 1
	}
	return p.budget, n
}

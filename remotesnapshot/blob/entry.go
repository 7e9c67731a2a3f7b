package blob

import (
	"context"
	"fmt"
	"math"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// unknownEnd stands for the end of a blob whose size is not known yet.
const unknownEnd = math.MaxInt64

// entry is one open blob, shared by all who have it open.
type entry struct {
	store  *Store
	dgst   digest.Digest
	path   string // of the sparse file
	ctx    context.Context
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup // flights and completions

	wrong    atomic.Int64 // how often bytes have proved wrong
	lastRead atomic.Int64 // unix nanoseconds; 0: not since it was opened

	refs   int           // guarded by Store.mu
	closed chan struct{} // closed when the entry has left the store

	loadMu  sync.Mutex // held while the files are opened
	flushMu sync.Mutex // held while the hint is written

	mu struct {
		sync.Mutex
		file      *os.File
		origins   []Origin // the newest first
		added     int      // how many registries have been added
		size      int64
		sizeKnown bool
		present   ranges
		local     bool // whole and verified
		proven    bool // local, and verified again after a Drop
		dirty     bool // the hint on disk is older than this
		closing   bool
		demands   []*demand
		flights   []*flight
		host      *host             // asked last
		targets   map[string]string // candidate -> where its redirect led
		misses    map[string]bool   // candidates that do not have the blob
		givers    givers            // which candidates the present bytes are from
		lies      map[string]int    // candidates -> how often bytes of theirs have proved wrong
		writing   int               // writes to the file under way
		written   chan struct{}     // closed when writing drops to 0; nil: nobody waits
		shared    bool              // some bytes may have been written twice
		retired   []*os.File        // replaced files that reads may still use
	}
	complete completion
}

// demand is a caller that waits for a range.
type demand struct {
	span
	suffix   int64 // > 0: the last suffix bytes; the span is not known yet
	prio     Priority
	apart    bool          // a request of its own
	ready    chan struct{} // closed when done; err is set before
	err      error
	done     bool
	progress time.Time // when bytes of it arrived last
}

// get makes the bytes of s present at priority p.
func (e *entry) get(ctx context.Context, p Priority, s span) error {
	d, err := e.demand(demand{prio: p, span: s})
	if d == nil {
		return err
	}
	return e.await(ctx, d)
}

// demand registers a wish and starts what is missing for it. It returns nil when
// nothing is.
func (e *entry) demand(d demand) (*demand, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.sizeKnown {
		if d.suffix > 0 {
			d.span, d.suffix = span{max(0, e.mu.size-d.suffix), e.mu.size}, 0
		}
		d.hi = min(d.hi, e.mu.size)
	}
	if d.suffix == 0 && e.mu.present.contains(d.span) {
		return nil, nil
	}
	if e.mu.closing {
		return nil, ErrClosed
	}
	if e.store.diskPaused() && (d.suffix == 0 || e.mu.sizeKnown) {
		return nil, errDisk
	}
	d.ready, d.progress = make(chan struct{}), time.Now()
	e.mu.demands = append(e.mu.demands, &d)
	if d.suffix > 0 {
		e.planTailLocked(d.prio, d.suffix)
	} else {
		e.planLocked(&d, true)
	}
	return &d, nil
}

// await waits until d is done, ctx ends, or nothing has come for too long.
func (e *entry) await(ctx context.Context, d *demand) error {
	t := time.NewTimer(e.store.opts.GiveUp)
	defer t.Stop()
	for {
		select {
		case <-d.ready:
			return d.err
		case <-ctx.Done():
			e.leave(d)
			return context.Cause(ctx)
		case <-t.C:
			idle, err := e.idle(d)
			if idle >= e.store.opts.GiveUp {
				e.leave(d)
				return err
			}
			t.Reset(e.store.opts.GiveUp - idle)
		}
	}
}

// idle is how long d has made no progress, with what its flights met so far.
// Waiting in the queue of a host that delivers to others is not idle.
func (e *entry) idle(d *demand) (time.Duration, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	last := d.progress
	var tries attempts
	for _, f := range e.mu.flights {
		if !f.servesLocked(d) {
			continue
		}
		if f.progress.After(last) {
			last = f.progress
		}
		if f.host != nil && !f.running {
			if t := f.host.touched(); t.After(last) {
				last = t
			}
		}
		if len(f.tries.hosts) == 0 && f.host != nil {
			what := "no byte yet"
			if !f.running {
				what = "all connections are busy"
			}
			tries.add(f.host.name, fmt.Errorf("%s: %w", what, errdefs.ErrUnavailable))
		}
		for _, h := range f.tries.hosts {
			tries.add(h, f.tries.errs[h])
		}
		tries.n += f.tries.n - len(f.tries.hosts)
	}
	return time.Since(last), tries.err(e.dgst.String(), request{d.span, d.suffix}.header())
}

// leave ends a demand from outside.
func (e *entry) leave(d *demand) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.finishLocked(d, context.Canceled)
}

// finishLocked answers a demand, and ends the flights that served nobody else.
func (e *entry) finishLocked(d *demand, err error) {
	if d.done {
		return
	}
	d.done, d.err = true, err
	close(d.ready)
	if i := slices.Index(e.mu.demands, d); i >= 0 {
		e.mu.demands = slices.Delete(e.mu.demands, i, i+1)
	}
	for _, f := range slices.Clone(e.mu.flights) {
		if f.servesLocked(d) && !f.wantedLocked() {
			e.endLocked(f)
		}
	}
}

// arrivedLocked notes that the bytes of s are in the file.
func (e *entry) arrivedLocked(s span, now time.Time) {
	e.mu.present.add(s)
	e.mu.dirty = true
	e.settleLocked(s, now)
}

// settleLocked answers the demands that s completes.
func (e *entry) settleLocked(s span, now time.Time) {
	var done []*demand // mostly none: no copy of the list for each piece that arrives
	for _, d := range e.mu.demands {
		if d.suffix > 0 || !d.overlaps(s) {
			continue
		}
		d.progress = now
		if e.mu.present.contains(d.span) {
			done = append(done, d)
		}
	}
	for _, d := range done {
		e.finishLocked(d, nil)
	}
}

// contradictsLocked says whether an answer tells another size than the one known.
// While no byte is present the known one has no more proof than the new.
func (e *entry) contradictsLocked(size int64) bool {
	return e.mu.sizeKnown && e.mu.size != size && e.mu.present.total > 0
}

// learnSizeLocked takes the blob's size from an answer and gives demands and
// flights that were open-ended their ends.
func (e *entry) learnSizeLocked(size int64) {
	if e.mu.sizeKnown && e.mu.size == size {
		return
	}
	e.mu.size, e.mu.sizeKnown, e.mu.dirty = size, true, true
	for _, f := range e.mu.flights {
		if f.suffix > 0 { // what its answer must bring is known now
			f.pos, f.end, f.suffix = max(0, size-f.suffix), size, 0
		}
		f.end = min(f.end, size)
	}
	for _, d := range slices.Clone(e.mu.demands) {
		if d.suffix > 0 {
			d.span, d.suffix = span{max(0, size-d.suffix), size}, 0
		}
		d.hi = min(d.hi, size)
		if e.mu.present.contains(d.span) {
			e.finishLocked(d, nil)
		}
	}
}

// replanLocked starts what demands still miss, after a flight ended or changed.
func (e *entry) replanLocked() {
	if e.mu.closing {
		return
	}
	for _, d := range slices.Clone(e.mu.demands) {
		if d.suffix > 0 {
			e.planTailLocked(d.prio, d.suffix)
		} else {
			e.planLocked(d, false)
		}
	}
}

// endLocked takes a flight out of the list and cancels its request. The cause is
// the plain one: authorizers hand errors of one request to others.
func (e *entry) endLocked(f *flight) {
	if i := slices.Index(e.mu.flights, f); i >= 0 {
		e.mu.flights = slices.Delete(e.mu.flights, i, i+1)
	}
	f.ended = true
	f.cancel()
}

// failLocked ends a flight and the demands that need what it did not bring.
func (e *entry) failLocked(f *flight, err error) {
	for _, d := range slices.Clone(e.mu.demands) {
		if f.servesLocked(d) {
			e.finishLocked(d, err)
		}
	}
	if !f.ended {
		e.endLocked(f)
	}
}

// sizeNow returns the size, 0 while it is unknown.
func (e *entry) sizeNow() (int64, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.size, e.mu.sizeKnown
}

// drop makes a range absent, and lets others than the hosts that gave it, which it
// returns, be asked first. Its disk space is kept: the next fetch needs it.
func (e *entry) drop(s span) (hosts []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	before := e.mu.present.total
	e.mu.present.remove(s)
	hosts = e.mu.givers.blame(s, &e.mu.lies)
	if n := before - e.mu.present.total; n > 0 {
		e.store.stats.dropped.Add(n)
		e.wrong.Add(1)
		e.mu.dirty = true
	}
	return hosts
}

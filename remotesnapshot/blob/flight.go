package blob

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"time"
)

// flight is one range on its way. All but prio, which rises only, is guarded by
// the entry's mu.
type flight struct {
	e      *entry
	cancel context.CancelFunc
	prio   atomic.Int32
	turn   int64 // order of the flights of a store

	pos, end int64     // what is still to be fetched
	suffix   int64     // > 0: the last suffix bytes; pos and end are not known
	apart    bool      // a request of its own: others do not join it
	probe    bool      // asks for one byte to learn the size
	running  bool      // a request delivers it at present: its range can only shrink
	stream   bool      // the request brings the whole blob
	ended    bool      // taken from the entry's list
	host     *host     // asked last, or waited for
	progress time.Time // when a byte arrived last
	bodyAt   time.Time // when the running request's body began, and where
	bodyPos  int64
	tries    attempts

	// Attempts that timed out before a header came, and that were ended to ask
	// others; for the flight's own goroutine.
	patience, calm int

	ready atomic.Bool // another candidate of the round can be asked

	mem  []byte // not nil: the bytes go there, past the disk
	base int64  // offset of mem in the blob
}

// maxPatience is how often the time that a flight waits for a header, or leaves a
// host when there are others, doubles.
const maxPatience = 3

func (f *flight) span() span { return span{f.pos, f.end} }

func (f *flight) priority() Priority { return Priority(f.prio.Load()) }

// raise lifts the priority to at least p.
func (f *flight) raise(p Priority) {
	if f.priority() >= p {
		return
	}
	f.prio.Store(int32(p))
	if f.host != nil {
		f.host.slotsOf(f).kick()
	}
}

// servesLocked says whether d waits for something that f brings.
func (f *flight) servesLocked(d *demand) bool {
	if f.stream {
		return true
	}
	if d.suffix > 0 {
		return f.suffix > 0 || f.probe
	}
	return f.suffix == 0 && f.span().overlaps(d.span)
}

// wantedLocked says whether f should go on. One that is nearly done and gets on
// does, since ending its request costs the connection; so does a whole-blob stream.
func (f *flight) wantedLocked() bool {
	if slices.ContainsFunc(f.e.mu.demands, f.servesLocked) {
		return true
	}
	flowing := f.running && f.pos > f.bodyPos && time.Since(f.progress) < time.Second
	return flowing && (f.stream || (f.suffix == 0 && f.span().len() <= minGap))
}

// startLocked begins a flight for r, which others do not join when it is apart.
func (e *entry) startLocked(p Priority, r request, apart bool) {
	ctx, cancel := context.WithCancel(e.ctx)
	f := &flight{e: e, cancel: cancel, turn: e.store.turns.Add(1), pos: r.lo, end: r.hi, suffix: r.suffix, apart: apart}
	f.prio.Store(int32(p))
	e.mu.flights = append(e.mu.flights, f)
	e.wg.Go(func() {
		defer cancel()
		f.run(ctx)
	})
}

// run asks the candidates in order, round after round, until the flight is done,
// nobody waits for it, or the answers leave no hope.
func (f *flight) run(ctx context.Context) {
	opts := f.e.store.opts
	backoff, hopeless := opts.BackoffMin, 0
	for {
		wait, err := f.round(ctx)
		switch {
		case err == nil || f.over():
			f.finish()
			return
		case ctx.Err() != nil:
			f.fail(context.Cause(ctx))
			return
		case err == errProgress:
			backoff, hopeless = opts.BackoffMin, 0
			continue // the rest of the range: no reason to wait
		case lasting(err):
			hopeless++
		default:
			hopeless = 0
		}
		if errors.Is(err, errDisk) {
			f.e.store.diskFailed()
			hopeless = 2
		}
		if hopeless >= 2 {
			f.fail(f.failure())
			return
		}
		if !sleep(ctx, max(wait, jitter(backoff))) {
			f.fail(context.Cause(ctx))
			return
		}
		backoff = min(2*backoff, opts.BackoffMax)
	}
}

// errProgress says that a round failed but brought bytes.
var errProgress = errors.New("part of the range arrived")

// round tries each candidate once. It returns nil when the flight is done, an
// error that is lasting when all candidates gave such a one, and how long hosts
// asked to be left alone.
func (f *flight) round(ctx context.Context) (wait time.Duration, err error) {
	known := f.e.origins()
	cands, err := f.e.candidates(ctx)
	if err != nil {
		f.failed("hosts", err)
		return 0, err
	}
	if len(cands) == 0 {
		f.failed("hosts", errNoHosts)
		return 0, errNoHosts
	}
	var last error
	asked, hope := false, error(nil)
	for i, c := range cands {
		others := func() bool {
			ready := slices.ContainsFunc(cands[i+1:], func(o *candidate) bool { return o.host != c.host && o.host.ready() && f.e.trusts(o) })
			f.ready.Store(ready)
			return ready || f.e.origins() != known
		}
		if _, until := c.host.state(); time.Now().Before(until) {
			if left := time.Until(until); wait == 0 || left < wait {
				wait = left
			}
			continue
		}
		asked = true
		before := f.position()
		err := f.try(ctx, c, others)
		if err == nil || f.over() {
			return 0, nil
		}
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		f.failed(c.name(), err)
		last = err
		if !lasting(err) {
			hope = err
		}
		if f.position()-before >= minGap {
			return 0, errProgress
		}
	}
	switch {
	case !asked:
		return wait, errWaiting
	case hope != nil:
		return 0, hope
	}
	return 0, last
}

// errWaiting says that every host asked to be left alone for a while.
var errWaiting = errors.New("all hosts asked to wait")

func (f *flight) failed(host string, err error) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.tries.n > 0 {
		f.e.store.stats.retries.Add(1)
	}
	f.tries.add(host, err)
}

func (f *flight) failure() error {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return f.tries.err(f.e.dgst.String(), request{f.span(), f.suffix}.header())
}

func (f *flight) position() int64 {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return f.pos
}

// over says whether nothing is left to fetch.
func (f *flight) over() bool {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return f.ended || (f.suffix == 0 && f.span().empty())
}

// finish takes the flight out of the list; what demands still miss because the
// flight gave it away or the blob turned out different is started.
func (f *flight) finish() {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if !f.ended {
		f.e.endLocked(f)
	}
	f.e.replanLocked()
}

// fail ends the flight with an error for those who wait for it. When nobody did,
// it was ended already.
func (f *flight) fail(err error) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.ended {
		return
	}
	f.e.failLocked(f, err)
}

// jitter returns d more or less by half.
func jitter(d time.Duration) time.Duration {
	return d/2 + time.Duration(rand.Int64N(int64(d)+1))
}

// sleep waits for d and says whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

package blob

import (
	"cmp"
	"slices"
	"time"
)

// maxRefetch is how many bytes that are present already may be fetched again to
// spare a request.
const maxRefetch = 4 << 10

// prefetchGap is how many bytes that nobody asked for may lie between ranges of one
// request that nobody waits for.
const prefetchGap = 128 << 10

// planLocked makes sure that every missing byte of d is covered by a flight of at
// least its priority. With fresh set, for a new demand, it may cut them out of flights
// that would bring it late. Without a known size only the first piece is asked for; the
// answer tells the size, and the rest is planned then. While a stream brings the
// whole blob nothing else is asked for: what it has passed already (it was dropped
// meanwhile) is planned when it ends.
func (e *entry) planLocked(d *demand, fresh bool) {
	if slices.ContainsFunc(e.mu.flights, func(f *flight) bool { return f.stream }) {
		return
	}
	s := d.span
	if e.mu.sizeKnown {
		s.hi = min(s.hi, e.mu.size)
	} else if piece := e.mu.host.piece(e.store.opts.RequestSize); s.len() > piece {
		s.hi = s.lo + piece
	}
	for _, m := range e.mu.present.missing(nil, s) {
		e.coverLocked(d, m, fresh)
	}
}

// planTailLocked makes sure that a request for the last n bytes is under way.
func (e *entry) planTailLocked(p Priority, n int64) {
	for _, f := range e.mu.flights {
		// Any answer tells the size, and the tail is planned by offsets then; but
		// only a stream or a suffix brings the tail itself.
		if f.suffix >= n || f.stream || (f.suffix == 0 && f.probe) {
			f.raise(p)
			return
		}
	}
	e.startLocked(p, request{suffix: n}, false)
}

// coverLocked covers m by the flights there are, and by new ones where none is,
// or where one would come too late.
func (e *entry) coverLocked(d *demand, m span, fresh bool) {
	var near []*flight
	for _, f := range e.mu.flights {
		if f.suffix == 0 && f.span().overlaps(m) {
			near = append(near, f)
		}
	}
	slices.SortFunc(near, func(a, b *flight) int { return cmp.Compare(a.pos, b.pos) })
	for _, f := range near {
		o := f.span().intersect(m)
		if o.empty() {
			continue
		}
		if fresh && e.yieldLocked(f, d.prio, o) {
			continue
		}
		f.raise(d.prio)
		e.launchLocked(d.prio, span{m.lo, o.lo}, d.apart)
		m.lo = o.hi
	}
	e.launchLocked(d.prio, m, d.apart)
}

// yieldLocked lets a flight give o away when a demand of priority p would get it
// sooner by a request of its own.
func (e *entry) yieldLocked(f *flight, p Priority, o span) bool {
	have := f.span()
	switch {
	case f.stream:
		return false
	case f.running:
		if p < Blocked || f.nearLocked(o.lo) {
			return false
		}
	case p <= f.priority() || o == have || have.len() <= minGap:
		return false
	}
	if o.lo <= f.pos {
		f.pos = o.hi
		return true
	}
	f.end = o.lo
	e.launchLocked(f.priority(), span{o.hi, have.hi}, f.apart)
	return true
}

// nearLocked says whether a running flight gets to off as soon as a request of its
// own would, by the pace at which its bytes have come so far, or those of the host
// before. To cut a request short costs its connection and what is on the wire.
func (f *flight) nearLocked(off int64) bool {
	dist := off - f.pos
	if dist <= minGap || f.stream {
		return true
	}
	took, came := f.progress.Sub(f.bodyAt), f.pos-f.bodyPos
	if came <= 0 || took <= 0 {
		return dist <= max(4*minGap, f.host.reach())
	}
	return time.Duration(float64(took)*float64(dist)/float64(came)) <= f.host.roundTrip()
}

// launchLocked fetches s, which no flight covers: with a flight that waits
// nearby, or in as many new ones as its length needs; apart, with nobody else.
func (e *entry) launchLocked(p Priority, s span, apart bool) {
	switch {
	case s.empty():
		return
	case !apart && e.joinLocked(p, s):
		return
	}
	limit := e.mu.host.piece(e.store.opts.RequestSize)
	if s.len() <= limit+limit/4 { // no short rest
		limit = s.len()
	}
	for !s.empty() {
		n := min(s.len(), limit)
		e.startLocked(p, request{span: span{s.lo, s.lo + n}}, apart)
		s.lo += n
	}
}

// joinLocked adds s to a flight that still waits for its turn, and the flights
// that this one touches then.
func (e *entry) joinLocked(p Priority, s span) bool {
	for _, f := range e.mu.flights {
		if union, ok := e.unionLocked(f, p, s); ok {
			f.pos, f.end = union.lo, union.hi
			e.absorbLocked(f)
			return true
		}
	}
	return false
}

// absorbLocked lets f, which is not running, take over flights that wait nearby.
func (e *entry) absorbLocked(f *flight) {
	for i := 0; i < len(e.mu.flights); i++ {
		g := e.mu.flights[i]
		if g == f {
			continue
		}
		if union, ok := e.unionLocked(g, f.priority(), f.span()); ok {
			f.pos, f.end = union.lo, union.hi
			e.endLocked(g)
			i = -1 // f is larger: look again
		}
	}
}

// unionLocked returns what one request for s and for f's range would ask for. ok
// is false when f can't change any more, or when two requests are cheaper: the
// bytes between are many, or are present or on their way already.
func (e *entry) unionLocked(f *flight, p Priority, s span) (union span, ok bool) {
	have := f.span()
	if f.running || f.stream || f.probe || f.apart || have.empty() || f.priority() != p {
		return span{}, false
	}
	union = span{min(have.lo, s.lo), max(have.hi, s.hi)}
	between := span{min(have.hi, s.hi), max(have.lo, s.lo)}
	gap := e.mu.host.gap()
	if p < Blocked {
		gap = min(gap, prefetchGap) // nobody waits: a request costs no time
	}
	if between.len() > gap || union.len() > e.store.opts.RequestSize {
		return span{}, false
	}
	return union, between.empty() || e.freeLocked(between)
}

// freeLocked says whether s is neither present (but for a few bytes) nor on its way.
func (e *entry) freeLocked(s span) bool {
	absent := int64(0)
	for _, m := range e.mu.present.missing(nil, s) {
		absent += m.len()
	}
	if s.len()-absent > maxRefetch {
		return false
	}
	for _, f := range e.mu.flights {
		if f.span().overlaps(s) {
			return false
		}
	}
	return true
}

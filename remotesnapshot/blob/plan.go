package blob

import (
	"cmp"
	"slices"
)

// maxRefetch is how many bytes that are present already may be fetched again to
// spare a request.
const maxRefetch = 4 << 10

// planLocked makes sure that every missing byte of s is covered by a flight of at
// least priority p. Without a known size only the first piece is asked for; the
// answer tells the size, and the rest is planned then.
func (e *entry) planLocked(p Priority, s span) {
	if e.mu.sizeKnown {
		s.hi = min(s.hi, e.mu.size)
	} else if piece := e.mu.host.piece(e.store.opts.RequestSize); s.len() > piece {
		s.hi = s.lo + piece
	}
	missing := e.mu.present.missing(nil, s)
	missing = joinClose(missing, maxRefetch)
	for _, m := range missing {
		e.coverLocked(p, m)
	}
}

// joinClose joins spans whose distance is at most gap.
func joinClose(in []span, gap int64) []span {
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && s.lo-out[n-1].hi <= gap {
			out[n-1].hi = s.hi
			continue
		}
		out = append(out, s)
	}
	return out
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
	e.startLocked(p, request{suffix: n})
}

// coverLocked covers m by the flights there are, and by new ones where none is,
// or where one would come too late.
func (e *entry) coverLocked(p Priority, m span) {
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
		if e.yieldLocked(f, p, o) {
			continue
		}
		e.launchLocked(p, span{m.lo, o.lo})
		m.lo = o.hi
	}
	e.launchLocked(p, m)
}

// yieldLocked lets a flight give o away when a demand of priority p would get it
// sooner by a request of its own. Otherwise the flight's priority rises to p.
func (e *entry) yieldLocked(f *flight, p Priority, o span) bool {
	have := f.span()
	switch {
	case f.stream:
		return false
	case f.running:
		if p < Blocked || o.lo-f.pos <= e.mu.host.ahead() {
			f.raise(p)
			return false
		}
	default:
		if p <= f.priority() {
			return false
		}
		if o == have || have.len() <= minGap {
			f.raise(p)
			return false
		}
	}
	if o.lo <= f.pos {
		f.pos = o.hi
		return true
	}
	f.end = o.lo
	e.launchLocked(f.priority(), span{o.hi, have.hi})
	return true
}

// launchLocked fetches s, which no flight covers: with a flight that waits
// nearby, or in as many new ones as its length needs.
func (e *entry) launchLocked(p Priority, s span) {
	if s.empty() || e.joinLocked(p, s) {
		return
	}
	limit := e.mu.host.piece(e.store.opts.RequestSize)
	if s.len() <= limit+limit/4 { // no short rest
		limit = s.len()
	}
	for !s.empty() {
		n := min(s.len(), limit)
		e.startLocked(p, request{span: span{s.lo, s.lo + n}})
		s.lo += n
	}
}

// joinLocked adds s to a flight that still waits for its turn, when the bytes
// between are worth less than a request and nobody else brings them.
func (e *entry) joinLocked(p Priority, s span) bool {
	gap := e.mu.host.gap()
	for _, f := range e.mu.flights {
		if f.running || f.suffix > 0 || f.stream || f.probe || f.priority() != p {
			continue
		}
		have := f.span()
		union := span{min(have.lo, s.lo), max(have.hi, s.hi)}
		between := span{min(have.hi, s.hi), max(have.lo, s.lo)}
		if between.len() > gap || union.len() > e.store.opts.RequestSize {
			continue
		}
		if !between.empty() && !e.freeLocked(between) {
			continue
		}
		f.pos, f.end = union.lo, union.hi
		return true
	}
	return false
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

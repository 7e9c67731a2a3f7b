package blob

import "slices"

// span is the bytes [lo, hi) of a blob.
type span struct{ lo, hi int64 }

func (s span) len() int64  { return s.hi - s.lo }
func (s span) empty() bool { return s.hi <= s.lo }

func (s span) overlaps(o span) bool { return s.lo < o.hi && o.lo < s.hi }

func (s span) intersect(o span) span { return span{max(s.lo, o.lo), min(s.hi, o.hi)} }

// ranges is a set of bytes: spans in order that neither touch nor overlap.
// Byte-exact, so nothing around a chunk has to be fetched for the sake of a
// block size, and small: a blob read in n pieces has at most n spans.
type ranges struct {
	spans []span
	total int64
}

// search returns the index of the first span that ends at or after off.
func (r *ranges) search(off int64) int {
	i, _ := slices.BinarySearchFunc(r.spans, off, func(s span, off int64) int {
		if s.hi < off {
			return -1
		}
		return 1
	})
	return i
}

// add puts s into the set.
func (r *ranges) add(s span) {
	if s.empty() {
		return
	}
	i := r.search(s.lo)
	j := i
	for j < len(r.spans) && r.spans[j].lo <= s.hi {
		s.lo = min(s.lo, r.spans[j].lo)
		s.hi = max(s.hi, r.spans[j].hi)
		r.total -= r.spans[j].len()
		j++
	}
	r.total += s.len()
	if j == i+1 { // the usual case, a flight that grows: no memory moves
		r.spans[i] = s
		return
	}
	r.spans = slices.Replace(r.spans, i, j, s)
}

// remove takes s out of the set.
func (r *ranges) remove(s span) {
	if s.empty() {
		return
	}
	var out []span
	for _, have := range r.spans {
		if !have.overlaps(s) {
			out = append(out, have)
			continue
		}
		r.total -= have.intersect(s).len()
		if have.lo < s.lo {
			out = append(out, span{have.lo, s.lo})
		}
		if s.hi < have.hi {
			out = append(out, span{s.hi, have.hi})
		}
	}
	r.spans = out
}

// contains says whether all bytes of s are in the set.
func (r *ranges) contains(s span) bool {
	if s.empty() {
		return true
	}
	i := r.search(s.lo + 1)
	return i < len(r.spans) && r.spans[i].lo <= s.lo && s.hi <= r.spans[i].hi
}

// missing appends the parts of s that are not in the set, in order.
func (r *ranges) missing(dst []span, s span) []span {
	for i := r.search(s.lo); i < len(r.spans) && !s.empty(); i++ {
		have := r.spans[i]
		if have.lo >= s.hi {
			break
		}
		if s.lo < have.lo {
			dst = append(dst, span{s.lo, have.lo})
		}
		s.lo = max(s.lo, have.hi)
	}
	if !s.empty() {
		dst = append(dst, s)
	}
	return dst
}

// clone returns a copy that later changes do not touch.
func (r *ranges) clone() ranges { return ranges{slices.Clone(r.spans), r.total} }

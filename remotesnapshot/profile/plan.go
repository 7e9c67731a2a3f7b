package profile

import (
	"cmp"
	"slices"

	digest "github.com/opencontainers/go-digest"
)

// Limits of a plan.
const (
	// planRequests is how many requests a plan aims at. They go out at once over
	// as many connections as there are, so more of them only cost.
	planRequests = 24
	// planGap is a gap that is closed however few requests there are: it costs less
	// than one of them.
	planGap = 64 << 10
	// planWaste bounds the bytes between what was read that are fetched to spare
	// requests, as a part of the bytes that were read.
	planWaste = 0.30
	// planPiece is the least that a range is split into, to be fetched over
	// several connections.
	planPiece = 1 << 20
	// planMost bounds the requests of a plan, whose number is what bytes between
	// the ranges do not allow to lower; what is needed last is left out.
	planMost = 256
	// planBytes bounds what one plan fetches; what was needed last is left out.
	planBytes = 1 << 30
)

// Wanted are the ranges of one layer that a step has read, in their order, and
// are missing.
type Wanted struct {
	Layer  digest.Digest
	Ranges []Range
}

// Fetch is one request.
type Fetch struct {
	Layer digest.Digest
	Range
}

// Plan makes few requests of what a step reads of its layers, the first needed
// first. Ranges near each other become one, the smallest gaps first, and the
// largest ones are split while there are fewer than connections would take.
func Plan(wanted []Wanted) []Fetch {
	var runs []run
	var useful int64
	for n, w := range wanted {
		all := w.Ranges
		for i, r := range all {
			if r.Len > planBytes-useful {
				all = all[:i]
				break
			}
			useful += r.Len
		}
		runs = append(runs, runsOf(n, all)...)
	}
	runs = join(runs)
	runs = split(runs)
	slices.SortFunc(runs, func(a, b run) int {
		return cmp.Or(cmp.Compare(a.turn, b.turn), cmp.Compare(a.layer, b.layer), cmp.Compare(a.Off, b.Off))
	})
	runs = runs[:min(len(runs), planMost)]
	out := make([]Fetch, len(runs))
	for i, r := range runs {
		out[i] = Fetch{wanted[r.layer].Layer, r.Range}
	}
	return out
}

// run is a range of one layer without gaps.
type run struct {
	layer int
	Range
	turn int // place in the layer's order of the first of its bytes that is needed
}

// runsOf are the ranges of a layer by offset, those that touch joined.
func runsOf(layer int, ranges []Range) []run {
	all := make([]run, len(ranges))
	for i, r := range ranges {
		all[i] = run{layer, r, i}
	}
	slices.SortFunc(all, func(a, b run) int { return cmp.Or(cmp.Compare(a.Off, b.Off), cmp.Compare(a.turn, b.turn)) })
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && r.Off <= out[n-1].end() {
			out[n-1] = out[n-1].with(r)
			continue
		}
		out = append(out, r)
	}
	return out
}

// with is the run from r to o, which begins behind r.
func (r run) with(o run) run {
	r.Len = max(r.end(), o.end()) - r.Off
	r.turn = min(r.turn, o.turn)
	return r
}

// join closes the smallest gaps until the runs are few enough and the gaps wide, or
// too many bytes would be fetched for nothing.
func join(runs []run) []run {
	var useful int64
	var gaps []int64 // of each run to the next one of its layer
	for i, r := range runs {
		useful += r.Len
		if i+1 < len(runs) && runs[i+1].layer == r.layer {
			gaps = append(gaps, runs[i+1].Off-r.end())
		}
	}
	slices.Sort(gaps)
	room := int64(float64(useful) * planWaste)
	limit, spare := int64(-1), 0 // gaps up to limit are closed, and spare of just that size
	left := len(runs)
	for _, g := range gaps {
		if left <= planRequests && g > planGap || room < g {
			break
		}
		if g > limit {
			limit, spare = g, 0
		}
		left, room, spare = left-1, room-g, spare+1
	}
	var out []run
	for _, r := range runs {
		if n := len(out); n > 0 && out[n-1].layer == r.layer {
			gap := r.Off - out[n-1].end()
			if gap == limit {
				spare--
			}
			if gap < limit || gap == limit && spare >= 0 {
				out[n-1] = out[n-1].with(r)
				continue
			}
		}
		out = append(out, r)
	}
	return out
}

// split halves the largest runs while there is room for more requests.
func split(runs []run) []run {
	for len(runs) > 0 && len(runs) < planRequests {
		i := 0
		for j, r := range runs {
			if r.Len > runs[i].Len {
				i = j
			}
		}
		r := runs[i]
		if r.Len < 2*planPiece {
			break
		}
		half := r
		half.Off, half.Len = r.Off+r.Len/2, r.Len-r.Len/2
		runs[i].Len = r.Len / 2
		runs = append(runs, half)
	}
	return runs
}

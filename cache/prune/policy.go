package prune

import (
	"fmt"
	"math"

	"github.com/moby/buildkit/client"
)

// Policy says what may be removed and how far to go; made by [Parse]. The
// fields of client.PruneInfo mean:
//
//   - All: internal, frontend and shared records too, which are kept otherwise;
//   - Filter: only records that one of the filters matches, if there are any;
//   - KeepDuration: only records that were not used for so long (0: any). One
//     whose last use is unknown may go;
//   - MaxUsedSpace: remove until less than this is used (0: no such limit);
//   - MinFreeSpace: remove until this much is free on the disk (0: no such limit);
//   - ReservedSpace: neither of the two removes anything once less than this is
//     used. Alone it is a limit like MaxUsedSpace.
//
// Spaces are in bytes. A limit is passed by at most the last record removed.
type Policy struct {
	info   client.PruneInfo
	filter filter
}

// Parse makes a policy of a request. The error names the filter that can't be
// parsed and is errdefs.ErrInvalidArgument.
func Parse(info client.PruneInfo) (*Policy, error) {
	f, err := parseFilter(info.Filter)
	if err != nil {
		return nil, fmt.Errorf("prune: %w", err)
	}
	return &Policy{info: info, filter: f}, nil
}

// NeedsSpace reports whether the policy limits space, so that Begin must be told
// the records' sizes and the disk's free space.
func (p *Policy) NeedsSpace() bool {
	return p.info.MaxUsedSpace != 0 || p.info.ReservedSpace != 0 || p.info.MinFreeSpace != 0
}

// NeedsShared reports whether it matters what is shared, so that the caller may
// spare itself the making of a SharedFunc otherwise.
func (p *Policy) NeedsShared() bool {
	return p.sharedMatters() || p.NeedsSpace()
}

// sharedMatters reports whether the choice of a record depends on its being shared.
func (p *Policy) sharedMatters() bool {
	return !p.info.All || len(p.info.Filter) > 0
}

// Begin fixes the goal of a prune. The view's sizes should be known (see
// [Unsized]), and free is the disk's free space in bytes, as statfs(2) says in
// f_bfree; both only matter if NeedsSpace. shared may be nil.
func (p *Policy) Begin(v View, free int64, shared SharedFunc) *Run {
	r := &Run{policy: p, shared: shared}
	if p.NeedsSpace() {
		g := newGraph(v)
		g.markShared(shared)
		r.keep = p.keep(g.used(), free)
	}
	return r
}

// What Run.keep may be besides a number of bytes.
const (
	keepNothing = 0
	keepAll     = math.MaxInt64
)

// keep returns below how many used bytes a prune stops, given how many are used
// and free now.
func (p *Policy) keep(used, free int64) int64 {
	keep := p.info.MaxUsedSpace
	lacking := p.info.MinFreeSpace - free
	switch {
	case p.info.MinFreeSpace == 0:
	case lacking > 0 && keep == 0:
		keep = used - lacking
	case lacking > 0:
		keep = min(keep, used-lacking)
	case keep == 0:
		return keepAll // enough is free, and nothing else is asked for
	}
	return max(keep, p.info.ReservedSpace, keepNothing)
}

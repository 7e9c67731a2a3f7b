package prune

import (
	"time"

	"github.com/moby/buildkit/client"
)

// maxBatch is how many records are removed at a time at most. The manager shows
// progress and lets others work after each batch.
const maxBatch = 10

// Run is one prune under way; made by [Policy.Begin]. It does not change.
type Run struct {
	policy *Policy
	shared SharedFunc
	keep   int64 // stop once fewer bytes are used; keepNothing: never, keepAll: at once
}

// Next returns what to remove next, the least useful first: records of the view
// without users and children, so that they may be removed in any order. Of twins,
// both are meant. It is empty when the goal is reached or nothing else may go.
// KeepDuration counts back from now.
//
// The infos can be shown to a user; a Size that is unknown stays SizeUnknown,
// to be measured by the caller before the removal.
//
// A record that could not be removed and is still in the view is returned again:
// a caller that has removed nothing of a batch must stop. What got a user since
// the view was taken must not be removed.
func (r *Run) Next(v View, now time.Time) []client.UsageInfo {
	g := newGraph(v)
	if r.keep != keepNothing {
		g.markShared(r.shared)
		if g.used() < r.keep {
			return nil
		}
	}
	found := r.candidates(g, now)
	sortCandidates(found)
	n := min(len(found), maxBatch)
	if r.keep != keepNothing {
		n = min(n, 1)
	}
	batch := make([]client.UsageInfo, n)
	for i, c := range found[:n] {
		batch[i] = *c
	}
	return batch
}

// candidates returns all that the policy lets go and nothing holds.
func (r *Run) candidates(g graph, now time.Time) (found []*client.UsageInfo) {
	for _, n := range g.listed() {
		if n.held || r.policy.info.KeepDuration != 0 && n.usedAfter(now.Add(-r.policy.info.KeepDuration)) {
			continue
		}
		if r.shared != nil && r.policy.sharedMatters() && !n.shared {
			// It has no children that it could be shared by.
			n.shared = r.shared(n.record.ID, n.record.Chain)
		}
		if !r.policy.info.All && (n.shared || isInternal(n.kind())) {
			continue
		}
		if info := n.info(); r.policy.filter.match(info) {
			found = append(found, info)
		}
	}
	return found
}

// isInternal reports whether records of a type are BuildKit's own, which only
// a prune of all removes.
func isInternal(t client.UsageRecordType) bool {
	return t == client.UsageRecordTypeInternal || t == client.UsageRecordTypeFrontend
}

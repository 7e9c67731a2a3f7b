package session

import (
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/reference"
)

const (
	maxAttached = 16              // kept for one repository
	grace       = 5 * time.Second // a session may connect that much later than it was attached
	firstSweep  = 128             // repositories; the next sweep comes at twice what was left
)

// attached is a session that stays until it ends.
type attached struct {
	id    string
	since time.Time
}

// Attach lets reads of ref's repository use the sessions from now on, until they
// end. They are asked before those attached earlier, and after those of holds.
// The oldest ones are forgotten when there are very many. A ref that can't be
// parsed attaches nothing.
//
// Deprecated: what is attached is released by nobody. Use Hold.
func (r *Registry) Attach(ref string, ids ...string) {
	spec, err := reference.Parse(ref)
	ids = distinct(ids)
	if err != nil || r.sm == nil || len(ids) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.repositoryLocked(spec.Locator)
	now := time.Now()
	var list []attached
	for _, id := range ids {
		list = append(list, attached{id, now})
	}
	for _, a := range repo.attached {
		if !slices.Contains(ids, a.id) {
			list = append(list, a)
		}
	}
	repo.attached = list[:min(len(list), maxAttached)]
	if len(r.mu.repos) >= r.mu.sweepAt {
		for name := range r.mu.repos {
			r.pruneLocked(name, now)
		}
		r.mu.sweepAt = max(firstSweep, 2*len(r.mu.repos))
	}
}

// pruneLocked forgets the attached sessions of a repository that are gone.
func (r *Registry) pruneLocked(name string, now time.Time) {
	repo := r.mu.repos[name]
	if repo == nil {
		return
	}
	var kept []attached // in a new array: readers have the old one
	for _, a := range repo.attached {
		if now.Sub(a.since) <= grace || r.caller(a.id) != nil {
			kept = append(kept, a)
		}
	}
	repo.attached = kept
	r.dropLocked(name)
}

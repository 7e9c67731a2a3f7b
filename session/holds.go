package session

import (
	"cmp"
	"maps"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/pkg/reference"
)

const (
	maxSessions = 16  // asked in turn for one request
	maxNamed    = 256 // looked at to find those, of one repository
)

// repository is what is known of one repository while somebody holds it. Guarded
// by Registry.mu.
type repository struct {
	holds   []*hold           // the newest first
	refused map[string]uint64 // sessions that were refused, by when
}

type hold struct{ sessions func() []string }

// Hold lets reads of ref's repository use the sessions that the function names,
// until release is called (more than once does no harm). The function is called
// for each set of Hosts, since the sessions of a caller may become more; it must
// return at once. Sessions that it names need not be connected: they are used as
// soon as they are. Holds of one repository do not know of each other: each has
// an end of its own, and all of them together are asked. Whether a session may
// read the repository shows when it is used; Prove finds out before. A ref that
// can't be parsed holds nothing.
func (r *Registry) Hold(ref string, sessions func() []string) (release func()) {
	spec, err := reference.Parse(ref)
	if err != nil || sessions == nil || r.sm == nil {
		return func() {}
	}
	h := &hold{sessions}
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.mu.repos[spec.Locator]
	if repo == nil {
		repo = &repository{refused: map[string]uint64{}}
		r.mu.repos[spec.Locator] = repo
	}
	repo.holds = slices.Insert(repo.holds, 0, h)
	return sync.OnceFunc(func() { r.release(spec.Locator, h) })
}

// release ends a hold, and forgets a repository that nobody holds.
func (r *Registry) release(name string, h *hold) {
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.mu.repos[name] // there, since h is in it
	repo.holds = slices.DeleteFunc(repo.holds, func(o *hold) bool { return o == h })
	if len(repo.holds) == 0 {
		delete(r.mu.repos, name)
	}
}

// sessionsOf returns the sessions of a repository that are there, in the order to
// ask them.
func (r *Registry) sessionsOf(name string) []string {
	return r.connected(r.ranked(name, r.named(name)), maxSessions)
}

// named lists the sessions of all holds, connected or not, each once: those of
// the newest hold first.
func (r *Registry) named(name string) []string {
	r.mu.Lock()
	var holds []*hold
	if repo := r.mu.repos[name]; repo != nil {
		holds = slices.Clone(repo.holds)
	}
	r.mu.Unlock()
	var ids []string
	for _, h := range holds {
		ids = append(ids, h.sessions()...)
	}
	return distinct(ids)
}

// distinct leaves out duplicates and empty ids, and what is too many.
func distinct(ids []string) []string {
	seen := make(map[string]struct{}, len(ids))
	var out []string
	for _, id := range ids {
		if _, dup := seen[id]; dup || id == "" {
			continue
		}
		if len(out) == maxNamed {
			break
		}
		seen[id] = struct{}{}
		out = append(out, id)
	}
	return out
}

// ranked sorts ids: those that are known to be accepted, then those that nothing
// is known of, then those that were refused, the earliest first.
func (r *Registry) ranked(name string, ids []string) []string {
	if len(ids) < 2 {
		return ids
	}
	known := make(map[string]bool, len(ids))
	for _, id := range ids {
		known[id] = r.proven(claim{name, id})
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	repo := r.mu.repos[name]
	if repo == nil {
		return ids
	}
	maps.DeleteFunc(repo.refused, func(id string, _ uint64) bool {
		_, named := known[id]
		return !named
	})
	slices.SortStableFunc(ids, func(a, b string) int {
		return cmp.Or(
			cmp.Compare(repo.refused[a], repo.refused[b]),
			cmp.Compare(b2i(known[b]), b2i(known[a])),
		)
	})
	return ids
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

// connected are the first n of ids that are there.
func (r *Registry) connected(ids []string, n int) (out []string) {
	for _, id := range ids {
		if len(out) == n {
			break
		}
		if r.caller(id) != nil {
			out = append(out, id)
		}
	}
	return out
}

// failed puts a session that had nothing to offer behind the others. One that was
// refused by the registry has to prove again what it may read.
func (r *Registry) failed(c claim, refused bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if refused {
		delete(r.mu.proofs, c)
	}
	if repo := r.mu.repos[c.repo]; repo != nil {
		r.mu.seq++
		repo.refused[c.id] = r.mu.seq
	}
}

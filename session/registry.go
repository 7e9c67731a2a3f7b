package session

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/resolver"
)

const (
	maxSessions = 16              // kept for one repository
	grace       = 5 * time.Second // a session may connect that much later than it was attached
	firstSweep  = 128             // repositories; the next sweep comes at twice what was left
)

// Registry knows which sessions may authenticate reads of which repository. Safe
// for concurrent use.
type Registry struct {
	hosts docker.RegistryHosts
	sm    *bksession.Manager

	mu struct {
		sync.Mutex
		repos   map[string][]attached // by repository, the one to ask first at the front
		sweepAt int
	}
}

type attached struct {
	id    string
	since time.Time
}

// New uses hosts for the registry configuration (mirrors, TLS, plain HTTP) and
// sm to reach the clients that hold credentials; without sm all reads are anonymous.
func New(hosts docker.RegistryHosts, sm *bksession.Manager) *Registry {
	r := &Registry{hosts: hosts, sm: sm}
	r.mu.repos = map[string][]attached{}
	r.mu.sweepAt = firstSweep
	return r
}

// Attach lets reads of ref's repository use the sessions from now on. They are
// asked before those attached earlier. Sessions that have ended are forgotten by
// themselves, and the oldest ones when there are very many. Whether a session may
// read the repository shows when it is used; HostsOf serves to find out before.
// A ref that can't be parsed attaches nothing.
func (r *Registry) Attach(ref string, ids ...string) {
	spec, err := reference.Parse(ref)
	if err != nil || r.sm == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	have := r.mu.repos[spec.Locator]
	now := time.Now()
	var list []attached
	for _, id := range ids {
		if id != "" && !slices.ContainsFunc(list, func(a attached) bool { return a.id == id }) {
			list = append(list, attached{id, now})
		}
	}
	for _, a := range have {
		if !slices.ContainsFunc(list, func(b attached) bool { return a.id == b.id }) {
			list = append(list, a)
		}
	}
	if len(list) == 0 {
		return
	}
	r.mu.repos[spec.Locator] = list[:min(len(list), maxSessions)]
	if len(r.mu.repos) >= r.mu.sweepAt {
		for repo := range r.mu.repos {
			r.aliveLocked(repo, now)
		}
		r.mu.sweepAt = max(firstSweep, 2*len(r.mu.repos))
	}
}

// Hosts returns the hosts to ask for blobs of ref's repository, mirrors first,
// with authorizers that go through the attached sessions that are alive (without
// one: anonymously). Cheap enough for each fetch: it never waits for a session
// that is gone, and opens no connection. The authorizers belong to one user at a
// time each.
func (r *Registry) Hosts(ctx context.Context, ref string) ([]docker.RegistryHost, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("hosts of %q: %w", ref, err)
	}
	r.mu.Lock()
	ids := r.aliveLocked(spec.Locator, time.Now())
	r.mu.Unlock()
	return r.hostsOf(spec, ids)
}

// HostsOf is Hosts with one session only, attached or not: a request through them
// proves what this session may read. A session that is gone is an error.
func (r *Registry) HostsOf(ctx context.Context, ref, id string) ([]docker.RegistryHost, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("hosts of %q: %w", ref, err)
	}
	if !r.alive(id) {
		return nil, fmt.Errorf("hosts of %s: session %s: %w", ref, id, bksession.ErrNoActiveSessions)
	}
	return r.hostsOf(spec, []string{id})
}

func (r *Registry) hostsOf(spec reference.Spec, ids []string) ([]docker.RegistryHost, error) {
	groups := [][]string{nil} // anonymous
	if len(ids) > 0 {
		groups = groups[:0]
		for _, id := range ids {
			groups = append(groups, []string{id})
		}
	}
	var hosts []docker.RegistryHost
	chains := map[int]*chain{}
	for n, group := range groups {
		// One resolver for each session: BuildKit asks the sessions of a group in
		// turn only until one answers, even if that one has no login to offer.
		res := resolver.DefaultPool.GetResolver(r.hosts, spec.Locator, resolver.ScopeType{}, r.sm, bksession.NewGroup(group...))
		got, err := res.HostsFunc(spec.Hostname())
		if err != nil {
			return nil, fmt.Errorf("hosts of %s: %w", spec.Locator, err)
		}
		if n == 0 {
			hosts = got
			for i := range hosts {
				chains[i] = &chain{rejected: func(n int) { r.demote(spec.Locator, ids[n]) }}
			}
		}
		for i := range min(len(got), len(hosts)) {
			chains[i].add(got[i].Authorizer)
		}
	}
	for i := range hosts {
		hosts[i].Authorizer = chains[i]
	}
	return hosts, nil
}

// aliveLocked returns the sessions of a repository that are there, in the order
// to ask them, and forgets those that are gone for good.
func (r *Registry) aliveLocked(repo string, now time.Time) (ids []string) {
	list := r.mu.repos[repo]
	var kept []attached
	for _, a := range list {
		switch {
		case r.alive(a.id):
			ids = append(ids, a.id)
		case now.Sub(a.since) > grace:
			continue
		}
		kept = append(kept, a)
	}
	if len(kept) == 0 {
		delete(r.mu.repos, repo)
	} else {
		r.mu.repos[repo] = kept
	}
	return ids
}

// alive says whether a session is connected, without waiting for it.
func (r *Registry) alive(id string) bool {
	if r.sm == nil || id == "" {
		return false
	}
	c, err := r.sm.Get(context.Background(), id, true)
	return err == nil && c != nil
}

// demote puts a session that was refused behind the others.
func (r *Registry) demote(repo, id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Clone(r.mu.repos[repo])
	i := slices.IndexFunc(list, func(a attached) bool { return a.id == id })
	if i < 0 {
		return
	}
	a := list[i]
	r.mu.repos[repo] = append(slices.Delete(list, i, i+1), a)
}

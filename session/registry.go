package session

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/resolver"
)

// Registry knows which sessions may authenticate reads of which repository. Safe
// for concurrent use.
type Registry struct {
	hosts docker.RegistryHosts
	sm    *bksession.Manager

	mu struct {
		sync.Mutex
		repos map[string]*repository // those that somebody holds
		seq   uint64                 // counts refusals

		proofs   map[claim]bksession.Caller // the session that proved the claim
		forgetAt int                        // proofs; those of ended sessions are forgotten then
		proving  map[claim]*proving         // requests under way
	}
}

// New uses hosts for the registry configuration (mirrors, TLS, plain HTTP) and
// sm to reach the clients that hold credentials; without sm all reads are anonymous.
func New(hosts docker.RegistryHosts, sm *bksession.Manager) *Registry {
	r := &Registry{hosts: hosts, sm: sm}
	r.mu.repos = map[string]*repository{}
	r.mu.proofs = map[claim]bksession.Caller{}
	r.mu.forgetAt = firstForget
	r.mu.proving = map[claim]*proving{}
	return r
}

// Hosts returns the hosts to ask for blobs of ref's repository, mirrors first,
// with authorizers that go through the sessions of all present holds that are
// alive (without one: anonymously). Cheap enough for each fetch: it never waits
// for a session that is gone, and opens no connection. The authorizers belong to
// one user at a time each; they keep their sessions when a hold is released.
func (r *Registry) Hosts(ctx context.Context, ref string) ([]docker.RegistryHost, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("hosts of %q: %w", ref, err)
	}
	return r.hostsOf(spec, r.sessionsOf(spec.Locator))
}

// HostsOf is Hosts with one session only, held or not, or with none for "": a
// request through them proves what this session, or anybody, may read. A session
// that is gone is an error of class failed precondition.
func (r *Registry) HostsOf(ctx context.Context, ref, id string) ([]docker.RegistryHost, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return nil, fmt.Errorf("hosts of %q: %w", ref, err)
	}
	if id == "" {
		return r.hostsOf(spec, nil)
	}
	if r.caller(id) == nil {
		return nil, fmt.Errorf("hosts of %s: session %s: %w: %w", ref, id, bksession.ErrNoActiveSessions, errdefs.ErrFailedPrecondition)
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
				// Mirrors say nothing of what the registry would.
				registry := i == len(hosts)-1
				chains[i] = &chain{failed: func(n int, refused bool) {
					if n < len(ids) {
						r.failed(claim{spec.Locator, ids[n]}, refused && registry)
					}
				}}
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

// caller is the session, nil unless it is connected. Never waits.
func (r *Registry) caller(id string) bksession.Caller {
	if r.sm == nil || id == "" {
		return nil
	}
	c, err := r.sm.Get(context.Background(), id, true)
	if err != nil {
		return nil
	}
	return c
}

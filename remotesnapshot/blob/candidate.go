package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
)

// candidate is one registry host and one repository of it that may have the blob.
type candidate struct {
	docker.RegistryHost
	spec   reference.Spec // of the origin's reference
	host   *host
	client *http.Client // leaves redirects to us
}

func (c *candidate) name() string { return c.Host }

// repo is the repository's path, without the host that the reference names.
func (c *candidate) repo() string {
	_, repo, _ := strings.Cut(c.spec.Locator, "/")
	return repo
}

// key tells candidates of one blob apart.
func (c *candidate) key() string {
	return c.Scheme + "://" + c.Host + c.Path + " " + c.spec.Locator
}

// url is where the registry has the blob. A mirror is told by ns which registry
// it stands for, as containerd's resolver does.
func (c *candidate) url(dgst string) string {
	u := c.Scheme + "://" + c.Host + strings.TrimSuffix(c.Path, "/") + "/" + c.repo() + "/blobs/" + dgst
	if ns := c.spec.Hostname(); ns != c.Host && !(ns == "docker.io" && c.Host == "registry-1.docker.io") {
		u += "?ns=" + ns
	}
	return u
}

// candidates returns whom to ask, in order: the newest origin first, its hosts as
// configured; behind them the hosts that failed lately, that ignore ranges, that
// do not have this blob, or that sent wrong bytes of it.
func (e *entry) candidates(ctx context.Context) ([]*candidate, error) {
	e.mu.Lock()
	origins := slices.Clone(e.mu.origins)
	e.mu.Unlock()
	var out []*candidate
	var errs []error
	for _, o := range origins {
		cands, err := e.store.candidatesOf(ctx, o)
		if err != nil {
			errs = append(errs, err)
		}
		for _, c := range cands {
			if !slices.ContainsFunc(out, func(o *candidate) bool { return o.key() == c.key() }) {
				out = append(out, c)
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.Join(errs...)
	}
	e.rank(out)
	return out, nil
}

// candidatesOf asks one origin for its hosts.
func (s *Store) candidatesOf(ctx context.Context, o Origin) ([]*candidate, error) {
	spec, err := reference.Parse(o.Reference)
	if err != nil {
		return nil, fmt.Errorf("reference %q: %w", o.Reference, err)
	}
	ctx, cancel := context.WithTimeout(ctx, s.opts.AuthTimeout)
	defer cancel()
	hosts, err := o.Hosts(ctx)
	if err != nil {
		return nil, fmt.Errorf("hosts of %s: %w", o.Reference, err)
	}
	var out []*candidate
	for _, h := range hosts {
		if !h.Capabilities.Has(docker.HostCapabilityPull) {
			continue
		}
		out = append(out, &candidate{
			RegistryHost: h,
			spec:         spec,
			host:         s.host(h.Scheme + "://" + h.Host),
			client:       noRedirects(h.Client),
		})
	}
	return out, nil
}

func (e *entry) rank(cands []*candidate) {
	score := make(map[*candidate]int, len(cands))
	e.mu.Lock()
	for _, c := range cands {
		if e.mu.misses[c.key()] {
			score[c] += 4
		}
		score[c] += 8 * e.mu.lies[c.key()]
	}
	e.mu.Unlock()
	for _, c := range cands {
		if avoid, _ := c.host.state(); avoid {
			score[c] += 2
		}
		if c.host.noRange.holds() {
			score[c]++
		}
	}
	slices.SortStableFunc(cands, func(a, b *candidate) int { return score[a] - score[b] })
}

// trusts says that c has not lacked the blob, nor lied about it.
func (e *entry) trusts(c *candidate) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.mu.misses[c.key()] && e.mu.lies[c.key()] == 0
}

// noteCandidate remembers whether c has the blob.
func (e *entry) noteCandidate(c *candidate, has bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if has {
		delete(e.mu.misses, c.key())
		return
	}
	if e.mu.misses == nil {
		e.mu.misses = map[string]bool{}
	}
	e.mu.misses[c.key()] = true
}

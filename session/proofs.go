package session

import (
	"context"
	"errors"
	"fmt"
	"maps"

	"github.com/containerd/containerd/v2/pkg/reference"
	"github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
)

const (
	maxProofs   = 4096 // remembered; to forget one costs a request
	firstForget = 128  // proofs: those of ended sessions are forgotten, and again at twice what was left
)

// claim is that a session may read a repository.
type claim struct{ repo, id string }

// proving is one request that is to prove a claim.
type proving struct {
	done chan struct{}
	err  error // final when done is closed
	left bool  // its caller went away; says nothing of the claim
}

// Vouch notes that the sessions have just read from ref's repository by
// themselves, so that Prove need not ask. Sessions that are not connected are not
// noted.
func (r *Registry) Vouch(ref string, ids ...string) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return
	}
	for _, id := range distinct(ids) {
		if c := r.caller(id); c != nil {
			r.note(claim{spec.Locator, id}, c)
		}
	}
}

// Prove makes sure that one of the sessions may read ref's repository. It returns
// nil at once when one of them has proved that before and is still connected.
// Otherwise check is called for one after the other, until it returns nil: it has
// to ask the registry as that session alone ([Registry.HostsOf]), and keeps an
// error's class. When none is connected it is called with "", to ask as nobody;
// what comes of that is not remembered.
//
// An error of class unauthenticated, permission denied or not found says that
// none may. One of class unavailable says that this is not known: a session left,
// or the registry could not be asked. Neither is remembered. Callers who want to
// know the same of a session at the same time share one check.
func (r *Registry) Prove(ctx context.Context, ref string, sessions func() []string, check func(ctx context.Context, id string) error) error {
	spec, err := reference.Parse(ref)
	if err != nil {
		return fmt.Errorf("rights to %q: %w: %w", ref, errdefs.ErrInvalidArgument, err)
	}
	var named []string
	if sessions != nil {
		named = distinct(sessions())
	}
	for _, id := range named {
		if r.proven(claim{spec.Locator, id}) {
			return nil
		}
	}
	ids := r.connected(r.ranked(spec.Locator, named), maxSessions)
	if len(ids) == 0 {
		return r.proveAnonymous(ctx, len(named), check)
	}
	var errs []error
	sure := true
	for _, id := range ids {
		err := r.prove(ctx, claim{spec.Locator, id}, check)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		sure = sure && isRefusal(err) && r.caller(id) != nil
		errs = append(errs, fmt.Errorf("session %s: %w", id, err))
	}
	return verdict(errors.Join(errs...), sure)
}

// proveAnonymous asks as nobody, in place of so many sessions that are away.
func (r *Registry) proveAnonymous(ctx context.Context, away int, check func(ctx context.Context, id string) error) error {
	err := check(ctx, "")
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	sure := isRefusal(err) && away == 0
	if away > 0 {
		err = fmt.Errorf("none of %d sessions is connected; without one: %w", away, err)
	}
	return verdict(err, sure)
}

// isRefusal says whether a registry answered that the caller may not.
func isRefusal(err error) bool {
	return errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err)
}

// verdict gives err the class that it is to have: unless it is sure, nobody may
// take it for a refusal.
func verdict(err error, sure bool) error {
	if sure {
		return err
	}
	return fmt.Errorf("%w: %v", errdefs.ErrUnavailable, err)
}

// prove checks one claim, or waits for a check that is under way.
func (r *Registry) prove(ctx context.Context, c claim, check func(ctx context.Context, id string) error) error {
	for {
		p, first := r.begin(c)
		if first {
			return r.check(ctx, c, p, check)
		}
		select {
		case <-p.done:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		// Another layer may be there even if that one was not found.
		if !p.left && !errdefs.IsNotFound(p.err) {
			return p.err
		}
	}
}

// begin returns the check of a claim, and whether it is the caller's to do.
func (r *Registry) begin(c claim) (*proving, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := r.mu.proving[c]; p != nil {
		return p, false
	}
	p := &proving{done: make(chan struct{}), left: true}
	r.mu.proving[c] = p
	return p, true
}

func (r *Registry) check(ctx context.Context, c claim, p *proving, check func(ctx context.Context, id string) error) error {
	defer func() {
		r.mu.Lock()
		delete(r.mu.proving, c)
		r.mu.Unlock()
		close(p.done)
	}()
	// The session that is asked is this one, not a later one of the same name.
	caller := r.caller(c.id)
	if caller == nil {
		p.left = false
		p.err = bksession.ErrNoActiveSessions
		return p.err
	}
	err := check(ctx, c.id)
	p.err, p.left = err, err != nil && ctx.Err() != nil
	if err == nil {
		r.note(c, caller)
	}
	return err
}

// note remembers a proof.
func (r *Registry) note(c claim, caller bksession.Caller) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.mu.proofs) >= r.mu.forgetAt {
		maps.DeleteFunc(r.mu.proofs, func(c claim, p bksession.Caller) bool { return r.caller(c.id) != p })
		r.mu.forgetAt = max(firstForget, 2*len(r.mu.proofs))
	}
	for old := range r.mu.proofs {
		if len(r.mu.proofs) < maxProofs {
			break
		}
		delete(r.mu.proofs, old)
	}
	r.mu.proofs[c] = caller
	if repo := r.mu.repos[c.repo]; repo != nil {
		delete(repo.refused, c.id)
	}
}

// proven says whether a claim was proved by the session that is connected now.
func (r *Registry) proven(c claim) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, ok := r.mu.proofs[c]
	if !ok {
		return false
	}
	if r.caller(c.id) != p {
		delete(r.mu.proofs, c)
		return false
	}
	return true
}

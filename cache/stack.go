package cache

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"

	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sync/errgroup"
)

// stack makes what the snapshot of a merge or diff is made of.
//
// Where layers can be lazy, those that come from blobs are stacked on one another
// as they would be in an image that has them all: a layer whose own parent is
// another one becomes a second remote snapshot, on the new parent, without a
// request or a copy. From the first layer on that does not come from a blob (what a
// step has written holds opaque directories, which mean its own parent) the
// differences are applied one by one, as BuildKit does.
func (p *preparation) stack(ctx context.Context, r *record) (*stack, error) {
	s := &stack{preparation: p, layers: r.layerList()}
	if p.m.lazy != nil {
		if err := s.build(ctx); err != nil {
			return nil, err
		}
	}
	return s, p.ensureSides(ctx, s.layers[s.done:])
}

// merge makes the snapshot on a stack.
func (p *preparation) merge(ctx context.Context, r *record, s *stack) (rerr error) {
	if ok, err := p.m.hasSnapshot(ctx, r); ok || err != nil {
		return err
	}
	stop := p.progressOfMerge(ctx, r)
	defer func() { stop(rerr) }()
	rest := s.layers[s.done:]
	if len(rest) == 0 {
		return p.m.commitEmpty(ctx, r.snapshotID(), s.base)
	}
	diffs, err := p.m.linear(ctx, s.base)
	if err != nil {
		return err
	}
	for _, l := range rest {
		diffs = append(diffs, diffOf(l))
	}
	if err := p.m.sn.Merge(ctx, r.snapshotID(), diffs); err != nil && !cerrdefs.IsAlreadyExists(err) {
		return fmt.Errorf("merge into record %s: %w", r.ID(), err)
	}
	return nil
}

// diffOf is a layer, or a diff, as BuildKit's snapshotter takes it.
func diffOf(l *record) (d snapshot.Diff) {
	lower, upper := l.sides()
	if lower != nil {
		d.Lower = lower.snapshotID()
	}
	if upper != nil {
		d.Upper = upper.snapshotID()
	}
	return d
}

// ensureSides makes the snapshots that differences are made between, side by side.
func (p *preparation) ensureSides(ctx context.Context, layers []*record) error {
	eg, ctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		lower, upper := l.sides()
		for _, side := range []*record{lower, upper} {
			if side != nil {
				eg.Go(func() error { return p.ensure(ctx, side) })
			}
		}
	}
	return eg.Wait()
}

// progressOfMerge shows in the build's progress that differences are applied.
func (p *preparation) progressOfMerge(ctx context.Context, r *record) (stop func(error)) {
	pg := p.ref.pg
	if pg == nil {
		return func(error) {}
	}
	what := "merging"
	if r.kind() == kindDiff {
		what = "diffing"
	}
	id := what
	if r != p.ref.record {
		if id = r.GetDescription(); id == "" {
			id = what + " " + r.ID()
		}
	}
	_, end := pg.Start(ctx)
	done := pg.Status(id, what)
	return func(err error) {
		done()
		end(err)
	}
}

// stack is a chain of snapshots that grows by layers.
type stack struct {
	*preparation
	layers []*record
	done   int           // how many layers are in the chain
	base   string        // the topmost snapshot, "" at the beginning
	chain  digest.Digest // of base, "" when it is not known
}

// build takes as many layers as come from blobs that are, or can be, lazy, and
// those at the bottom that lie on one another already.
func (s *stack) build(ctx context.Context) error {
	for _, l := range s.layers {
		ok, err := s.add(ctx, l)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		s.done++
	}
	return nil
}

// add puts a layer on top; false when it has to be applied as a difference.
func (s *stack) add(ctx context.Context, l *record) (bool, error) {
	if !l.isLayer() {
		return false, nil
	}
	d := diffOf(l)
	if d.Lower == s.base {
		// It may be used as it is, once it is known to have a snapshot.
		if err := s.ensure(ctx, l); err != nil {
			return false, err
		}
		info, err := s.m.sn.Stat(ctx, l.snapshotID())
		if err != nil {
			return false, err
		}
		if info.Parent == s.base {
			s.base, s.chain = l.snapshotID(), keyChainID.get(l.meta)
			if l.onLegacySnapshot() {
				s.chain = "" // it lends its contents to no other name
			}
			return true, nil
		}
	}
	return s.stackRemote(ctx, l)
}

// stackRemote makes a remote snapshot of a lazy layer on a parent that is not its own.
func (s *stack) stackRemote(ctx context.Context, l *record) (bool, error) {
	lazy, err := l.isLazy(ctx)
	if err != nil || !lazy {
		return false, err
	}
	src, ok := s.sources[l]
	if !ok {
		// It has a snapshot already, so nobody has resolved it in this preparation.
		list, err := s.m.usable(ctx, l, s.ref.handlers)
		if err != nil || len(list) == 0 {
			return false, err
		}
		if src, err = s.resolveOne(ctx, l, list); err != nil {
			return false, ctx.Err()
		}
	}
	name, chain := s.nameOf(l)
	// Before the look at it: what is there may be on its way out otherwise.
	if err := s.m.keep(ctx, s.m.snapshotResource(name)); err != nil {
		return false, err
	}
	info, err := s.m.sn.Stat(ctx, name)
	switch {
	case err == nil && info.Parent == s.base:
		s.base, s.chain = name, chain
		return true, nil
	case err == nil:
		name, chain = identity.NewID(), ""
		if err := s.m.keep(ctx, s.m.snapshotResource(name)); err != nil {
			return false, err
		}
	case !cerrdefs.IsNotFound(err):
		return false, fmt.Errorf("snapshot %s: %w", name, err)
	}
	if err := s.m.prepareRemote(ctx, name, s.base, src); err != nil {
		if ctx.Err() != nil {
			return false, err
		}
		bklog.G(ctx).WithError(err).Warnf("cache: layer %s can't be stacked", src.Digest)
		return false, nil
	}
	s.base, s.chain = name, chain
	return true, nil
}

// nameOf names the snapshot of a layer on top: as an image with these layers has it.
func (s *stack) nameOf(l *record) (name string, chain digest.Digest) {
	id := l.identity()
	switch {
	case id == "" || l.isLegacySnapshot() || s.base != "" && s.chain == "":
		return identity.NewID(), ""
	case s.base == "":
		return layerSnapshotID(id), id
	}
	chain = imageid.ChainID([]digest.Digest{s.chain, id})
	return layerSnapshotID(chain), chain
}

// linear lists a chain of snapshots as differences, which BuildKit's snapshotter
// recognizes and starts from.
func (m *Manager) linear(ctx context.Context, top string) (diffs []snapshot.Diff, err error) {
	for top != "" {
		info, err := m.sn.Stat(ctx, top)
		if err != nil {
			return nil, fmt.Errorf("snapshot %s: %w", top, err)
		}
		diffs = append([]snapshot.Diff{{Lower: info.Parent, Upper: top}}, diffs...)
		top = info.Parent
	}
	return diffs, nil
}

// commitEmpty makes a snapshot that shows what base does.
func (m *Manager) commitEmpty(ctx context.Context, name, base string) error {
	key := identity.NewID()
	if err := m.sn.Prepare(ctx, key, base); err != nil {
		return fmt.Errorf("snapshot %s: %w", name, err)
	}
	if err := m.sn.Commit(ctx, name, key); err != nil {
		m.discard(ctx, key)
		if cerrdefs.IsAlreadyExists(err) {
			return nil
		}
		return fmt.Errorf("snapshot %s: %w", name, err)
	}
	return nil
}

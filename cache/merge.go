package cache

import (
	"context"
	"errors"
	"fmt"
	"maps"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/progress"
)

// Merge implements bkcache.Accessor: a record with the layers of all inputs, in
// order. Nil inputs are left out; a merge of nothing is nil, and of one record that
// record. Merges among the inputs are replaced by what they are merges of.
func (m *Manager) Merge(ctx context.Context, inputs []bkcache.ImmutableRef, pg progress.Controller, opts ...bkcache.RefOption) (_ bkcache.ImmutableRef, rerr error) {
	handlers := bkcache.DescHandlers{}
	var held []*immutableRef
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, releaseAll(ctx, held))
		}
	}()
	for _, input := range inputs {
		if input == nil {
			continue
		}
		h, err := m.immutable(ctx, input, parseOptions(opts).handlers)
		if err != nil {
			return nil, err
		}
		maps.Copy(handlers, h.handlers)
		if h.kind() != kindMerge {
			held = append(held, h)
			continue
		}
		for _, p := range h.parents.merge {
			held = append(held, p.clone())
		}
		if err := h.Release(context.WithoutCancel(ctx)); err != nil {
			return nil, err
		}
	}
	h, err := m.mergeOf(ctx, held, handlers, pg, opts)
	if err != nil || h == nil {
		return nil, err
	}
	return h, nil
}

func releaseAll(ctx context.Context, refs []*immutableRef) error {
	var errs []error
	for _, h := range refs {
		errs = append(errs, h.Release(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// mergeOf makes the record of a merge; after success the refs are its own.
func (m *Manager) mergeOf(ctx context.Context, refs []*immutableRef, handlers bkcache.DescHandlers, pg progress.Controller, opts []bkcache.RefOption) (*immutableRef, error) {
	switch len(refs) {
	case 0:
		return nil, nil
	case 1:
		refs[0].pg = pg
		return refs[0], nil
	}
	for _, h := range refs {
		if err := h.Finalize(ctx); err != nil {
			return nil, fmt.Errorf("merge: %w", err)
		}
	}
	return m.made(ctx, parents{merge: refs}, handlers, pg, opts)
}

// made makes the record of a merge or diff, whose snapshot is made at first use.
func (m *Manager) made(ctx context.Context, p parents, handlers bkcache.DescHandlers, pg progress.Controller, opts []bkcache.RefOption) (_ *immutableRef, rerr error) {
	id := identity.NewID()
	undo, err := m.lease(ctx, id, m.snapshotResource(id))
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr != nil {
			undo()
		}
	}()
	r := m.newRecord(m.newItem(id), p, false, newState())
	var c change
	p.save(&c)
	put(&c, keyCreatedAt, m.now().UnixNano())
	put(&c, keySnapshot, id)
	put(&c, keyCommitted, true)
	if err := r.create(c, opts); err != nil {
		return nil, err
	}
	return &immutableRef{m.add(r, handlers, pg)}, nil
}

// Diff implements bkcache.Accessor: a record with what upper, which may be nil, has
// more or less than lower. When upper stands on lower the diff is the layers
// between them, so that their blobs are used as they are.
func (m *Manager) Diff(ctx context.Context, lower, upper bkcache.ImmutableRef, pg progress.Controller, opts ...bkcache.RefOption) (_ bkcache.ImmutableRef, rerr error) {
	if lower == nil {
		return nil, fmt.Errorf("diff without a lower record: %w", errInvalid)
	}
	handlers := bkcache.DescHandlers{}
	known := parseOptions(opts).handlers
	p := parents{diff: true}
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, releaseAll(ctx, p.all()))
		}
	}()
	var err error
	if p.lower, err = m.immutable(ctx, lower, known); err != nil {
		return nil, err
	}
	maps.Copy(handlers, p.lower.handlers)
	if upper != nil {
		if p.upper, err = m.immutable(ctx, upper, known); err != nil {
			return nil, err
		}
		maps.Copy(handlers, p.upper.handlers)
	}
	if between := p.between(); len(between) > 0 {
		h, err := m.diffOfLayers(ctx, between, handlers, pg)
		if err != nil {
			return nil, err
		}
		if err := releaseAll(ctx, p.all()); err != nil {
			return nil, errors.Join(err, h.Release(context.WithoutCancel(ctx)))
		}
		return h, nil
	}
	h, err := m.diffOf(ctx, p, handlers, pg, opts)
	if err != nil {
		return nil, err
	}
	return h, nil
}

// between lists the layers of upper above lower, when upper stands on lower and
// there is more than one of them: a single one is the diff's onlyLayer.
func (p parents) between() []*record {
	if p.upper == nil {
		return nil
	}
	lower, upper := p.lower.layerList(), p.upper.layerList()
	if len(upper) <= len(lower)+1 {
		return nil
	}
	for i, l := range lower {
		if upper[i] != l {
			return nil
		}
	}
	return upper[len(lower):]
}

// diffOfLayers merges what each of the layers adds.
func (m *Manager) diffOfLayers(ctx context.Context, layers []*record, handlers bkcache.DescHandlers, pg progress.Controller) (_ *immutableRef, rerr error) {
	var refs []*immutableRef
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, releaseAll(ctx, refs))
		}
	}()
	for _, l := range layers {
		h := m.again(l, handlers, pg)
		if l.parents.layer != nil {
			p := parents{diff: true, lower: l.parents.layer.clone(), upper: h}
			what := fmt.Sprintf("diff %q -> %q", p.lower.ID(), l.ID())
			d, err := m.diffOf(ctx, p, handlers, pg, []bkcache.RefOption{bkcache.WithDescription(what)})
			if err != nil {
				return nil, errors.Join(err, releaseAll(ctx, p.all()))
			}
			// The merge's hold is no use of the diff.
			m.mu.Lock()
			d.touches = false
			m.mu.Unlock()
			h = d
		}
		refs = append(refs, h)
	}
	return m.mergeOf(ctx, refs, handlers, pg, nil)
}

// again holds a record that somebody holds.
func (m *Manager) again(r *record, handlers bkcache.DescHandlers, pg progress.Controller) *immutableRef {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &immutableRef{r.holdLocked(false, handlers, pg)}
}

// diffOf makes the record of a diff; after success the parents are its own.
func (m *Manager) diffOf(ctx context.Context, p parents, handlers bkcache.DescHandlers, pg progress.Controller, opts []bkcache.RefOption) (*immutableRef, error) {
	for _, h := range p.all() {
		if err := h.Finalize(ctx); err != nil {
			return nil, fmt.Errorf("diff: %w", err)
		}
	}
	return m.made(ctx, p, handlers, pg, opts)
}

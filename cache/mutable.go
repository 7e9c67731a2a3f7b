package cache

import (
	"context"
	"errors"
	"fmt"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
)

// errInvalid is wrapped by errors of callers that ask for what a record is not.
var errInvalid = errors.New("invalid")

// New implements bkcache.Accessor: a mutable record on top of parent, which may be
// nil. What is missing of the parent is prepared first, with the credentials of s.
func (m *Manager) New(ctx context.Context, parent bkcache.ImmutableRef, s bksession.Group, opts ...bkcache.RefOption) (_ bkcache.MutableRef, rerr error) {
	var p parents
	var handlers bkcache.DescHandlers
	parentSnapshot := ""
	if parent != nil {
		h, err := m.immutable(ctx, parent, parseOptions(opts).handlers)
		if err != nil {
			return nil, err
		}
		defer func() {
			if rerr != nil {
				rerr = errors.Join(rerr, h.Release(context.WithoutCancel(ctx)))
			}
		}()
		if err := h.Finalize(ctx); err != nil {
			return nil, err
		}
		if err := h.Extract(ctx, s); err != nil {
			return nil, err
		}
		p.layer, handlers, parentSnapshot = h, h.handlers, h.snapshotID()
	}
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
	if err := m.sn.Prepare(ctx, id, parentSnapshot); err != nil {
		return nil, fmt.Errorf("record %s: prepare its snapshot on %q: %w", id, parentSnapshot, err)
	}
	r := m.newRecord(m.newItem(id), p, true, newState())
	var c change
	p.save(&c)
	put(&c, keyCreatedAt, m.now().UnixNano())
	put(&c, keySnapshot, id)
	if err := r.create(c, opts); err != nil {
		return nil, err
	}
	return &mutableRef{m.add(r, handlers, nil)}, nil
}

// GetMutable implements bkcache.Accessor. An immutable twin that nobody uses is
// given up for it. bkcache.ErrLocked when one of the two is in use.
func (m *Manager) GetMutable(ctx context.Context, id string, opts ...bkcache.RefOption) (bkcache.MutableRef, error) {
	o := parseOptions(opts)
	h, twin, err := m.seize(id, o)
	if err != nil {
		return nil, err
	}
	if err := m.checkProviders(ctx, h.record, o.handlers); err != nil {
		m.unseize(h, twin)
		return nil, err
	}
	if twin == nil {
		return h, nil
	}
	// Before anything is written to the snapshot: a process that ended would
	// otherwise find the twin with contents that are not its own.
	if err := m.erase(ctx, doomed{record: twin}); err != nil {
		m.unseize(h, twin)
		return nil, err
	}
	for _, p := range twin.parents.all() {
		if err := m.finish(ctx, m.letGo(p.ref)); err != nil {
			bklog.G(ctx).WithError(err).Warnf("cache: parent %s of a twin that was given up", p.ID())
		}
	}
	return h, nil
}

// seize holds a mutable record and takes its twin out of the table.
func (m *Manager) seize(id string, o options) (h *mutableRef, twin *record, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.mu.records[id]
	switch {
	case r == nil:
		return nil, nil, notFound(id)
	case !r.mutable:
		return nil, nil, fmt.Errorf("record %s is not mutable: %w", id, errInvalid)
	case len(r.refs) > 0 || r.twin != nil && len(r.twin.refs) > 0:
		return nil, nil, fmt.Errorf("record %s: %w", id, bkcache.ErrLocked)
	}
	if twin = r.twin; twin != nil {
		m.dropLocked(twin)
		r.twin = nil
	}
	return &mutableRef{r.holdLocked(true, o.handlers, nil)}, twin, nil
}

// unseize undoes seize.
func (m *Manager) unseize(h *mutableRef, twin *record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(h.record.refs, h.ref)
	if twin != nil {
		twin.dead = false
		h.record.twin = twin
		m.mu.records[twin.ID()] = twin
	}
}

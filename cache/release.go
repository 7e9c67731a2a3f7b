package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/moby/buildkit/util/bklog"
)

// doomed is a record that is in nobody's hands any more and has to be erased: its
// metadata and, with data, its leases.
type doomed struct {
	record *record
	data   bool
}

// ending is what has to be done, without the lock, after a ref was given up.
type ending struct {
	touched *record  // its use is to be counted
	viewed  *record  // its view is to be closed
	erased  []doomed // in this order
}

// Release implements bkcache.Ref. The last ref of a record that is not to be
// retained, and that nobody has finalized, removes it. Releasing twice does nothing.
func (h *immutableRef) Release(ctx context.Context) error {
	return h.m.finish(ctx, h.m.letGo(h.ref))
}

// Release implements bkcache.Ref. It removes the record unless it is to be
// retained. After Commit it does nothing.
func (h *mutableRef) Release(ctx context.Context) error {
	return h.m.finish(ctx, h.m.letGo(h.ref))
}

// letGo gives up a ref and says what follows from that.
func (m *Manager) letGo(h *ref) (e ending) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := h.record
	if _, ok := r.refs[h]; !ok {
		return e
	}
	delete(r.refs, h)
	if h.touches && !r.touchedLaterLocked() {
		e.touched = r
	}
	if len(r.refs) > 0 {
		return e
	}
	mut := r
	switch {
	case r.mutable:
	case r.twin == nil:
		e.viewed = r
		return e
	default:
		mut = r.twin
		if len(mut.refs) > 0 {
			return e
		}
	}
	retain := mut.HasCachePolicyRetain() || mut.twin != nil && mut.twin.HasCachePolicyRetain()
	if retain && !mut.dead {
		return e
	}
	e.touched = nil
	if mut.twin != nil {
		m.dropLocked(mut.twin)
		e.erased = append(e.erased, doomed{record: mut.twin})
	}
	m.dropLocked(mut)
	e.erased = append(e.erased, doomed{record: mut, data: true})
	return e
}

// touchedLaterLocked says that another ref will count the use when it is given up.
func (r *record) touchedLaterLocked() bool {
	for h := range r.refs {
		if h.touches {
			return true
		}
	}
	return false
}

// finish does what follows from giving up a ref. It goes on to the end even if
// ctx is cancelled, or a part fails.
func (m *Manager) finish(ctx context.Context, e ending) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	if r := e.touched; r != nil {
		errs = append(errs, m.touch(r))
	}
	if e.viewed != nil {
		errs = append(errs, e.viewed.closeView(ctx))
	}
	return errors.Join(append(errs, m.eraseAll(ctx, e.erased...))...)
}

// touch counts a use of a record, and of the mutable twin, by which prune goes.
func (m *Manager) touch(r *record) error {
	m.mu.Lock()
	twin := r.twin
	dead := r.dead
	m.mu.Unlock()
	if dead {
		return nil
	}
	err := r.meta.touch(m.now(), r.mutable)
	if twin != nil && twin.mutable {
		err = errors.Join(err, twin.meta.touch(m.now(), false))
	}
	return err
}

// eraseAll erases records and gives up their parents. What fails is kept for the
// next prune.
func (m *Manager) eraseAll(ctx context.Context, list ...doomed) error {
	ctx = context.WithoutCancel(ctx)
	var errs []error
	for len(list) > 0 {
		d := list[0]
		list = list[1:]
		if err := m.erase(ctx, d); err != nil {
			errs = append(errs, err)
			m.keepDoomed(d)
		}
		for _, p := range d.record.parents.all() {
			e := m.letGo(p.ref)
			list = append(list, e.erased...)
			e.erased = nil
			errs = append(errs, m.finish(ctx, e))
		}
	}
	return errors.Join(errs...)
}

// erase removes what is stored of a record. It is marked first: a process that
// ends in between finds out at its next start.
func (m *Manager) erase(ctx context.Context, d doomed) error {
	id := d.record.ID()
	if d.data {
		var c change
		put(&c, keyDeleted, true)
		if err := d.record.commit(c); err != nil {
			return fmt.Errorf("erase: %w", err)
		}
		for _, lease := range []string{viewLease(id), variantsLease(id), id} {
			if err := m.endLease(ctx, lease); err != nil {
				return fmt.Errorf("erase record %s: %w", id, err)
			}
		}
	}
	if err := m.opts.Metadata.Clear(id); err != nil {
		return fmt.Errorf("erase record %s: %w", id, err)
	}
	m.forgetReason(keyBlob.get(d.record.meta))
	return nil
}

// keepDoomed remembers a record that could not be erased.
func (m *Manager) keepDoomed(d doomed) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !slices.ContainsFunc(m.mu.doomed, func(o doomed) bool { return o.record == d.record }) {
		m.mu.doomed = append(m.mu.doomed, d)
	}
}

// eraseDoomed tries again to erase what could not be erased before.
func (m *Manager) eraseDoomed(ctx context.Context) {
	m.mu.Lock()
	list := m.mu.doomed
	m.mu.doomed = nil
	m.mu.Unlock()
	for _, d := range list {
		if err := m.erase(ctx, d); err != nil {
			bklog.G(ctx).WithError(err).Warn("cache: a record can't be erased yet")
			m.keepDoomed(d)
		}
	}
}

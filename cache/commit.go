package cache

import (
	"context"
	"errors"
	"fmt"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/bklog"
)

// Commit implements bkcache.MutableRef: the record's state becomes an immutable
// record, its twin. The ref is used up by that; after an error it is as before.
func (h *mutableRef) Commit(ctx context.Context) (bkcache.ImmutableRef, error) {
	c, err := h.commit(ctx)
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (h *mutableRef) commit(ctx context.Context) (_ *immutableRef, rerr error) {
	m, mut := h.m, h.record
	if err := mut.state.io.lock(ctx); err != nil {
		return nil, err
	}
	defer mut.state.io.unlock()
	p, err := m.parentsForTwin(h.ref)
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr != nil {
			for _, c := range p.all() {
				m.unhold(c.ref)
			}
		}
	}()
	id := identity.NewID()
	r := m.newRecord(m.newItem(id), p, false, mut.state)
	var c change
	p.save(&c)
	put(&c, keyCreatedAt, m.now().UnixNano())
	put(&c, keyCommitted, true)
	put(&c, keySize, sizeUnknown)
	put(&c, keySnapshot, id)
	put(&c, keyTwin, mut.ID())
	var opts []bkcache.RefOption
	if d := mut.GetDescription(); d != "" {
		opts = append(opts, bkcache.WithDescription(d))
	}
	if err := r.create(c, opts); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(mut.refs, h.ref)
	m.mu.records[id] = r
	r.twin, mut.twin = mut, r
	return &immutableRef{r.holdLocked(true, h.handlers, nil)}, nil
}

// parentsForTwin holds the parents of a mutable record once more, for the twin to be.
func (m *Manager) parentsForTwin(h *ref) (p parents, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := h.record.refs[h]; !ok || h.record.twin != nil {
		return p, fmt.Errorf("record %s: its ref was given up or committed before: %w", h.record.ID(), errInvalid)
	}
	if l := h.record.parents.layer; l != nil {
		p.layer = &immutableRef{l.record.holdLocked(false, l.handlers, l.pg)}
	}
	return p, nil
}

// Finalize implements bkcache.ImmutableRef: it ends the sharing with the mutable
// twin, if there is one, by committing its snapshot.
func (h *immutableRef) Finalize(ctx context.Context) error {
	if h.twinNow() == nil {
		return nil
	}
	if err := h.state.io.lock(ctx); err != nil {
		return err
	}
	mut, err := h.record.finalize(ctx)
	h.state.io.unlock()
	if mut == nil {
		return err
	}
	return errors.Join(err, h.m.eraseAll(ctx, doomed{record: mut, data: true}))
}

func (r *record) twinNow() *record {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.twin
}

// finalize commits the snapshot and returns the mutable record, to be erased even
// if there is an error; nil when another call has done that, or nothing was done.
// The caller holds state.io.
func (r *record) finalize(ctx context.Context) (mut *record, err error) {
	m, id := r.m, r.ID()
	if mut = r.twinNow(); mut == nil {
		return nil, nil
	}
	// Stock's migrations have left leases for everything, so there may be one.
	if err := m.ensureLease(ctx, id, leaseOpts(flat), m.snapshotResource(r.snapshotID())); err != nil {
		m.unlease(ctx, id)
		return nil, fmt.Errorf("finalize record %s: %w", id, err)
	}
	if err := m.sn.Commit(ctx, r.snapshotID(), mut.snapshotID()); err != nil {
		err = fmt.Errorf("finalize record %s: commit snapshot %s: %w", id, mut.snapshotID(), err)
		if err := m.afterFailedCommit(context.WithoutCancel(ctx), r, mut, err); err != nil {
			m.unlease(ctx, id)
			return nil, err
		}
	}
	r.mounted, mut.mounted = nil, nil
	m.mu.Lock()
	m.dropLocked(mut)
	r.twin, mut.twin = nil, nil
	m.mu.Unlock()
	// If this fails, the next start finds the snapshot without the mutable record,
	// and does the same.
	var c change
	drop(&c, keyTwin)
	return mut, r.meta.commit(c)
}

// afterFailedCommit looks what a commit that has failed with err has left: nil when it
// has been done nevertheless.
func (m *Manager) afterFailedCommit(ctx context.Context, r, mut *record, err error) error {
	active, aerr := m.hasSnapshot(ctx, mut)
	committed, cerr := m.hasSnapshot(ctx, r)
	switch {
	case aerr != nil || cerr != nil || active:
		return err
	case committed:
		bklog.G(ctx).WithError(err).Warn("cache: a snapshot was committed in spite of an error")
		return nil
	}
	m.lose(r, mut)
	return fmt.Errorf("%w: %w", errLost, err)
}

// errLost is wrapped by the errors of records whose contents nobody can reach.
var errLost = errors.New("the result of a step is lost, which the next build will make again")

// lose takes twins out of the table whose snapshot is neither active nor committed:
// where containerd's database can't be written, on a full disk, what it has noted of
// a commit is rolled back, but not what its snapshotter has done. Nobody finds them
// from now on, so that their step runs again. Those who hold them keep them until
// they let go; then they are erased.
func (m *Manager) lose(twins ...*record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range twins {
		m.dropLocked(r)
	}
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"

	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/util/bklog"
)

// loader brings the records of the metadata store into the table. A process may
// have ended in the middle of anything, so each is checked against its parents,
// its twin and the snapshotter.
type loader struct {
	m     *Manager
	items map[string]*metadata.StorageItem
	done  map[string]error // nil: in the table
}

// load reads all records. One that can't be used is removed with its leases; one
// whose removal fails is tried again at the next prune.
func (m *Manager) load(ctx context.Context) error {
	items, err := m.opts.Metadata.All()
	if err != nil {
		return fmt.Errorf("read records: %w", err)
	}
	l := &loader{m: m, items: make(map[string]*metadata.StorageItem), done: make(map[string]error)}
	for _, si := range items {
		l.items[si.ID()] = si
	}
	for _, si := range items {
		err := l.record(ctx, si.ID())
		if err == nil {
			continue
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if errors.Is(err, errUnclear) {
			bklog.G(ctx).Warnf("cache: record %s is left alone until the next start: %v", si.ID(), err)
			continue
		}
		bklog.G(ctx).Debugf("cache: record %s is removed: %v", si.ID(), err)
		m.eraseAll(ctx, doomed{record: m.newRecord(si, parents{}, false, newState()), data: true})
	}
	return m.sweepLeases(ctx, l.items)
}

// sweepLeases ends the leases of records that a process has not got to write before
// it ended, and of those that it has not got to finalize: nobody else would, and what they
// hold would stay for good.
func (m *Manager) sweepLeases(ctx context.Context, items map[string]*metadata.StorageItem) error {
	all, err := m.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range all {
		id := leaseOwner(l.ID)
		ours := l.Labels[labelFlat] != "" || id != l.ID
		if !ours || !isRecordID(id) || items[id] != nil && !m.awaitsCommit(id) {
			continue
		}
		bklog.G(ctx).Debugf("cache: lease %s of a record that was not made is ended", l.ID)
		m.unlease(ctx, l.ID)
	}
	return nil
}

// awaitsCommit says whether a record's snapshot is its mutable twin's still.
func (m *Manager) awaitsCommit(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.mu.records[id]
	return r != nil && !r.mutable && r.twin != nil
}

// recordIDLength is that of BuildKit's random identifiers, which are in base 36.
const recordIDLength = 25

func isRecordID(id string) bool {
	return len(id) == recordIDLength && strings.Trim(id, "0123456789abcdefghijklmnopqrstuvwxyz") == ""
}

// errUnclear is wrapped by errors after which nothing is known of a record, so that
// it is not removed.
var errUnclear = errors.New("can't be checked")

// errLoading breaks cycles of parents, which only a damaged store can have.
var errLoading = errors.New("record is its own ancestor")

// record loads one record after those that it needs.
func (l *loader) record(ctx context.Context, id string) error {
	if err, ok := l.done[id]; ok {
		return err
	}
	si := l.items[id]
	if si == nil {
		return notFound(id)
	}
	l.done[id] = errLoading
	err := l.open(ctx, si)
	l.done[id] = err
	return err
}

func (l *loader) open(ctx context.Context, si *metadata.StorageItem) error {
	m, md := l.m, newMeta(si)
	if keyDeleted.get(md) {
		return errors.New("it was being deleted")
	}
	p, err := l.parents(ctx, md)
	if err != nil {
		return err
	}
	r := m.newRecord(si, p, !keyCommitted.get(md), newState())
	if k := r.kind(); k == kindMerge || k == kindDiff {
		r.mutable = false // BuildKit v0.10 did not say that they are committed
	}
	if err := l.check(ctx, r); err != nil {
		// Nothing else is known of the refs: the table is not in use yet.
		for _, h := range p.all() {
			m.unhold(h.ref)
		}
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.records[r.ID()] = r
	return nil
}

// check finds the record's twin, or makes sure that its snapshot is there.
func (l *loader) check(ctx context.Context, r *record) error {
	if id := keyTwin.get(r.meta); id != "" {
		return l.pair(ctx, r, id)
	}
	if !r.mutable {
		return nil
	}
	return l.snapshot(ctx, r)
}

// snapshot makes sure that the record's snapshot is there.
func (l *loader) snapshot(ctx context.Context, r *record) error {
	_, err := l.m.sn.Stat(ctx, r.snapshotID())
	switch {
	case err == nil:
		return nil
	case cerrdefs.IsNotFound(err):
		return fmt.Errorf("its snapshot is gone: %w", err)
	}
	return fmt.Errorf("%w: its snapshot: %w", errUnclear, err)
}

// pair joins an immutable record with the mutable one that has its data. When that
// one is gone, the process ended while it was finalized: the snapshot tells how far.
func (l *loader) pair(ctx context.Context, r *record, id string) error {
	err := l.record(ctx, id)
	if err == nil {
		mut := l.m.mu.records[id]
		if !mut.mutable || mut.twin != nil {
			return fmt.Errorf("record %s, which should have its data, is another's or immutable", id)
		}
		r.state, r.twin, mut.twin = mut.state, mut, r
		return nil
	}
	if errors.Is(err, errUnclear) {
		return err
	}
	if serr := l.snapshot(ctx, r); serr != nil {
		return fmt.Errorf("%w, and record %s with its data: %w", serr, id, err)
	}
	var c change
	drop(&c, keyTwin)
	return r.commit(c)
}

// parents holds a record's parents.
func (l *loader) parents(ctx context.Context, md meta) (p parents, rerr error) {
	defer func() {
		if rerr != nil {
			for _, h := range p.all() {
				l.m.unhold(h.ref)
			}
			p = parents{}
		}
	}()
	var err error
	if id := keyParent.get(md); id != "" {
		p.layer, err = l.hold(ctx, id)
		return p, err
	}
	for _, id := range keyMergeParents.get(md) {
		h, err := l.hold(ctx, id)
		if err != nil {
			return p, err
		}
		p.merge = append(p.merge, h)
	}
	if id := keyLowerParent.get(md); id != "" {
		p.diff = true
		if p.lower, err = l.hold(ctx, id); err != nil {
			return p, err
		}
	}
	if id := keyUpperParent.get(md); id != "" {
		p.diff = true
		if p.upper, err = l.hold(ctx, id); err != nil {
			return p, err
		}
	}
	return p, nil
}

func (l *loader) hold(ctx context.Context, id string) (*immutableRef, error) {
	if err := l.record(ctx, id); err != nil {
		return nil, fmt.Errorf("parent %s: %w", id, err)
	}
	h, mut, err := l.m.hold(id, nil, options{})
	if err != nil {
		return nil, err
	}
	if mut != nil {
		close(mut.committing)
		l.m.unhold(mut.ref)
		return nil, fmt.Errorf("parent %s is mutable: %w", id, bkcache.ErrLocked)
	}
	return h, nil
}

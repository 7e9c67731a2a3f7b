package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sync/errgroup"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// Extract implements bkcache.ImmutableRef: afterwards the record has a snapshot. Its
// layers that can be lazy become remote snapshots; only the others are pulled and
// extracted, and merges of what is not a chain of blobs are made.
func (h *immutableRef) Extract(ctx context.Context, s bksession.Group) error {
	if h.isLayer() && !keyBlobOnly.get(h.meta) {
		return nil
	}
	all := h.record.ancestry()
	grants, err := h.grants(ctx, all)
	if err != nil {
		return err
	}
	sessions := sessionsOf(s)
	defer grants.hold(sessions)()
	if ok, err := h.m.hasSnapshot(ctx, h.record); err != nil {
		return err
	} else if ok {
		return grants.authorize(ctx, sessions)
	}
	from, err := h.m.registries(ctx, all, h.handlers)
	if err != nil {
		return err
	}
	// The rights are asked for while tables of contents are, which takes as long.
	eg, egctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return grants.authorize(egctx, sessions) })
	eg.Go(func() error {
		return h.m.alone(egctx, "prepare "+h.ID()+from, func(ctx context.Context) error {
			return (&preparation{m: h.m, ref: h.ref, sessions: s}).run(ctx)
		})
	})
	return eg.Wait()
}

// preparation makes the snapshots that a record needs. It has a lease in its context.
type preparation struct {
	m        *Manager
	ref      *ref
	sessions bksession.Group

	sources map[*record]remotesnapshot.Source // of layers that are resolved
	fetches map[*record]*fetch                // of blobs that are pulled whole
	fetcher *errgroup.Group
}

// fetch is a blob on its way into the content store.
type fetch struct {
	done chan struct{}
	err  error // final when done is closed
}

func (p *preparation) run(ctx context.Context) error {
	if ok, err := p.m.hasSnapshot(ctx, p.ref.record); ok || err != nil {
		return err
	}
	missing, err := p.missing(ctx)
	if err != nil {
		return err
	}
	p.resolve(ctx, missing)
	p.tellResolved(missing)
	fctx, cancel := context.WithCancel(ctx)
	p.fetcher, fctx = errgroup.WithContext(fctx)
	defer func() {
		cancel()
		_ = p.fetcher.Wait() // each error is its fetch's
	}()
	p.startFetches(fctx, missing)
	// All that is pulled is needed: what fails first ends the rest at once.
	err = p.ensure(fctx, p.ref.record)
	if err != nil && ctx.Err() == nil && fctx.Err() != nil {
		return context.Cause(fctx)
	}
	return err
}

// tellResolved tells whom it concerns which of some layers, the lowest first, are lazy.
func (p *preparation) tellResolved(layers []*record) {
	var list []remotesnapshot.Source
	for _, r := range slices.Backward(layers) {
		if src, ok := p.sources[r]; ok {
			r.ahead.Store(&fetchedThen{p.m.lazy.Info(src.Digest).Fetched, time.Now()})
			list = append(list, src)
		}
	}
	if p.m.opts.Resolved != nil && len(list) > 0 {
		p.m.opts.Resolved(list)
	}
}

// hasSnapshot says whether a record's snapshot is there.
func (m *Manager) hasSnapshot(ctx context.Context, r *record) (bool, error) {
	_, err := m.sn.Stat(ctx, r.snapshotID())
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record %s: its snapshot: %w", r.ID(), err)
	}
	return true, nil
}

// missing lists the layers without a snapshot on which the record stands, the lowest first.
// What is below a snapshot is there, too.
func (p *preparation) missing(ctx context.Context) (list []*record, err error) {
	seen := map[*record]bool{}
	var visit func(r *record) error
	visit = func(r *record) error {
		if seen[r] {
			return nil
		}
		seen[r] = true
		ok, err := p.m.hasSnapshot(ctx, r)
		if ok || err != nil {
			return err
		}
		for _, parent := range r.parents.all() {
			if err := visit(parent.record); err != nil {
				return err
			}
		}
		if r.isLayer() {
			list = append(list, r)
		}
		return nil
	}
	return list, visit(p.ref.record)
}

// resolve finds out, in parallel, which layers can be lazy, and remembers of the
// others why not.
func (p *preparation) resolve(ctx context.Context, layers []*record) {
	p.sources = make(map[*record]remotesnapshot.Source)
	if p.m.lazy == nil {
		p.explain(ctx, layers)
		return
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	pg := p.ref.startProgress(ctx, layers)
	defer pg.stop()
	for _, r := range layers {
		list, err := p.m.usable(ctx, r, p.ref.handlers)
		if err != nil {
			p.m.noteReason(r, err)
		}
		if len(list) == 0 {
			continue // it does not come from a registry
		}
		wg.Go(func() {
			src, err := p.resolveOne(ctx, r, list)
			p.m.noteReason(r, err)
			pg.resolved(r, err)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			p.sources[r] = src
		})
	}
	wg.Wait()
}

// explain shows why layers of a source that might be lazy are not, where nothing is.
func (p *preparation) explain(ctx context.Context, layers []*record) {
	why := p.m.opts.NotLazy
	if why == nil {
		return
	}
	pg := p.ref.startProgress(ctx, layers)
	defer pg.stop()
	for _, r := range layers {
		if handlerOf(r, p.ref.handlers) != nil {
			p.m.noteReason(r, why)
			pg.resolved(r, why)
		}
	}
}

// errNotBound says that a layer's files may be other ones than its name promises.
var errNotBound = errors.New("its manifest has no digest of a table of contents")

// resolveOne tries the sources of a layer in turn. Others may share the snapshot that
// is made of it, so what is shown there has to be bound to what it is shared by.
func (p *preparation) resolveOne(ctx context.Context, r *record, list []remotesnapshot.Source) (src remotesnapshot.Source, err error) {
	err = fmt.Errorf("layer %s: %w", keyBlob.get(r.meta), errNotBound)
	for _, src = range list {
		if !r.boundTo(src) {
			continue
		}
		src.Neighbours = nil // all are resolved at once anyway
		src.Size = max(r.blobSize(), 0)
		if err = p.m.lazy.Resolve(ctx, src)[0]; err == nil || ctx.Err() != nil {
			break
		}
	}
	return src, err
}

// startFetches pulls the blobs of the layers that can't be lazy, side by side. The
// layers are extracted in order, each as soon as its blob is there.
func (p *preparation) startFetches(ctx context.Context, layers []*record) {
	p.fetches = make(map[*record]*fetch)
	for _, r := range layers {
		if _, lazy := p.sources[r]; lazy {
			continue
		}
		f := &fetch{done: make(chan struct{})}
		p.fetches[r] = f
		p.fetcher.Go(func() error {
			defer close(f.done)
			f.err = p.m.fetchBlob(ctx, r, p.ref.handlers, p.sessions)
			if f.err != nil && ctx.Err() != nil {
				f.err = context.Cause(ctx) // another fetch's error has ended this one
			}
			return f.err
		})
	}
}

// ensure makes a record's snapshot, after those below it. Records of other builds may
// share the snapshot, or want it at the same time. What only this preparation knows
// of is waited for before the work that is shared begins, so that nobody waits for a
// build that leaves.
func (p *preparation) ensure(ctx context.Context, r *record) error {
	ok, err := p.m.hasSnapshot(ctx, r)
	if ok || err != nil {
		return err
	}
	key := "snapshot " + r.snapshotID()
	if !r.isLayer() {
		stack, err := p.stack(ctx, r)
		if err != nil {
			return err
		}
		return p.m.alone(ctx, key, func(ctx context.Context) error { return p.merge(ctx, r, stack) })
	}
	parent := ""
	if l := r.parents.layer; l != nil {
		if err := p.ensure(ctx, l.record); err != nil {
			return err
		}
		parent = l.snapshotID()
	}
	if err := p.awaitFetch(ctx, r); err != nil {
		return err
	}
	return p.m.alone(ctx, key, func(ctx context.Context) error {
		if ok, err := p.m.hasSnapshot(ctx, r); ok || err != nil {
			return err
		}
		return p.layer(ctx, r, parent)
	})
}

// awaitFetch waits for the blob of a layer that is pulled whole.
func (p *preparation) awaitFetch(ctx context.Context, r *record) error {
	f := p.fetches[r]
	if f == nil {
		return nil
	}
	select {
	case <-f.done:
		return f.err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// layer makes a layer's snapshot on that of its parent.
func (p *preparation) layer(ctx context.Context, r *record, parent string) error {
	if src, ok := p.sources[r]; ok {
		err := p.m.prepareRemote(ctx, r.snapshotID(), parent, src)
		if err == nil || ctx.Err() != nil {
			return err
		}
		bklog.G(ctx).WithError(err).Warnf("cache: layer %s was resolved, but its snapshot can't be made; it is pulled whole", src.Digest)
		p.m.noteReason(r, err)
	}
	return p.m.extractLayer(ctx, r, parent, p.ref.handlers, p.ref.pg, p.sessions)
}

// prepareRemote makes a remote snapshot of a layer that is resolved.
func (m *Manager) prepareRemote(ctx context.Context, name, parent string, src remotesnapshot.Source) error {
	labels := src.Labels()
	labels[remotesnapshot.LabelTarget] = name
	key := "tmp-" + identity.NewID() + " " + name
	err := m.sn.Prepare(ctx, key, parent, snapshots.WithLabels(labels))
	if cerrdefs.IsAlreadyExists(err) {
		if _, err := m.sn.Stat(ctx, name); err != nil {
			return fmt.Errorf("remote snapshot %s: %w", name, err)
		}
		return nil
	}
	if err != nil {
		return fmt.Errorf("remote snapshot %s: %w", name, err)
	}
	// The layer was closed in between, and the snapshotter made a plain snapshot.
	m.discard(ctx, key)
	return fmt.Errorf("remote snapshot %s: layer %s was closed while it was made: %w", name, src.Digest, cerrdefs.ErrUnavailable)
}

// handlerOf is the handler of a layer's blob, nil when there is none.
func handlerOf(r *record, handlers bkcache.DescHandlers) *bkcache.DescHandler {
	return handlers[keyBlob.get(r.meta)]
}

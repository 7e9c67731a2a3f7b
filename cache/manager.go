package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/gc"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/flightcontrol"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/locker"
	"github.com/moby/sys/user"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// Options of a Manager. All but the optional ones are required.
type Options struct {
	Snapshotter snapshot.Snapshotter
	Content     content.Store
	Leases      leases.Manager
	Metadata    *metadata.Store
	Differ      diff.Comparer

	// Applier extracts layers; without one, layers can't be extracted. Optional.
	Applier diff.Applier
	// Shared says at a prune which records others need, too. Optional.
	Shared bkcache.ExternalRefCheckerFunc
	// GarbageCollect frees what no lease holds; called after a prune. Optional.
	GarbageCollect func(context.Context) (gc.Stats, error)
	// Root is on the disk whose free space a prune looks at.
	Root string
	// MountRoot gets the mount points of mutable records that several steps share.
	// What an earlier process left there is unmounted.
	MountRoot string

	// Lazy is the ability to mount layers before they are fetched. Optional: without
	// it all layers are extracted.
	Lazy remotesnapshot.Lazy
	// Resolved is told of the layers of an image that can be read from now on, the topmost first, all that
	// were missing of it, before their snapshots are made. It must not block. Optional.
	Resolved func(layers []remotesnapshot.Source)
	// NotLazy says, where Lazy is nil though somebody wants it, why that is: builds and
	// disk usage reports show it for each layer. Optional.
	NotLazy error
	// Adopt puts a file with the whole, verified bytes of a blob into the content
	// store, under the lease of ctx, without copying it where that is possible.
	// Optional: without it, as where the snapshotter is another process's, blobs are
	// had through the handlers of a build only.
	Adopt func(ctx context.Context, desc ocispecs.Descriptor, path string) error
}

// Manager is a cache.Manager. Safe for concurrent use.
type Manager struct {
	opts    Options
	sn      snapshot.MergeSnapshotter
	content content.Store
	leases  leases.Manager
	lazy    remotesnapshot.Lazy
	pool    mountPool
	now     func() time.Time

	chains  *locker.Locker // by blob chain, while its record is looked for and made
	prunes  ioLock         // one prune at a time
	filling flightcontrol.Group[struct{}]
	sizes   flightcontrol.Group[int64]
	files   flightcontrol.Group[[]string]

	mu struct {
		sync.Mutex
		records map[string]*record
		doomed  []doomed // records that could not be erased
		stale   []string // leases that could not be ended
		reasons map[digest.Digest]string
	}
}

var _ bkcache.Manager = (*Manager)(nil)

// New opens the records of a metadata store. Those that can't be used any more
// are removed. It fails when BuildKit has changed its types (see bridge.go).
func New(ctx context.Context, opts Options) (*Manager, error) {
	if err := checkBridge(); err != nil {
		return nil, err
	}
	pool, err := newMountPool(ctx, opts.MountRoot)
	if err != nil {
		return nil, err
	}
	m := &Manager{
		opts:    opts,
		sn:      snapshot.NewMergeSnapshotter(ctx, opts.Snapshotter, opts.Leases),
		content: opts.Content,
		leases:  opts.Leases,
		lazy:    opts.Lazy,
		pool:    pool,
		now:     time.Now,
		chains:  locker.New(),
		prunes:  make(ioLock, 1),
	}
	m.mu.records = make(map[string]*record)
	m.mu.reasons = make(map[digest.Digest]string)
	if err := m.load(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Close closes the metadata store. No other method is called afterwards.
func (m *Manager) Close() error { return m.opts.Metadata.Close() }

// IdentityMapping implements bkcache.Accessor.
func (m *Manager) IdentityMapping() *user.IdentityMapping { return m.sn.IdentityMapping() }

// IdentityMapping implements bkcache.Ref.
func (h *ref) IdentityMapping() *user.IdentityMapping { return h.m.IdentityMapping() }

// notFound says that there is no such record; bkcache.IsNotFound knows it.
func notFound(id string) error { return fmt.Errorf("record %s: %w", id, errNotFound) }

// options are the ones of BuildKit that are no description of the record.
type options struct {
	handlers bkcache.DescHandlers
	touches  bool
	unlazy   bksession.Group // extract at once, for this session; nil: don't
}

func parseOptions(opts []bkcache.RefOption) options {
	o := options{touches: true}
	for _, opt := range opts {
		switch v := opt.(type) {
		case bkcache.DescHandlers:
			if o.handlers == nil {
				o.handlers = v
			}
		case bksession.Group:
			if o.unlazy == nil {
				o.unlazy = v
			}
		default:
			if opt == bkcache.RefOption(bkcache.NoUpdateLastUsed) {
				o.touches = false
			}
		}
	}
	return o
}

// Get implements bkcache.Accessor. The error is one that bkcache.IsNotFound knows,
// bkcache.ErrLocked for a mutable record in use, or bkcache.NeedsRemoteProviderError
// naming the lazy blobs below that opts have no handler for and that nobody else
// can provide.
func (m *Manager) Get(ctx context.Context, id string, pg progress.Controller, opts ...bkcache.RefOption) (bkcache.ImmutableRef, error) {
	h, err := m.get(ctx, id, pg, parseOptions(opts))
	if err != nil {
		return nil, err
	}
	return h, nil
}

func (m *Manager) get(ctx context.Context, id string, pg progress.Controller, o options) (*immutableRef, error) {
	h, err := m.holdOrCommit(ctx, id, pg, o)
	if err != nil {
		return nil, err
	}
	if err := m.checkProviders(ctx, h.record, o.handlers); err != nil {
		// Others may have left meanwhile, so this may be the last ref.
		m.mu.Lock()
		h.touches = false
		m.mu.Unlock()
		return nil, errors.Join(err, h.Release(context.WithoutCancel(ctx)))
	}
	return h, nil
}

// holdOrCommit holds a record. A mutable one that nobody uses is committed: what it
// holds is the result.
func (m *Manager) holdOrCommit(ctx context.Context, id string, pg progress.Controller, o options) (*immutableRef, error) {
	for {
		h, mut, err := m.hold(id, pg, o)
		var busy *committingError
		switch {
		case errors.As(err, &busy): // by another caller of Get
			select {
			case <-busy.done:
				continue
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			}
		case err != nil:
			return nil, err
		case h != nil:
			return h, nil
		}
		h, err = mut.commit(ctx)
		m.mu.Lock()
		close(mut.committing)
		if err != nil {
			delete(mut.record.refs, mut.ref)
		} else {
			h.touches, h.pg = o.touches, pg
		}
		m.mu.Unlock()
		return h, err
	}
}

// committingError says that a record is locked for as long as a commit takes.
type committingError struct{ done chan struct{} }

func (*committingError) Error() string { return "being committed" }

// hold finds a record and holds it: by an immutable ref, or, for a mutable record
// without a twin, by a mutable one.
func (m *Manager) hold(id string, pg progress.Controller, o options) (*immutableRef, *mutableRef, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.mu.records[id]
	switch {
	case r == nil:
		return nil, nil, notFound(id)
	case !r.mutable:
	case len(r.refs) > 0:
		for h := range r.refs {
			if h.committing != nil {
				return nil, nil, &committingError{h.committing}
			}
		}
		return nil, nil, fmt.Errorf("record %s: %w", id, bkcache.ErrLocked)
	case r.twin == nil:
		h := r.holdLocked(false, o.handlers, pg)
		h.committing = make(chan struct{})
		return nil, &mutableRef{h}, nil
	default:
		r = r.twin
	}
	return &immutableRef{r.holdLocked(o.touches, o.handlers, pg)}, nil, nil
}

// unhold takes a hold back as if it had never been.
func (m *Manager) unhold(h *ref) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(h.record.refs, h)
}

// checkProviders fails when a lazy blob that r stands on can't be had.
func (m *Manager) checkProviders(ctx context.Context, r *record, handlers bkcache.DescHandlers) error {
	var missing bkcache.NeedsRemoteProviderError
	for _, a := range r.ancestry() {
		blob := keyBlob.get(a.meta)
		if handlers[blob] != nil || slices.Contains(missing, blob) {
			continue
		}
		if ok, err := m.provides(ctx, a); err != nil {
			return err
		} else if ok {
			continue
		}
		lazy, err := a.isLazy(ctx)
		if err != nil {
			return err
		}
		if lazy {
			missing = append(missing, blob)
		}
	}
	if len(missing) > 0 {
		return missing
	}
	return nil
}

// immutable makes a ref of BuildKit's interface one of ours, held for the caller.
func (m *Manager) immutable(ctx context.Context, r bkcache.ImmutableRef, handlers bkcache.DescHandlers) (*immutableRef, error) {
	if h, ok := r.(*immutableRef); ok && h.m == m {
		return h.clone(), nil
	}
	return m.get(ctx, r.ID(), nil, options{handlers: handlers})
}

// Search implements bkcache.MetadataStore.
func (m *Manager) Search(ctx context.Context, idx string, prefixOnly bool) ([]bkcache.RefMetadata, error) {
	found, err := m.search(ctx, idx, prefixOnly)
	if err != nil {
		return nil, err
	}
	var mds []bkcache.RefMetadata
	for _, r := range found {
		mds = append(mds, r.RefMetadata)
	}
	return mds, nil
}

// search returns the live records that an index leads to.
func (m *Manager) search(ctx context.Context, idx string, prefixOnly bool) ([]*record, error) {
	items, err := m.opts.Metadata.Search(ctx, idx, prefixOnly)
	if err != nil {
		return nil, fmt.Errorf("search records by %q: %w", idx, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	var found []*record
	for _, si := range items {
		// The record's own item is the one whose values are current.
		if r := m.mu.records[si.ID()]; r != nil {
			found = append(found, r)
		}
	}
	return found, nil
}

// newRecord makes a record that is not in the table yet.
func (m *Manager) newRecord(si *metadata.StorageItem, p parents, mutable bool, s *state) *record {
	return &record{meta: newMeta(si), m: m, mutable: mutable, parents: p, state: s, refs: make(map[*ref]struct{})}
}

// newItem is an empty item of the metadata store.
func (m *Manager) newItem(id string) *metadata.StorageItem {
	si, _ := m.opts.Metadata.Get(id)
	return si
}

// add puts a record into the table and holds it.
func (m *Manager) add(r *record, handlers bkcache.DescHandlers, pg progress.Controller) *ref {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.records[r.ID()] = r
	return r.holdLocked(true, handlers, pg)
}

// dropLocked takes a record out of the table, for nobody to find it again.
func (m *Manager) dropLocked(r *record) {
	r.dead = true
	if m.mu.records[r.ID()] == r {
		delete(m.mu.records, r.ID())
	}
}

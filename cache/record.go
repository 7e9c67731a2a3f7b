package cache

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
)

// record is one piece of state. What is set at its making never changes; the rest
// says by which lock it is guarded.
type record struct {
	meta
	m       *Manager
	mutable bool
	parents parents
	state   *state // shared with the twin

	// Guarded by Manager.mu.
	refs map[*ref]struct{}
	twin *record
	dead bool // not in the table any more

	// Guarded by state.io.
	mounted snapshot.Mountable // how the record is mounted; nil: not known

	// ahead is what was fetched of a lazy layer before anything was read ahead of the first step
	// that mounts it, which takes it; may be nil.
	ahead atomic.Pointer[fetchedThen]
}

// fetchedThen is how many bytes of a layer had been fetched at some time.
type fetchedThen struct {
	bytes int64
	at    time.Time
}

// state is what twins share.
type state struct{ io ioLock }

func newState() *state { return &state{io: make(ioLock, 1)} }

// ioLock is a mutex that is held over I/O, so waiting for it can be cancelled.
type ioLock chan struct{}

// lock waits for the lock, or for ctx.
func (l ioLock) lock(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (l ioLock) unlock() { <-l }

// parents are the records that a record stands on, held by refs of its own: a
// layer has one in layer, a merge those in merge, a diff lower and upper, of which
// upper may be nil. A record of another kind has none.
type parents struct {
	layer        *immutableRef
	merge        []*immutableRef
	diff         bool
	lower, upper *immutableRef
}

// all lists the parents from the bottom.
func (p parents) all() []*immutableRef {
	var list []*immutableRef
	if p.layer != nil {
		list = append(list, p.layer)
	}
	list = append(list, p.merge...)
	if p.lower != nil {
		list = append(list, p.lower)
	}
	if p.upper != nil {
		list = append(list, p.upper)
	}
	return list
}

// ids are those of all.
func (p parents) ids() []string {
	var ids []string
	for _, r := range p.all() {
		ids = append(ids, r.ID())
	}
	return ids
}

// save adds the parents to a new record's metadata.
func (p parents) save(c *change) {
	if p.layer != nil {
		put(c, keyParent, p.layer.ID())
	}
	if len(p.merge) > 0 {
		ids := make([]string, len(p.merge))
		for i, r := range p.merge {
			ids[i] = r.ID()
		}
		put(c, keyMergeParents, ids)
	}
	if p.lower != nil {
		put(c, keyLowerParent, p.lower.ID())
	}
	if p.upper != nil {
		put(c, keyUpperParent, p.upper.ID())
	}
}

// kind of a record, by its parents.
type kind uint8

const (
	kindBase kind = iota
	kindLayer
	kindMerge
	kindDiff
)

func (r *record) kind() kind {
	switch {
	case len(r.parents.merge) > 0:
		return kindMerge
	case r.parents.diff:
		return kindDiff
	case r.parents.layer != nil:
		return kindLayer
	}
	return kindBase
}

// isDead says that the record has been removed. A caller that was given its blobs
// may still be using them.
func (r *record) isDead() bool {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	return r.dead
}

// isLayer says that the record is a layer, base or not.
func (r *record) isLayer() bool { return r.kind() == kindBase || r.kind() == kindLayer }

// walk calls f for the record and all that it stands on, each once, children
// first.
func (r *record) walk(f func(*record)) {
	seen := map[*record]bool{r: true}
	todo := []*record{r}
	for len(todo) > 0 {
		cur := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		f(cur)
		for _, p := range cur.parents.all() {
			if !seen[p.record] {
				seen[p.record] = true
				todo = append(todo, p.record)
			}
		}
	}
}

// ancestry lists what walk visits.
func (r *record) ancestry() (list []*record) {
	r.walk(func(r *record) { list = append(list, r) })
	return list
}

// onLegacySnapshot says that a layer below, or the record itself, has a snapshot
// that must not be shared.
func (r *record) onLegacySnapshot() bool {
	return slices.ContainsFunc(r.ancestry(), func(r *record) bool { return r.isLayer() && r.isLegacySnapshot() })
}

// layers calls f for the records whose blobs make up r as an image, from the
// bottom. A diff that separates a layer from its own parent is that layer.
func (r *record) layers(f func(*record)) {
	switch r.kind() {
	case kindMerge:
		for _, p := range r.parents.merge {
			p.record.layers(f)
		}
	case kindDiff:
		if l := r.parents.onlyLayer(); l != nil {
			f(l)
			return
		}
		f(r)
	case kindLayer:
		r.parents.layer.record.layers(f)
		f(r)
	case kindBase:
		f(r)
	}
}

// onlyLayer is the layer that alone makes up a diff; nil when there is none.
func (p parents) onlyLayer() *record {
	switch {
	case p.upper == nil:
		return nil
	case p.lower == nil && p.upper.kind() == kindBase:
		return p.upper.record
	case p.lower != nil && p.upper.kind() == kindLayer && p.upper.parents.layer.ID() == p.lower.ID():
		return p.upper.record
	}
	return nil
}

// layerList lists what layers visits.
func (r *record) layerList() (list []*record) {
	r.layers(func(l *record) { list = append(list, l) })
	return list
}

// digests lists the blobs of the layers, from the bottom, "" for those that have
// none yet.
func (r *record) digests() []digest.Digest {
	var list []digest.Digest
	for _, l := range r.layerList() {
		list = append(list, keyBlob.get(l.meta))
	}
	return list
}

// ref is a counted hold on a record. Its own address is its identity.
type ref struct {
	*record
	handlers bkcache.DescHandlers // of the lazy blobs that the ref's user can provide
	pg       progress.Controller
	touches  bool // a use that counts; guarded by Manager.mu
	where    acquisition

	// committing is set while Get commits a mutable record, and closed afterwards;
	// guarded by Manager.mu.
	committing chan struct{}
}

// holdLocked makes a ref. The caller holds Manager.mu.
func (r *record) holdLocked(touches bool, handlers bkcache.DescHandlers, pg progress.Controller) *ref {
	h := &ref{record: r, handlers: handlers, pg: pg, touches: touches, where: acquired()}
	r.refs[h] = struct{}{}
	return h
}

// DescHandler implements bkcache.Ref.
func (h *ref) DescHandler(dgst digest.Digest) *bkcache.DescHandler { return h.handlers[dgst] }

// immutableRef is a ref of an immutable record.
type immutableRef struct{ *ref }

// mutableRef is the ref of a mutable record; there is only one at a time.
type mutableRef struct{ *ref }

var (
	_ bkcache.ImmutableRef = (*immutableRef)(nil)
	_ bkcache.MutableRef   = (*mutableRef)(nil)
)

// clone holds the record once more, without counting as a use.
func (h *immutableRef) clone() *immutableRef {
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	return &immutableRef{h.record.holdLocked(false, h.handlers, h.pg)}
}

// Clone implements bkcache.ImmutableRef.
func (h *immutableRef) Clone() bkcache.ImmutableRef { return h.clone() }

// LayerChain implements bkcache.ImmutableRef. The caller releases the list.
func (h *immutableRef) LayerChain() bkcache.RefList {
	layers := h.record.layerList()
	list := make(bkcache.RefList, len(layers))
	h.m.mu.Lock()
	defer h.m.mu.Unlock()
	for i, l := range layers {
		list[i] = &immutableRef{l.holdLocked(false, h.handlers, h.pg)}
	}
	return list
}

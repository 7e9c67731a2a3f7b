package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// sourceFor says where the blob of a handler can be asked for. Handlers of registry
// pulls and registry caches have labels that name the image; others have none,
// and their blobs are had through the handler only.
func (m *Manager) sourceFor(desc ocispecs.Descriptor, dh *bkcache.DescHandler) (remotesnapshot.Source, bool) {
	if m.lazy == nil || dh == nil {
		return remotesnapshot.Source{}, false
	}
	src, ok, err := remotesnapshot.ParseLabels(dh.SnapshotLabels)
	if err != nil || !ok || src.Digest != desc.Digest {
		return remotesnapshot.Source{}, false
	}
	// BuildKit's labels carry eStargz's annotations only, the descriptor all.
	src.Annotations = remotesnapshot.KnownAnnotations(desc.Annotations)
	if src.Annotations == nil {
		src.Annotations = remotesnapshot.KnownAnnotations(dh.Annotations)
	}
	return src, true
}

// sourcesOf says where a layer's blob can be asked for without a handler, the best
// place first. A record of stock BuildKit has it in the labels of its snapshot.
func (m *Manager) sourcesOf(ctx context.Context, r *record) ([]remotesnapshot.Source, error) {
	if m.lazy == nil || keyBlob.get(r.meta) == "" || !keyBlobOnly.get(r.meta) {
		return nil, nil
	}
	if list := r.sources(); len(list) > 0 {
		return list, nil
	}
	info, err := m.sn.Stat(ctx, r.snapshotID())
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("sources of record %s: its snapshot: %w", r.ID(), err)
	}
	src, ok, err := remotesnapshot.ParseLabels(info.Labels)
	if err != nil || !ok || src.Digest != keyBlob.get(r.meta) {
		return nil, nil // not a snapshot of ours or of stock's
	}
	src.Neighbours = nil
	return []remotesnapshot.Source{src}, nil
}

// provides says that the manager itself can get the blob of a layer.
func (m *Manager) provides(ctx context.Context, r *record) (bool, error) {
	if m.opts.Adopt == nil {
		return false, nil
	}
	list, err := m.sourcesOf(ctx, r)
	return len(list) > 0, err
}

// sourceOfHandler is the one of a record's sources that a handler's image is at. Only
// sources that GetByBlob has been given count: handlers of client OCI layouts have
// labels that look like a registry's. The annotations stay the record's, which is
// bound to its TOC: an image of the same name may have another one by now.
func (m *Manager) sourceOfHandler(r *record, dh *bkcache.DescHandler, known []remotesnapshot.Source) (remotesnapshot.Source, bool) {
	src, ok := m.sourceFor(ocispecs.Descriptor{Digest: keyBlob.get(r.meta)}, dh)
	if !ok {
		return src, false
	}
	i := slices.IndexFunc(known, func(k remotesnapshot.Source) bool { return k.Reference == src.Reference })
	if i < 0 {
		return src, false
	}
	return known[i], true
}

// usable lists the sources of a layer that a build with these handlers reads it
// from, its own image's first: none for a layer that it has from a client.
func (m *Manager) usable(ctx context.Context, r *record, handlers bkcache.DescHandlers) ([]remotesnapshot.Source, error) {
	list, err := m.sourcesOf(ctx, r)
	dh := handlerOf(r, handlers)
	if err != nil || dh == nil {
		return list, err
	}
	src, ok := m.sourceOfHandler(r, dh, list)
	if !ok {
		return nil, nil
	}
	rest := slices.DeleteFunc(list, func(s remotesnapshot.Source) bool { return s.Reference == src.Reference })
	return append([]remotesnapshot.Source{src}, rest...), nil
}

// isLazy says that the layer's blob is not here, or that its snapshot is served
// without it.
func (r *record) isLazy(ctx context.Context) (bool, error) {
	blob := keyBlob.get(r.meta)
	if blob == "" || !keyBlobOnly.get(r.meta) {
		return false, nil
	}
	_, err := r.m.content.Info(ctx, blob)
	if cerrdefs.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	return r.isRemote(ctx)
}

// isRemote says that the layer's snapshot is there and served without being extracted.
func (r *record) isRemote(ctx context.Context) (bool, error) {
	info, err := r.m.sn.Stat(ctx, r.snapshotID())
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("record %s: its snapshot: %w", r.ID(), err)
	}
	_, remote := info.Labels[remotesnapshot.LabelRemote]
	return remote, nil
}

// LazyBlobs lists the lazy blobs that a record stands on. Whoever has handlers for
// them should pass them to Get: they prove that a build may read the blobs.
func (m *Manager) LazyBlobs(ctx context.Context, id string) ([]digest.Digest, error) {
	m.mu.Lock()
	r := m.mu.records[id]
	m.mu.Unlock()
	if r == nil {
		return nil, notFound(id)
	}
	var list []digest.Digest
	for _, a := range r.ancestry() {
		lazy, err := a.isLazy(ctx)
		if err != nil {
			return nil, err
		}
		if lazy {
			list = append(list, keyBlob.get(a.meta))
		}
	}
	return list, nil
}

// sessionsOf makes a session group what the lazy ability takes. The group is asked
// each time, since it grows when a second build joins.
func sessionsOf(g bksession.Group) remotesnapshot.Sessions {
	return func() []string { return bksession.AllSessionIDs(g) }
}

// access lets a caller read the layers of h that have sources: it checks the
// caller's rights, and holds its sessions until the returned function is called.
func (h *ref) access(ctx context.Context, s bksession.Group) (release func(), rerr error) {
	if h.m.lazy == nil {
		return func() {}, nil
	}
	var holds []func()
	end := func() {
		for _, f := range holds {
			f()
		}
	}
	defer func() {
		if rerr != nil {
			end()
		}
	}()
	sessions := sessionsOf(s)
	for _, r := range h.record.ancestry() {
		one, err := h.accessTo(ctx, r, sessions)
		if err != nil {
			return nil, err
		}
		holds = append(holds, one)
	}
	return end, nil
}

// accessOne is access to the record itself, without those below.
func (h *ref) accessOne(ctx context.Context, s bksession.Group) (release func(), err error) {
	return h.accessTo(ctx, h.record, sessionsOf(s))
}

func (h *ref) accessTo(ctx context.Context, r *record, s remotesnapshot.Sessions) (release func(), err error) {
	src, ok, err := h.mayRead(ctx, r, s)
	if err != nil {
		return nil, err
	}
	if !ok {
		return func() {}, nil
	}
	return h.m.lazy.Hold(src, s), nil
}

// mayRead says where a lazy layer is read from, once the rights to do so are
// proved: by a handler, which a build gets with the image's manifest, or by a
// request. ok is false for a layer that is not lazy or has no source.
func (h *ref) mayRead(ctx context.Context, r *record, s remotesnapshot.Sessions) (src remotesnapshot.Source, ok bool, err error) {
	list, err := h.m.sourcesOf(ctx, r)
	if err != nil || len(list) == 0 {
		return src, false, err
	}
	lazy, err := r.isLazy(ctx)
	if err != nil || !lazy {
		return src, false, err
	}
	dh := handlerOf(r, h.handlers)
	if src, ok := h.m.sourceOfHandler(r, dh, list); ok {
		h.m.lazy.Vouch(src, s)
		return src, true, nil
	}
	if dh != nil {
		// The build has the image from a client. It gets the layer from there, unless
		// it is mounted lazily: then it is the registry's, which has to agree.
		remote, err := r.isRemote(ctx)
		if err != nil || !remote {
			return src, false, err
		}
	}
	if h.m.opts.Adopt == nil {
		return src, false, bkcache.NeedsRemoteProviderError{keyBlob.get(r.meta)}
	}
	var errs []error
	for _, src := range list {
		err := h.m.lazy.Authorize(ctx, src, s)
		if err == nil {
			return src, true, nil
		}
		if ctx.Err() != nil {
			return src, false, context.Cause(ctx)
		}
		errs = append(errs, err)
	}
	return src, false, errors.Join(errs...)
}

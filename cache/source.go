package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/reference"
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

// sourcesFor is sourcesOf for a build with a handler, which may be nil: the place of
// the handler's image comes first. own says that it is one of them.
func (m *Manager) sourcesFor(ctx context.Context, r *record, dh *bkcache.DescHandler) (list []remotesnapshot.Source, own bool, err error) {
	list, err = m.sourcesOf(ctx, r)
	if err != nil {
		return nil, false, err
	}
	src, ok := m.sourceOfHandler(r, dh, list)
	if !ok {
		return list, false, nil
	}
	rest := slices.DeleteFunc(list, func(s remotesnapshot.Source) bool { return s.Reference == src.Reference })
	return append([]remotesnapshot.Source{src}, rest...), true, nil
}

// usable lists the sources of a layer that a build with these handlers reads it
// from, its own image's first: none for a layer that it has from a client.
func (m *Manager) usable(ctx context.Context, r *record, handlers bkcache.DescHandlers) ([]remotesnapshot.Source, error) {
	dh := handlerOf(r, handlers)
	list, own, err := m.sourcesFor(ctx, r, dh)
	if dh != nil && !own {
		return nil, err
	}
	return list, err
}

// registries names those that a build with these handlers reads the layers from
// first. Work that is done by one build for others, too, is shared among those with
// the same ones only: a registry that is dead or slow does not hold up who need not
// ask it. What they fetch meets below, in the store of blobs, where each brings its
// own hosts.
func (m *Manager) registries(ctx context.Context, layers []*record, handlers bkcache.DescHandlers) (string, error) {
	var names []string
	for _, r := range layers {
		list, err := m.usable(ctx, r, handlers)
		if err != nil {
			return "", err
		}
		if len(list) == 0 {
			continue
		}
		spec, err := reference.Parse(list[0].Reference)
		if err != nil {
			continue // who asks for it says why
		}
		names = appendNew(names, " from "+spec.Hostname())
	}
	slices.Sort(names)
	return strings.Join(names, ""), nil
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

// accessOne lets a caller read the record's own layer: see grants.take.
func (h *ref) accessOne(ctx context.Context, s bksession.Group) (release func(), err error) {
	grants, err := h.grants(ctx, []*record{h.record})
	if err != nil {
		return nil, err
	}
	return grants.take(ctx, sessionsOf(s))
}

// grant is a lazy layer that a caller may read from sources, if it is allowed to.
type grant struct {
	sources []remotesnapshot.Source // the best one first
	// pulled says that the caller has just got the image's manifest from the first
	// source, by its own credentials.
	pulled bool
}

// grants of one caller.
type grants struct {
	m    *Manager
	list []grant
}

// grants lists what a caller needs rights for. It asks nobody.
func (h *ref) grants(ctx context.Context, layers []*record) (grants, error) {
	g := grants{m: h.m}
	if h.m.lazy == nil {
		return g, nil
	}
	for _, r := range layers {
		one, err := h.grant(ctx, r)
		if err != nil {
			return g, err
		}
		if len(one.sources) > 0 {
			g.list = append(g.list, one)
		}
	}
	return g, nil
}

// grant is without sources for a layer that is not lazy, or not from a registry.
func (h *ref) grant(ctx context.Context, r *record) (g grant, err error) {
	dh := handlerOf(r, h.handlers)
	list, own, err := h.m.sourcesFor(ctx, r, dh)
	if err != nil || len(list) == 0 {
		return g, err
	}
	lazy, err := r.isLazy(ctx)
	if err != nil || !lazy {
		return g, err
	}
	if own {
		// BuildKit takes a manifest that is named by its digest from the content store,
		// if somebody has pulled it before: that proves nothing.
		return grant{list, !strings.Contains(list[0].Reference, "@")}, nil
	}
	if dh != nil {
		// The build has the image from a client. It gets the layer from there, unless
		// it is mounted lazily: then it is the registry's, which has to agree.
		remote, err := r.isRemote(ctx)
		if err != nil || !remote {
			return g, err
		}
	}
	if h.m.opts.Adopt == nil {
		if dh != nil {
			return g, nil // the snapshotter of another process has its own rules
		}
		return g, bkcache.NeedsRemoteProviderError{keyBlob.get(r.meta)}
	}
	return grant{sources: list}, nil
}

// take lets a caller read the layers: it holds the caller's sessions until the
// returned function is called, and checks its rights.
func (g grants) take(ctx context.Context, s remotesnapshot.Sessions) (release func(), err error) {
	release = g.hold(s)
	if err := g.authorize(ctx, s); err != nil {
		release()
		return nil, err
	}
	return release, nil
}

// hold lets reads authenticate through the sessions, which need not be allowed to:
// the registry says so at each request.
func (g grants) hold(s remotesnapshot.Sessions) (release func()) {
	var holds []func()
	for _, one := range g.list {
		for _, src := range one.sources {
			holds = append(holds, g.m.lazy.Hold(src, s))
		}
	}
	return func() {
		for _, f := range holds {
			f()
		}
	}
}

// authorize makes sure that the caller may read each layer from one of its sources:
// by the manifest that it has pulled, or by a request.
func (g grants) authorize(ctx context.Context, s remotesnapshot.Sessions) error {
	for _, one := range g.list {
		if err := g.authorizeOne(ctx, one, s); err != nil {
			return err
		}
	}
	return nil
}

func (g grants) authorizeOne(ctx context.Context, one grant, s remotesnapshot.Sessions) error {
	if one.pulled || g.m.opts.Adopt == nil {
		g.m.lazy.Vouch(one.sources[0], s)
		return nil
	}
	var errs []error
	for _, src := range one.sources {
		err := g.m.lazy.Authorize(ctx, src, s)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if cerrdefs.IsUnavailable(err) && g.m.lazy.Info(src.Digest).Local {
			// Nobody can be asked, and nobody needs to be: a layer that is whole is
			// local content, which BuildKit gives to whoever knows its digest.
			return nil
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

package cache

import (
	"context"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/reference"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// GetRemotes implements bkcache.ImmutableRef: the record as a list of blobs and
// somebody who provides them. Lazy blobs are fetched when they are read, not before.
// With all, the chains in which the topmost blob has the wanted compression are
// appended, in every combination of the other layers' compressions.
func (h *immutableRef) GetRemotes(ctx context.Context, createIfNeeded bool, cfg cacheconfig.RefConfig, all bool, s bksession.Group) ([]*solver.Remote, error) {
	ctx, done, err := h.m.withLease(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	c := &computation{m: h.m, ref: h, create: createIfNeeded, comp: cfg.Compression, sessions: s}
	remote, err := c.remote(ctx, cfg)
	if err != nil {
		return nil, err
	}
	list := []*solver.Remote{remote}
	n := len(remote.Descriptors)
	if !all || cfg.Compression.Force || n == 0 {
		return list, nil
	}
	top, err := h.m.variant(ctx, remote.Descriptors[n-1], cfg.Compression.Type)
	if err != nil {
		return list, nil // there is no such variant
	}
	provider := content.InfoReaderProvider(h.m.content)
	if top.Digest == remote.Descriptors[n-1].Digest {
		provider = remote.Provider // it may be lazy
	}
	below := []*solver.Remote{{}}
	for _, desc := range remote.Descriptors[:n-1] {
		below = h.m.combine(ctx, below, desc, remote.Provider)
	}
	for _, b := range below {
		list = append(list, appendLayer(b, top, provider))
	}
	return list, nil
}

// combine puts each stored compression of a layer on top of each chain; the layer
// as it is where none is stored.
func (m *Manager) combine(ctx context.Context, chains []*solver.Remote, desc ocispecs.Descriptor, p content.InfoReaderProvider) (out []*solver.Remote) {
	forms := map[digest.Digest]bool{}
	var descs []ocispecs.Descriptor
	err := m.allVariants(ctx, desc, func(d ocispecs.Descriptor) bool {
		if !forms[d.Digest] {
			forms[d.Digest] = true
			descs = append(descs, d)
		}
		return true
	})
	if err != nil {
		bklog.G(ctx).WithError(err).Warnf("cache: some compressions of %s are left out", desc.Digest)
	}
	for _, d := range descs {
		provider := content.InfoReaderProvider(m.content)
		if d.Digest == desc.Digest {
			provider = p // it may be lazy
		}
		for _, c := range chains {
			out = append(out, appendLayer(c, d, provider))
		}
	}
	return out
}

// appendLayer is a chain with one more layer on top.
func appendLayer(chain *solver.Remote, desc ocispecs.Descriptor, p content.InfoReaderProvider) *solver.Remote {
	var below content.InfoReaderProvider
	if chain.Provider != nil {
		below = chain.Provider
	}
	mp := contentutil.NewMultiProvider(below)
	mp.Add(desc.Digest, p)
	return &solver.Remote{Descriptors: append(slices.Clone(chain.Descriptors), desc), Provider: mp}
}

// remote describes the layers as they are, or in the compression that is forced.
func (c *computation) remote(ctx context.Context, cfg cacheconfig.RefConfig) (*solver.Remote, error) {
	if err := c.blobs(ctx); err != nil {
		return nil, err
	}
	provider := &layerProvider{}
	remote := &solver.Remote{Provider: provider}
	provider.multi = contentutil.NewMultiProvider(nil)
	for _, l := range c.ref.layerList() {
		desc, err := c.describe(ctx, l, cfg)
		if err != nil {
			return nil, err
		}
		remote.Descriptors = append(remote.Descriptors, desc)
		// The caller may release the record before it is done with the blobs.
		if err := c.m.keep(ctx, blobResource(desc.Digest)); err != nil {
			return nil, err
		}
		provider.add(&blobProvider{ref: c.ref.ref, record: l, desc: desc, sessions: c.sessions})
	}
	return remote, nil
}

// describe is the descriptor under which a layer is exported.
func (c *computation) describe(ctx context.Context, l *record, cfg cacheconfig.RefConfig) (ocispecs.Descriptor, error) {
	desc, err := l.descriptor(ctx, c.ref.handlers, cfg.PreferNonDistributable)
	if err != nil {
		return desc, err
	}
	if desc.MediaType == "" { // records of before leases
		if desc.MediaType, err = compression.DetectLayerMediaType(ctx, c.m.content, desc.Digest, false); err != nil {
			return desc, fmt.Errorf("media type of %s: %w", desc.Digest, err)
		}
	}
	origins, err := c.distributionSources(ctx, l)
	if err != nil {
		return desc, err
	}
	for k, v := range origins {
		desc.Annotations[k] = addToList(desc.Annotations[k], v)
	}
	if !cfg.Compression.Force {
		return desc, nil
	}
	needs, err := cfg.Compression.Type.NeedsConversion(ctx, c.m.content, desc)
	if err != nil || !needs {
		return desc, err
	}
	other, err := l.variantOf(ctx, cfg.Compression.Type)
	if err != nil { // it was collected meanwhile
		if err := c.ensureCompression(ctx, l); err != nil {
			return desc, err
		}
		if other, err = l.variantOf(ctx, cfg.Compression.Type); err != nil {
			return desc, err
		}
	}
	annotations := map[string]string{}
	for k := range origins {
		annotations[k] = desc.Annotations[k]
	}
	maps.Copy(annotations, other.Annotations)
	desc.MediaType, desc.Digest, desc.Size, desc.URLs, desc.Annotations = other.MediaType, other.Digest, other.Size, other.URLs, annotations
	return desc, nil
}

// labelSource, with a registry host, says which repositories of it have a blob. A
// push mounts it from there instead of sending it. Local blobs have it as labels.
const labelSource = "containerd.io/distribution.source."

// distributionSources are such annotations for a lazy blob, from the images that the
// layer was pulled with.
func (c *computation) distributionSources(ctx context.Context, l *record) (map[string][]string, error) {
	lazy, err := l.isLazy(ctx)
	if err != nil || !lazy {
		return nil, err
	}
	out := map[string][]string{}
	for _, ref := range keyImageRefs.get(l.meta) {
		spec, err := reference.Parse(ref)
		if err != nil {
			return nil, fmt.Errorf("record %s: image reference %q: %w", l.ID(), ref, err)
		}
		u, err := url.Parse("registry://" + spec.Locator)
		if err != nil {
			return nil, fmt.Errorf("record %s: image reference %q: %w", l.ID(), ref, err)
		}
		k := labelSource + u.Hostname()
		out[k] = appendNew(out[k], strings.TrimPrefix(u.Path, "/"))
	}
	return out, nil
}

// addToList adds values to a list that is separated by commas.
func addToList(list string, values []string) string {
	var have []string
	if list != "" {
		have = strings.Split(list, ",")
	}
	return strings.Join(appendNew(have, values...), ",")
}

// layerProvider provides the blobs of several layers. Exporters that need all of
// them ask for Unlazy.
type layerProvider struct {
	multi *contentutil.MultiProvider
	list  []*blobProvider
}

var (
	_ content.InfoReaderProvider = (*layerProvider)(nil)
	_ bkcache.Unlazier           = (*layerProvider)(nil)
)

func (p *layerProvider) add(b *blobProvider) {
	p.multi.Add(b.desc.Digest, b)
	p.list = append(p.list, b)
}

// ReaderAt implements content.Provider.
func (p *layerProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	return p.multi.ReaderAt(ctx, desc)
}

// Info implements content.InfoProvider.
func (p *layerProvider) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	return p.multi.Info(ctx, dgst)
}

// Unlazy fetches the blobs that are lazy, side by side.
func (p *layerProvider) Unlazy(ctx context.Context) error {
	eg, ctx := errgroup.WithContext(ctx)
	for _, b := range p.list {
		eg.Go(func() error { return b.Unlazy(ctx) })
	}
	return eg.Wait()
}

// blobProvider provides the blob of one layer. It is used while somebody holds ref.
type blobProvider struct {
	ref      *ref
	record   *record
	desc     ocispecs.Descriptor
	sessions bksession.Group
}

// ReaderAt reads the blob from the content store. A lazy one is read while it is
// fetched, where that is possible, so that a push sends what a pull has brought so
// far; otherwise it is fetched first.
func (p *blobProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if desc.Digest != p.desc.Digest {
		return nil, fmt.Errorf("blob %s: %w", desc.Digest, cerrdefs.ErrNotFound)
	}
	if r, err := p.stream(ctx); r != nil || err != nil {
		return r, err
	}
	if err := p.Unlazy(ctx); err != nil {
		return nil, err
	}
	return p.record.m.content.ReaderAt(ctx, desc)
}

// stream opens a lazy blob that has a source; nil for others, and where no source
// has it.
func (p *blobProvider) stream(ctx context.Context) (content.ReaderAt, error) {
	m, r := p.record.m, p.record
	if p.desc.Digest != keyBlob.get(r.meta) || m.opts.Adopt == nil {
		return nil, nil
	}
	sources, err := m.usable(ctx, r, p.ref.handlers)
	if err != nil || len(sources) == 0 {
		return nil, err
	}
	if _, err := m.content.Info(ctx, p.desc.Digest); err == nil || !cerrdefs.IsNotFound(err) {
		return nil, err
	}
	sub := &ref{record: r, handlers: p.ref.handlers}
	release, err := sub.accessOne(ctx, p.sessions)
	if err != nil {
		return nil, err
	}
	for _, src := range sources {
		s, err := m.lazy.Stream(ctx, src)
		if err == nil {
			return &heldReader{s, release}, nil
		}
		if ctx.Err() != nil {
			release()
			return nil, context.Cause(ctx)
		}
		bklog.G(ctx).WithError(err).Warnf("cache: layer %s can't be read from %s", p.desc.Digest, src.Reference)
	}
	release()
	return nil, nil
}

// heldReader is a blob that is read with the rights of sessions.
type heldReader struct {
	remotesnapshot.BlobReader
	release func()
}

// Close implements io.Closer.
func (r *heldReader) Close() error {
	defer r.release()
	return r.BlobReader.Close()
}

// Info answers for a lazy blob from its descriptor.
func (p *blobProvider) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	if dgst != p.desc.Digest {
		return content.Info{}, fmt.Errorf("blob %s: %w", dgst, cerrdefs.ErrNotFound)
	}
	info, err := p.record.m.content.Info(ctx, dgst)
	if err == nil {
		return info, nil
	}
	lazy, lerr := p.record.isLazy(ctx)
	if lerr != nil {
		return content.Info{}, lerr
	}
	if !lazy {
		return content.Info{}, err
	}
	return content.Info{Digest: p.desc.Digest, Size: p.desc.Size}, nil
}

// Unlazy fetches a lazy blob. One that is local is left alone.
func (p *blobProvider) Unlazy(ctx context.Context) error {
	if p.desc.Digest != keyBlob.get(p.record.meta) {
		return nil // a converted one, which is always local
	}
	return p.record.m.localBlob(ctx, p.ref, p.record, p.sessions)
}

// localBlob brings a layer's own blob into the content store, with the rights of
// the sessions, and keeps it in the caller's lease and in the record's.
func (m *Manager) localBlob(ctx context.Context, h *ref, r *record, s bksession.Group) error {
	blob := keyBlob.get(r.meta)
	if _, err := m.content.Info(ctx, blob); err == nil || !cerrdefs.IsNotFound(err) {
		return err
	}
	if again := m.holdAgain(r); again != nil {
		defer func() { _ = m.finish(ctx, m.letGo(again)) }() // as good as never held
		if err := m.ensureLease(ctx, r.ID(), leaseOpts(flat), blobResource(blob)); err != nil {
			return err
		}
	}
	sub := &ref{record: r, handlers: h.handlers, pg: h.pg}
	release, err := sub.accessOne(ctx, s)
	if err != nil {
		return err
	}
	defer release()
	ctx, done, err := m.withLease(ctx)
	if err != nil {
		return err
	}
	defer done()
	return m.fetchBlob(ctx, r, h.handlers, s)
}

// holdAgain holds a record for the time of a call; nil when it has been removed.
func (m *Manager) holdAgain(r *record) *ref {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.dead {
		return nil
	}
	return r.holdLocked(false, nil, nil)
}

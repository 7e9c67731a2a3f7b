package worker

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	bkcache "github.com/moby/buildkit/cache"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	"github.com/moby/buildkit/snapshot/imagerefchecker"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerblob"
	"github.com/moby/buildkit/source/containerimage"
	"github.com/moby/buildkit/source/git"
	"github.com/moby/buildkit/source/http"
	"github.com/moby/buildkit/source/local"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/worker/base"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/cache"
)

// BuildKit makes its worker around a cache manager of its own (base.NewWorker), so
// ours is made here, of the same parts.

// newCache opens the cache manager. Temporary leases of an earlier process end.
func newCache(ctx context.Context, opt base.WorkerOpt, s storage) (*cache.Manager, error) {
	// The build history has a namespace of its own in the same stores.
	for _, lm := range []leases.Manager{opt.LeaseManager, opt.LeaseManager.WithNamespace(namespace + "_history")} {
		stale, err := lm.List(ctx, `labels."buildkit/lease.temporary"`)
		if err != nil {
			return nil, fmt.Errorf("list temporary leases: %w", err)
		}
		for _, l := range stale {
			if err := lm.Delete(ctx, l); err != nil {
				bklog.G(ctx).WithError(err).Warnf("temporary lease %s stays until it expires", l.ID)
			}
		}
	}
	o := cache.Options{
		Snapshotter:    opt.Snapshotter,
		Content:        opt.ContentStore,
		Leases:         opt.LeaseManager,
		Metadata:       opt.MetadataStore,
		Applier:        opt.Applier,
		Differ:         opt.Differ,
		GarbageCollect: opt.GarbageCollect,
		Root:           opt.Root,
		MountRoot:      opt.MountPoolRoot,
		Lazy:           s.lazy,
		NotLazy:        s.notLazy,
		Shared: imagerefchecker.New(imagerefchecker.Opt{
			ImageStore:   opt.ImageStore,
			ContentStore: opt.ContentStore,
		}),
	}
	if s.steps != nil {
		o.Resolved = s.steps.resolved
	}
	if s.blobs != "" {
		o.Adopt = adopter{store: opt.ContentStore, blobs: s.blobs}.adopt
	}
	return cache.New(ctx, o)
}

// newBase puts BuildKit's sources and operations around the cache manager.
func newBase(ctx context.Context, opt base.WorkerOpt, cm *cache.Manager, s storage) (*base.Worker, error) {
	w := &base.Worker{WorkerOpt: opt, CacheMgr: cm}
	var err error
	if w.SourceManager, err = source.NewManager(); err != nil {
		return nil, fmt.Errorf("sources: %w", err)
	}
	images := containerimage.SourceOpt{
		Snapshotter:   opt.Snapshotter,
		ContentStore:  opt.ContentStore,
		Applier:       opt.Applier,
		ImageStore:    opt.ImageStore,
		CacheAccessor: cm,
		RegistryHosts: opt.RegistryHosts,
		ResolverType:  containerimage.ResolverTypeRegistry,
		LeaseManager:  opt.LeaseManager,
	}
	pulled := images
	if s.expect != nil {
		pulled.ContentStore = manifests{opt.ContentStore, s.expect}
	}
	if w.ImageSource, err = containerimage.NewSource(pulled); err != nil {
		return nil, fmt.Errorf("image source: %w", err)
	}
	layouts := images
	layouts.CacheAccessor = layoutAccessor{cm}
	layouts.RegistryHosts = nil
	layouts.ResolverType = containerimage.ResolverTypeOCILayout
	if w.OCILayoutSource, err = containerimage.NewSource(layouts); err != nil {
		return nil, fmt.Errorf("OCI layout source: %w", err)
	}
	blobs, err := containerblob.NewSource(containerblob.SourceOpt{
		ContentStore:  opt.ContentStore,
		CacheAccessor: cm,
		RegistryHosts: opt.RegistryHosts,
	})
	if err != nil {
		return nil, fmt.Errorf("blob source: %w", err)
	}
	if w.HTTPSource, err = http.NewSource(http.Opt{CacheAccessor: cm}); err != nil {
		return nil, fmt.Errorf("HTTP source: %w", err)
	}
	files, err := local.NewSource(local.Opt{CacheAccessor: cm})
	if err != nil {
		return nil, fmt.Errorf("local source: %w", err)
	}
	for _, s := range []source.Source{imageSource{w.ImageSource}, w.OCILayoutSource, blobs, w.HTTPSource, files} {
		w.SourceManager.Register(s)
	}
	if err := git.Supported(); err != nil {
		bklog.G(ctx).Warnf("no git source: %v", err)
		return w, nil
	}
	if w.GitSource, err = git.NewSource(git.Opt{CacheAccessor: cm, RegistryHosts: opt.RegistryHosts}); err != nil {
		return nil, fmt.Errorf("git source: %w", err)
	}
	w.SourceManager.Register(w.GitSource)
	return w, nil
}

// newImageWriter makes what exporters write images with.
func newImageWriter(opt base.WorkerOpt) (*imageexporter.ImageWriter, error) {
	w, err := imageexporter.NewImageWriter(imageexporter.WriterOpt{
		Snapshotter:  opt.Snapshotter,
		ContentStore: opt.ContentStore,
		Applier:      opt.Applier,
		Differ:       opt.Differ,
	})
	if err != nil {
		return nil, fmt.Errorf("image writer: %w", err)
	}
	return w, nil
}

// layoutAccessor is the cache manager for OCI layouts that clients have. BuildKit
// labels their layers as if they came from a registry; without the labels they
// are had from the client only.
type layoutAccessor struct{ bkcache.Accessor }

// GetByBlob takes the labels out of the handlers.
func (a layoutAccessor) GetByBlob(ctx context.Context, desc ocispecs.Descriptor, parent bkcache.ImmutableRef, opts ...bkcache.RefOption) (bkcache.ImmutableRef, error) {
	plain := make([]bkcache.RefOption, len(opts))
	for i, o := range opts {
		plain[i] = o
		if handlers, ok := o.(bkcache.DescHandlers); ok {
			plain[i] = withoutLabels(handlers)
		}
	}
	return a.Accessor.GetByBlob(ctx, desc, parent, plain...)
}

func withoutLabels(handlers bkcache.DescHandlers) bkcache.DescHandlers {
	out := make(bkcache.DescHandlers, len(handlers))
	for dgst, h := range handlers {
		plain := *h
		plain.SnapshotLabels = nil
		out[dgst] = &plain
	}
	return out
}

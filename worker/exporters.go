package worker

import (
	"context"
	"fmt"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	localexporter "github.com/moby/buildkit/exporter/local"
	ociexporter "github.com/moby/buildkit/exporter/oci"
	tarexporter "github.com/moby/buildkit/exporter/tar"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/progress"

	"github.com/lazykit/lazykit/cache"
)

// Exporter implements bkworker.Worker. BuildKit's own one needs an image writer that
// only base.NewWorker can set.
func (w *Worker) Exporter(name string, sm *bksession.Manager) (exporter.Exporter, error) {
	e, err := w.exporter(name, sm)
	if err != nil {
		return nil, err
	}
	return tellingExporter{e, w.cache}, nil
}

func (w *Worker) exporter(name string, sm *bksession.Manager) (exporter.Exporter, error) {
	layouts := func(v ociexporter.ExporterVariant) (exporter.Exporter, error) {
		return ociexporter.New(ociexporter.Opt{
			SessionManager: sm,
			ImageWriter:    w.images,
			Variant:        v,
			LeaseManager:   w.LeaseManager(),
		})
	}
	switch name {
	case client.ExporterImage:
		return imageexporter.New(imageexporter.Opt{
			Images:         w.ImageStore,
			SessionManager: sm,
			ImageWriter:    w.images,
			RegistryHosts:  w.RegistryHosts,
			LeaseManager:   w.LeaseManager(),
		})
	case client.ExporterOCI:
		return layouts(ociexporter.VariantOCI)
	case client.ExporterDocker:
		return layouts(ociexporter.VariantDocker)
	case client.ExporterLocal:
		return localexporter.New(localexporter.Opt{SessionManager: sm})
	case client.ExporterTar:
		return tarexporter.New(tarexporter.Opt{SessionManager: sm})
	}
	return nil, fmt.Errorf("exporter %q could not be found", name)
}

// tellingExporter says in the build's progress, at the end of the build, what was
// needed of its lazy images.
type tellingExporter struct {
	exporter.Exporter
	cache *cache.Manager
}

// Resolve implements exporter.Exporter.
func (e tellingExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	return tellingInstance{i, e.cache}, nil
}

type tellingInstance struct {
	exporter.ExporterInstance
	cache *cache.Manager
}

// Export implements exporter.ExporterInstance.
func (i tellingInstance) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	// Before the export, which may need all of every layer.
	refs := make([]bkcache.ImmutableRef, 0, len(src.Refs)+1)
	for _, r := range src.Refs {
		refs = append(refs, r)
	}
	for _, img := range i.cache.Images(ctx, append(refs, src.Ref)...) {
		line := fmt.Sprintf("lazy image %s: %.1f of %.1f MB fetched, %d of %d layers lazy",
			img.Reference, float64(img.Fetched)/1e6, float64(img.Size)/1e6, img.LazyLayers, img.Layers)
		_ = progress.OneOff(ctx, line)(nil)
	}
	return i.ExporterInstance.Export(ctx, src, info)
}

package worker

import (
	"fmt"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	localexporter "github.com/moby/buildkit/exporter/local"
	ociexporter "github.com/moby/buildkit/exporter/oci"
	tarexporter "github.com/moby/buildkit/exporter/tar"
	bksession "github.com/moby/buildkit/session"
)

// Exporter implements bkworker.Worker. BuildKit's own one needs an image writer that
// only base.NewWorker can set.
func (w *Worker) Exporter(name string, sm *bksession.Manager) (exporter.Exporter, error) {
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

package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/cache/remotecache"
	"github.com/moby/buildkit/cache/remotecache/azblob"
	"github.com/moby/buildkit/cache/remotecache/gha"
	"github.com/moby/buildkit/cache/remotecache/inline"
	localcache "github.com/moby/buildkit/cache/remotecache/local"
	registrycache "github.com/moby/buildkit/cache/remotecache/registry"
	"github.com/moby/buildkit/cache/remotecache/s3"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/control"
	"github.com/moby/buildkit/frontend"
	dockerfile "github.com/moby/buildkit/frontend/dockerfile/builder"
	"github.com/moby/buildkit/frontend/gateway"
	"github.com/moby/buildkit/frontend/gateway/forwarder"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/db"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/util/tracing/detect"
	bkworker "github.com/moby/buildkit/worker"
	policy "github.com/moby/policy-helpers"
	bolt "go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/metric"

	"github.com/lazykit/lazykit/worker"
)

// backend is the controller and what it is made of.
type backend struct {
	controller *control.Controller
	cacheStore *bboltcachestorage.Store
	traces     *traceSocket
	worker     *worker.Worker
	registries *worker.Registries
}

// parts of a backend before the controller owns them.
type parts struct {
	sessions *bksession.Manager
	hosts    docker.RegistryHosts
	expect   func(host string, u *url.URL, n int)
	workers  *bkworker.Controller
	cache    *bboltcachestorage.Store
	history  db.DB
	exporter tracing.MultiSpanExporter
}

// newBackend opens the state under the root and starts the worker. ctx ends with
// the daemon; it is kept to let go of clients that watch the history.
func newBackend(ctx context.Context, s *settings, meter metric.MeterProvider) (_ *backend, rerr error) {
	var undo closers
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, undo.Close())
		}
	}()
	sessions, err := bksession.NewManager()
	if err != nil {
		return nil, err
	}
	lazy, _, err := parseStargz(s.Workers.OCI.StargzSnapshotterConfig) // the worker warns
	if err != nil {
		return nil, err
	}
	registries := worker.NewRegistries(s.Registries)
	undo.add(registries.Close)
	hosts := worker.Patient(registries.Hosts, lazy.ResolveTimeout, lazy.FetchTimeout)
	p := parts{sessions: sessions, hosts: hosts, expect: registries.Expect}
	traces, err := p.startTraces(ctx, s.OTEL.SocketPath)
	if err != nil {
		return nil, err
	}
	if traces != nil {
		undo.add(func() error { traces.Close(); return nil })
	}
	w, err := newWorker(ctx, s, &p, socketPath(traces, s))
	if err != nil {
		return nil, err
	}
	undo.add(w.Close)
	p.workers = &bkworker.Controller{}
	if err := p.workers.Add(w); err != nil {
		return nil, err
	}
	if err := p.openStores(s.Root, &undo); err != nil {
		return nil, err
	}
	// Before the controller, which makes such leases.
	lm := w.LeaseManager()
	if err := endHistoryLeases(ctx, p.history, lm.WithNamespace(lm.Namespace()+historySuffix)); err != nil {
		bklog.G(ctx).WithError(err).Warn("what the history kept of a killed build stays")
	}
	opt, err := p.controllerOpt(ctx, s, meter)
	if err != nil {
		return nil, err
	}
	controller, err := control.NewController(opt)
	if err != nil {
		return nil, err
	}
	return &backend{controller: controller, cacheStore: p.cache, traces: traces, worker: w, registries: registries}, nil
}

// Close ends the controller, the worker, and the databases under them.
func (b *backend) Close() error {
	err := b.controller.Close()
	if b.traces != nil {
		b.traces.Close()
	}
	return errors.Join(err, b.registries.Close())
}

// Stalled implements stopper.
func (b *backend) Stalled() time.Duration { return b.worker.Stalled() }

// Abort implements stopper.
func (b *backend) Abort() { b.worker.Abort() }

// startTraces collects where traces of builds go, and listens for those of
// steps when there is such a place.
func (p *parts) startTraces(ctx context.Context, path string) (*traceSocket, error) {
	if detect.Recorder != nil {
		p.exporter = append(p.exporter, detect.Recorder)
	}
	exp, err := spanExporter(ctx)
	if err != nil {
		return nil, err
	}
	if exp != nil {
		p.exporter = append(p.exporter, exp)
	}
	if len(p.exporter) == 0 {
		return nil, nil
	}
	return serveTraces(path, p.exporter)
}

// socketPath is empty when nobody collects traces.
func socketPath(t *traceSocket, s *settings) string {
	if t == nil {
		return ""
	}
	return s.OTEL.SocketPath
}

func (p *parts) openStores(root string, undo *closers) (err error) {
	if p.cache, err = bboltcachestorage.NewStore(filepath.Join(root, "cache.db")); err != nil {
		return fmt.Errorf("open cache.db: %w", err)
	}
	undo.add(p.cache.Close)
	p.history, err = boltutil.SafeOpen(filepath.Join(root, "history.db"), 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open history.db: %w", err)
	}
	undo.add(p.history.Close)
	return nil
}

func (p *parts) controllerOpt(ctx context.Context, s *settings, meter metric.MeterProvider) (control.Opt, error) {
	w, err := p.workers.GetDefault()
	if err != nil {
		return control.Opt{}, err
	}
	frontends, err := newFrontends(&s.Config, p.workers.Infos())
	if err != nil {
		return control.Opt{}, err
	}
	provenance, err := readProvenanceEnv(s.ProvenanceEnvDir)
	if err != nil {
		return control.Opt{}, err
	}
	entitlements := s.Entitlements
	if !cdiDisabled(s.CDI) {
		entitlements = append(entitlements, "device")
	}
	exporters, importers := p.remoteCaches(s, w)
	return control.Opt{
		SessionManager:            p.sessions,
		WorkerController:          p.workers,
		Frontends:                 frontends,
		ResolveCacheExporterFuncs: exporters,
		ResolveCacheImporterFuncs: importers,
		CacheManager:              solver.NewCacheManager(ctx, "local", cacheKeys{p.cache}, cacheResults{bkworker.NewCacheResultStorage(p.workers)}),
		Entitlements:              entitlements,
		TraceCollector:            p.exporter,
		MeterProvider:             meter,
		HistoryDB:                 p.history,
		CacheStore:                p.cache,
		LeaseManager:              w.LeaseManager(),
		ContentStore:              w.ContentStore(),
		HistoryConfig:             s.History,
		ProxyNetwork:              s.ProxyNetwork,
		GarbageCollect:            w.GarbageCollect,
		GracefulStop:              ctx.Done(),
		ProvenanceEnv:             provenance,
	}, nil
}

// remoteCaches are the backends of --cache-to and --cache-from.
func (p *parts) remoteCaches(s *settings, w bkworker.Worker) (map[string]remotecache.ResolveCacheExporterFunc, map[string]remotecache.ResolveCacheImporterFunc) {
	var verifier func() (*policy.Verifier, error)
	if g := s.Cache.GHA; g != nil && g.Verify.Required {
		verifier = onceVerifier(s.Root)
	}
	return map[string]remotecache.ResolveCacheExporterFunc{
			"registry": registrycache.ResolveCacheExporterFunc(p.sessions, p.hosts),
			"local":    localcache.ResolveCacheExporterFunc(p.sessions),
			"inline":   inline.ResolveCacheExporterFunc(),
			"gha":      gha.ResolveCacheExporterFunc(s.Cache.GHA, verifier),
			"s3":       s3.ResolveCacheExporterFunc(),
			"azblob":   azblob.ResolveCacheExporterFunc(),
		}, map[string]remotecache.ResolveCacheImporterFunc{
			"registry": registrycache.ResolveCacheImporterFunc(p.sessions, w.ContentStore(), p.hosts),
			"local":    localcache.ResolveCacheImporterFunc(p.sessions),
			"gha":      gha.ResolveCacheImporterFunc(s.Cache.GHA, verifier),
			"s3":       s3.ResolveCacheImporterFunc(),
			"azblob":   azblob.ResolveCacheImporterFunc(),
		}
}

// newFrontends are those that the config leaves switched on.
func newFrontends(cfg *config.Config, workers bkworker.Infos) (map[string]frontend.Frontend, error) {
	out := map[string]frontend.Frontend{}
	if on := cfg.Frontends.Dockerfile.Enabled; on == nil || *on {
		out["dockerfile.v0"] = forwarder.NewGatewayForwarder(workers, dockerfile.Build)
	}
	if gw := cfg.Frontends.Gateway; gw.Enabled == nil || *gw.Enabled {
		f, err := gateway.NewGatewayFrontend(workers, gw.AllowedRepositories)
		if err != nil {
			return nil, fmt.Errorf("gateway frontend: %w", err)
		}
		out["gateway.v0"] = f
	}
	return out, nil
}

// closers undo what was opened, the last first.
type closers []func() error

func (c *closers) add(f func() error) { *c = append(*c, f) }

// Close calls them all.
func (c *closers) Close() error {
	var errs []error
	for i := len(*c) - 1; i >= 0; i-- {
		errs = append(errs, (*c)[i]())
	}
	*c = nil
	return errors.Join(errs...)
}

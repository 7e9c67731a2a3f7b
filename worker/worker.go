package worker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/diff/apply"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/platforms"
	imageexporter "github.com/moby/buildkit/exporter/containerimage"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/winlayers"
	bkworker "github.com/moby/buildkit/worker"
	"github.com/moby/buildkit/worker/base"
	wlabel "github.com/moby/buildkit/worker/label"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"

	"github.com/lazykit/lazykit/cache"
	"github.com/lazykit/lazykit/remotesnapshot"
)

// Worker is BuildKit's worker over our cache manager and snapshotter. Safe for concurrent use.
type Worker struct {
	*base.Worker
	cache   *cache.Manager
	images  *imageexporter.ImageWriter
	dir     string
	parts   *parts
	closing sync.Once
	err     error // of Close
}

var _ bkworker.Worker = (*Worker)(nil)

// parts are what a Worker owns beside BuildKit's worker.
type parts struct {
	storage storage
	dbs     *databases
	exec    *execution
}

// storage is a snapshotter as the rest of the worker needs it.
type storage struct {
	name string
	// snapshotter is what containerd's metadata database calls.
	snapshotter snapshots.Snapshotter
	// resolve puts something in front of the snapshotter that clients of the
	// database, and the cache manager, see; may be nil.
	resolve func(snapshots.Snapshotter) snapshots.Snapshotter
	// lazy mounts layers before they are fetched; may be nil.
	lazy remotesnapshot.Lazy
	// notLazy is why lazy is nil, if that is not what the options ask for.
	notLazy error
	// expect is told of lazy layers that a build, which ends with ctx, will probably ask for; may be nil.
	expect func(ctx context.Context, layers []remotesnapshot.Source, s remotesnapshot.Sessions)
	// steps let lazy know which steps run, and will run; may be nil.
	steps *announcements
	// blobs is where the content store keeps blobs, if lazy can make them local.
	blobs string
	// collect frees what the snapshotter keeps beside the database; may be nil.
	collect func(context.Context) error
	// stalled and abort are Worker.Stalled and Worker.Abort; may be nil.
	stalled func() time.Duration
	abort   func()
	// close ends the snapshotter and all that is behind it.
	close func() error
}

// New opens the worker's state under opts.Root and starts it. The state must
// belong to this process alone. ctx is used for opening only.
func New(ctx context.Context, opts Options) (_ *Worker, rerr error) {
	dir := StateDir(opts.Root, opts.Snapshotter)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("worker directory: %w", err)
	}
	// A daemon that was killed left its steps' root file systems mounted; they
	// would hold on to the snapshots below.
	if err := sweepSteps(dir); err != nil {
		return nil, err
	}
	clean, err := begin(dir)
	if err != nil {
		return nil, err
	}
	p := &parts{}
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, p.abandon())
		}
	}()
	if p.exec, err = newExecution(dir, opts); err != nil {
		return nil, err
	}
	if p.storage, err = openStorage(ctx, dir, opts); err != nil {
		return nil, fmt.Errorf("snapshotter %s: %w", opts.Snapshotter, err)
	}
	p.dbs, err = openDatabases(ctx, dir, p.storage.name, p.storage.snapshotter)
	if err != nil {
		return nil, err
	}
	wopt, err := workerOpt(dir, opts, p)
	if err != nil {
		return nil, err
	}
	cm, err := newCache(ctx, wopt, p.storage)
	if err != nil {
		return nil, fmt.Errorf("cache: %w", err)
	}
	if err := removeHalves(filepath.Join(dir, contentDir)); err != nil {
		bklog.G(ctx).WithError(err).Warn("can't remove halves of content writes that an earlier process left")
	}
	if !clean && opts.ProxyAddress == "" { // another process may not answer yet
		if err := p.dbs.tidy(ctx, p.storage.name); err != nil {
			bklog.G(ctx).WithError(err).Warn("can't look for blobs and snapshots that an earlier process left")
		}
	}
	images, err := newImageWriter(wopt)
	if err != nil {
		return nil, err
	}
	w, err := newBase(ctx, wopt, cm, p.storage)
	if err != nil {
		return nil, err
	}
	return &Worker{Worker: w, cache: cm, images: images, dir: dir, parts: p}, nil
}

// openStorage opens the snapshotter that opts ask for.
func openStorage(ctx context.Context, dir string, opts Options) (storage, error) {
	root := filepath.Join(dir, snapshotsDir)
	var sn snapshots.Snapshotter
	var err error
	switch {
	case opts.ProxyAddress != "":
		sn, err = proxySnapshotter(opts.Snapshotter, opts.ProxyAddress)
	case opts.Snapshotter == Stargz:
		return openLazy(ctx, dir, opts)
	default:
		sn, err = plainSnapshotter(opts.Snapshotter, root)
	}
	if err != nil {
		return storage{}, err
	}
	s := storage{name: opts.Snapshotter, snapshotter: sn, close: sn.Close, notLazy: opts.NotLazy}
	if opts.ProxyAddress != "" && opts.Snapshotter == Stargz {
		s.lazy = foreign{}
	}
	return s, nil
}

// workerOpt describes the worker to BuildKit.
func workerOpt(dir string, opts Options, p *parts) (base.WorkerOpt, error) {
	id, err := base.ID(dir)
	if err != nil {
		return base.WorkerOpt{}, fmt.Errorf("worker id: %w", err)
	}
	mdb := p.dbs.containerd
	blobs := containerdsnapshot.NewContentStore(mdb.ContentStore(), namespace)
	client := mdb.Snapshotter(p.storage.name)
	if p.storage.resolve != nil {
		client = p.storage.resolve(client)
	}
	sn := containerdsnapshot.NewSnapshotter(p.storage.name, client, namespace, opts.IDMapping)
	steps := p.exec.executor
	if p.storage.steps != nil {
		steps = followed{steps, p.storage.steps, nil}
	}
	wopt := base.WorkerOpt{
		ID:               id,
		Root:             dir,
		Labels:           workerLabels(opts, p.exec.netMode),
		Platforms:        opts.Platforms,
		GCPolicy:         opts.GCPolicy,
		BuildkitVersion:  opts.BuildkitVersion,
		NetworkProviders: p.exec.networks,
		ProxyProvider:    p.exec.proxy,
		Executor:         steps,
		Snapshotter:      sn,
		ContentStore:     blobs,
		Applier:          winlayers.NewFileSystemApplierWithWindows(blobs, apply.NewFileSystemApplier(blobs)),
		Differ:           winlayers.NewWalkingDiffWithWindows(blobs, walking.NewWalkingDiff(blobs)),
		RegistryHosts:    opts.Hosts,
		IdentityMapping:  opts.IDMapping,
		LeaseManager:     leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(mdb), namespace),
		GarbageCollect:   p.garbageCollect,
		MetadataStore:    p.dbs.records,
		MountPoolRoot:    filepath.Join(dir, cacheMountsDir),
		ResourceMonitor:  p.exec.resources,
		CDIManager:       opts.CDI,
	}
	if opts.MaxParallelism > 0 {
		wopt.ParallelismSem = semaphore.NewWeighted(int64(opts.MaxParallelism))
	}
	if len(wopt.Platforms) == 0 {
		wopt.Platforms = []ocispecs.Platform{platforms.Normalize(platforms.DefaultSpec())}
	}
	return wopt, nil
}

// workerLabels describe the worker to clients, who select workers by them.
func workerLabels(opts Options, netMode string) map[string]string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	labels := map[string]string{
		wlabel.Executor:       "oci",
		wlabel.Snapshotter:    opts.Snapshotter,
		wlabel.Hostname:       host,
		wlabel.Network:        netMode,
		wlabel.OCIProcessMode: opts.ProcessMode.String(),
		wlabel.SELinuxEnabled: strconv.FormatBool(opts.SELinux),
	}
	if opts.ApparmorProfile != "" {
		labels[wlabel.ApparmorProfile] = opts.ApparmorProfile
	}
	maps.Copy(labels, opts.Labels)
	return labels
}

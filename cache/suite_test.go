package cache_test

import (
	"context"
	"errors"
	"os"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	bkcache "github.com/moby/buildkit/cache"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/cache"
	"github.com/lazykit/lazykit/cache/cachetest"
	"github.com/lazykit/lazykit/remotesnapshot"
)

// Snapshotters that the suite runs on.
var (
	onNative = cachetest.Storage{
		Name: "native",
		Open: func(_ context.Context, root string) (snapshots.Snapshotter, error) {
			return native.NewSnapshotter(root)
		},
	}
	onOverlay = cachetest.Storage{
		Name:    "overlayfs",
		Overlay: true,
		Open: func(_ context.Context, root string) (snapshots.Snapshotter, error) {
			return overlay.NewSnapshotter(root)
		},
	}
	// onStargz is our snapshotter without a lazy file system.
	onStargz = cachetest.Storage{
		Name:    "stargz",
		Overlay: true,
		Open: func(ctx context.Context, root string) (snapshots.Snapshotter, error) {
			return remotesnapshot.New(ctx, root, nil, remotesnapshot.Options{})
		},
	}
	// withTOCs is a snapshotter on which layers could be lazy, but none is.
	withTOCs = cachetest.Storage{Name: "stargz", TOCs: true, Open: onNative.Open}
)

// ours is this package's manager.
var ours = cachetest.Implementation{
	Name: "ours",
	New: func(ctx context.Context, o bkcache.ManagerOpt) (bkcache.Manager, error) {
		return newOurs(ctx, options(o))
	},
}

// oursLazy is ours with an ability to be lazy that no layer has.
var oursLazy = cachetest.Implementation{
	Name: "ours, lazy",
	New: func(ctx context.Context, o bkcache.ManagerOpt) (bkcache.Manager, error) {
		opts := options(o)
		opts.Lazy = neverLazy{}
		opts.Adopt = func(context.Context, ocispecs.Descriptor, string) error { return errNotLazy }
		return newOurs(ctx, opts)
	},
}

// newOurs returns nil, not a nil *cache.Manager, with an error.
func newOurs(ctx context.Context, opts cache.Options) (bkcache.Manager, error) {
	m, err := cache.New(ctx, opts)
	if err != nil {
		return nil, err
	}
	return m, nil
}

func options(o bkcache.ManagerOpt) cache.Options {
	return cache.Options{
		Snapshotter:    o.Snapshotter,
		Content:        o.ContentStore,
		Leases:         o.LeaseManager,
		Metadata:       o.MetadataStore,
		Differ:         o.Differ,
		Applier:        o.Applier,
		Shared:         o.PruneRefChecker,
		GarbageCollect: o.GarbageCollect,
		Root:           o.Root,
		MountRoot:      o.MountPoolRoot,
	}
}

// stock is BuildKit's manager: it shows that the suite asks for the right things.
var stock = cachetest.Implementation{
	Name: "BuildKit",
	New:  func(_ context.Context, o bkcache.ManagerOpt) (bkcache.Manager, error) { return bkcache.NewManager(o) },
	Bugs: []cachetest.Bug{
		cachetest.LeaksParentOfNew,
		cachetest.CountsPruneAsUse,
		cachetest.LosesUnsized,
		cachetest.PrunesOneTooMany,
		cachetest.LosesLazy,
		cachetest.CountsUsageAsUse,
		cachetest.LeaksOnFaults,
	},
}

func TestSuite(t *testing.T) {
	needRoot(t)
	for name, st := range map[string]cachetest.Storage{"native": onNative, "overlayfs": onOverlay, "stargz": onStargz} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cachetest.Run(t, ours, st)
		})
	}
	t.Run("lazy", func(t *testing.T) {
		t.Parallel()
		cachetest.Run(t, oursLazy, withTOCs)
	})
}

// TestSuiteStock runs the suite on BuildKit's manager.
func TestSuiteStock(t *testing.T) {
	needRoot(t)
	for name, st := range map[string]cachetest.Storage{"native": onNative, "overlayfs": onOverlay, "lazy": withTOCs} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cachetest.Run(t, stock, st)
		})
	}
}

// needRoot skips, unless the machine is meant to run everything.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatalf("LAZYKIT_PRIVILEGED=1, but uid is %d", os.Geteuid())
	}
	t.Skip("needs root")
}

// errNotLazy is why no layer is.
var errNotLazy = errors.New("no layer is lazy here")

// neverLazy is a lazy ability without a layer that can be.
type neverLazy struct{}

var _ remotesnapshot.Lazy = neverLazy{}

func (neverLazy) Resolve(_ context.Context, srcs ...remotesnapshot.Source) []error {
	errs := make([]error, len(srcs))
	for i := range errs {
		errs[i] = errNotLazy
	}
	return errs
}

func (neverLazy) Hold(remotesnapshot.Source, remotesnapshot.Sessions) func() { return func() {} }

func (neverLazy) Authorize(context.Context, remotesnapshot.Source, remotesnapshot.Sessions) error {
	return nil
}

func (neverLazy) Vouch(remotesnapshot.Source, remotesnapshot.Sessions) {}

func (neverLazy) Unlazy(context.Context, remotesnapshot.Source) (string, func(), error) {
	return "", nil, errNotLazy
}

func (neverLazy) Stream(context.Context, remotesnapshot.Source) (remotesnapshot.BlobReader, error) {
	return nil, errNotLazy
}

func (neverLazy) Info(digest.Digest) remotesnapshot.LayerInfo { return remotesnapshot.LayerInfo{} }
func (neverLazy) Usage(digest.Digest) (int64, error)          { return 0, nil }
func (neverLazy) Fast(dirs []string) ([]string, error)        { return dirs, nil }

// TestSame compares what our manager and BuildKit's leave on disk, and has each open
// what the other one has left.
func TestSame(t *testing.T) {
	needRoot(t)
	for name, st := range map[string]cachetest.Storage{"native": onNative, "overlayfs": onOverlay} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cachetest.RunSame(t, ours, stock, st)
		})
	}
	t.Run("lazy", func(t *testing.T) {
		t.Parallel()
		cachetest.RunSame(t, oursLazy, stock, withTOCs)
	})
}

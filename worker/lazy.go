package worker

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/util/bklog"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
	"github.com/lazykit/lazykit/session"
)

// snapshotterDir is the snapshotter's directory in snapshots/, as in stock. The
// FUSE mounts are in it, too: their paths go into the options of overlay mounts,
// which have to fit a page, so they are short and near the other directories.
const snapshotterDir = "snapshotter"

// defaultTTL is how long a layer stays open after its last use: a build that
// follows another finds its base ready.
const defaultTTL = 2 * time.Minute

// collectMargin is how much later than that its bytes are freed.
const collectMargin = 5 * time.Second

// openLazy opens the snapshotter with remote snapshots and all that is behind it.
func openLazy(ctx context.Context, dir string, opts Options) (_ storage, rerr error) {
	root := filepath.Join(dir, snapshotsDir, snapshotterDir)
	userXattr, err := remotesnapshot.NeedsUserXattr(root)
	if err != nil {
		bklog.G(ctx).WithError(err).Warnf("can't tell whether overlays need userxattr, assuming %v", userXattr)
	}
	registry := session.New(opts.Hosts, opts.Sessions)
	traffic := newTraffic()
	ttl := opts.Lazy.TTL
	if ttl == 0 {
		ttl = defaultTTL
	}
	lopts := lazyfs.Options{
		Root:      filepath.Join(dir, lazyDir),
		MountRoot: root,
		UserXattr: userXattr,
		TTL:       ttl,
		// What is kept is the cache manager's to say: a prune means it.
		KeepBytes: -1,
		MaxBytes:  opts.Lazy.MaxBytes,
		Debug:     opts.Lazy.Debug,

		ProfileDir: opts.Lazy.ProfileDir,
		NoProfiles: opts.Lazy.NoProfiles,
		NoImages:   opts.Lazy.NoImages,
		OnError:    func(err error) { bklog.L.WithError(err).Warn("lazy file system") },
		Layer: layer.Options{
			PrefetchSize:    opts.Lazy.PrefetchSize,
			BackgroundFetch: opts.Lazy.BackgroundFetch,
		},
		Blob: blob.Options{
			Connections: opts.Lazy.Connections,
			RequestSize: opts.Lazy.RequestSize,
			GiveUp:      opts.Lazy.FetchTimeout,
			Expect:      opts.Expect,
			BackoffMin:  opts.Lazy.MinWait,
			BackoffMax:  opts.Lazy.MaxWait,
			OnError:     func(err error) { bklog.L.WithError(err).Warn("blob store") },
		},
	}
	askThrough(&lopts, registry, traffic)
	fs, err := lazyfs.New(ctx, lopts)
	if err != nil {
		return storage{}, err
	}
	rest := newCollector(ctx, fs.Collect, max(ttl, 0)+collectMargin)
	// Both Abort and Close end it.
	closeFS := sync.OnceValue(func() error {
		rest.close()
		return fs.Close()
	})
	sn, err := remotesnapshot.New(ctx, root, fs, remotesnapshot.Options{AsyncRemove: true, UserXattr: userXattr, ExactXattrs: true})
	if err != nil {
		closeFS()
		return storage{}, err
	}
	// What an earlier process fetched for a snapshot that it did not get to make is
	// wanted by the build that is tried again, or by nobody.
	rest.schedule()
	return storage{
		name:        opts.Snapshotter,
		snapshotter: sn,
		resolve:     remotesnapshot.ResolveViews,
		lazy:        fs,
		expect:      fs.Expect,
		steps:       &announcements{fs: fs, plain: filepath.Join(root, "snapshots")},
		blobs:       filepath.Join(dir, contentDir, "blobs"),
		collect:     rest.run,
		stalled:     traffic.stalled,
		abort: func() {
			if err := closeFS(); err != nil {
				bklog.L.WithError(err).Warn("lazy file system")
			}
		},
		close: func() error {
			err := sn.Close()
			if ferr := closeFS(); ferr != nil && err == nil {
				err = fmt.Errorf("lazy file system: %w", ferr)
			}
			return err
		},
	}, nil
}

// askThrough makes a lazy file system's requests with the credentials of sessions,
// and has them watched.
func askThrough(o *lazyfs.Options, registry *session.Registry, t *traffic) {
	o.Hosts = func(ref string) blob.Hosts {
		return func(ctx context.Context) ([]docker.RegistryHost, error) {
			hosts, err := registry.Hosts(ctx, ref)
			return t.watch(hosts), err
		}
	}
	o.HostsOf = func(ref, id string) blob.Hosts {
		return func(ctx context.Context) ([]docker.RegistryHost, error) {
			hosts, err := registry.HostsOf(ctx, ref, id)
			return t.watch(hosts), err
		}
	}
	o.Sessions = registry
}

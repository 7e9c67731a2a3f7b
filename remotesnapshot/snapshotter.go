package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	"github.com/containerd/continuity/fs"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Options of a Snapshotter. Zero values are the documented defaults.
type Options struct {
	// AsyncRemove leaves the directories of removed snapshots to Cleanup, which
	// containerd's garbage collector calls without its lock. False: Remove deletes
	// them itself.
	AsyncRemove bool
	// UserXattr says that overlays are mounted with userxattr, as they have to be
	// in a user namespace: see [NeedsUserXattr]. The file system's opaque
	// directories have to agree with it. False: they are not.
	UserXattr bool
	// ExactXattrs mounts layers with exact answers (see [Xattrs]) in active
	// snapshots too, for a client that reads some of them itself. False: fast ones.
	ExactXattrs bool
}

// Snapshotter is a containerd snapshotter over overlayfs with remote snapshots.
// All methods are safe for concurrent use.
type Snapshotter struct {
	root    string
	meta    metaStore
	fs      FileSystem // nil: plain snapshots only
	opts    Options
	indexed bool // the kernel's overlayfs knows index=
	dirs    dirs
	holds   holds
	keeper  keeper

	sweep struct {
		stop context.CancelFunc
		done sync.WaitGroup
	}
}

var (
	_ snapshots.Snapshotter = (*Snapshotter)(nil)
	_ snapshots.Cleaner     = (*Snapshotter)(nil)
)

// NeedsUserXattr reports whether overlays below root have to be mounted with
// userxattr, and so whether opaque directories are to say user.overlay.opaque.
func NeedsUserXattr(root string) (bool, error) {
	// In a directory of its own, which a process that is killed meanwhile leaves.
	dir := filepath.Join(root, "userxattr-check")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return false, err
	}
	if err := detachMounts(dir); err != nil {
		return false, err
	}
	needs, err := overlayutils.NeedsUserXAttr(dir)
	return needs, errors.Join(err, os.RemoveAll(dir))
}

// New opens, or makes, the snapshotter at root, an absolute path. It detaches
// what an earlier process left mounted below root/snapshots, opens the layers of
// all remote snapshots in fs (which does no network I/O) and starts to remove
// rubbish. A layer that does not open is logged and tried again when it is
// needed. Without fs only plain snapshots can be made and mounted. ctx is for
// the duration of the call.
func New(ctx context.Context, root string, fs FileSystem, opts Options) (*Snapshotter, error) {
	if !filepath.IsAbs(root) {
		return nil, fmt.Errorf("root of the snapshotter, %q, is not absolute: %w", root, cerrdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, err
	}
	meta, err := openMetaStore(root)
	if err != nil {
		return nil, err
	}
	return open(ctx, root, fs, opts, meta)
}

// open is New around a metadata store, which it owns.
func open(ctx context.Context, root string, fileSystem FileSystem, opts Options, meta metaStore) (_ *Snapshotter, err error) {
	s := &Snapshotter{root: root, meta: meta, fs: fileSystem, opts: opts}
	s.dirs.path = filepath.Join(root, "snapshots")
	defer func() {
		if err != nil {
			err = errors.Join(err, s.holds.close(), meta.Close())
		}
	}()
	if err := detachMounts(s.dirs.path); err != nil {
		return nil, err
	}
	if err := os.Mkdir(s.dirs.path, 0o700); err != nil && !os.IsExist(err) {
		return nil, err
	}
	switch ok, err := fs.SupportsDType(root); {
	case err != nil:
		return nil, err
	case !ok:
		return nil, fmt.Errorf("the file system of %s does not support d_type, which overlayfs needs (xfs: format with ftype=1)", root)
	}
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		s.indexed = true
	}
	if err := s.restore(ctx); err != nil {
		return nil, err
	}
	rubbish, err := s.setAside(ctx)
	if err != nil {
		return nil, err
	}
	s.startSweep(ctx, rubbish)
	return s, nil
}

// startSweep removes rubbish in the background, since a large one takes seconds.
// Close waits for it.
func (s *Snapshotter) startSweep(ctx context.Context, rubbish []string) {
	ctx, s.sweep.stop = context.WithCancel(context.WithoutCancel(ctx))
	if len(rubbish) == 0 {
		return
	}
	s.sweep.done.Go(func() {
		if err := removeAll(ctx, rubbish); err != nil && ctx.Err() == nil {
			log.G(ctx).WithError(err).Warn("can't remove directories that no snapshot owns")
		}
	})
}

// Close ends the holds on all layers and keeps everything on disk. Calls under
// way keep the layers that they use until they end. Closing twice is fine.
func (s *Snapshotter) Close() error {
	s.sweep.stop()
	s.sweep.done.Wait()
	return errors.Join(s.holds.close(), s.meta.Close())
}

// Stat returns the metadata of a snapshot of any kind.
func (s *Snapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	_, info, _, err := s.info(ctx, key)
	return info, err
}

// Update changes labels; containerd's database calls it in a transaction. One of a
// remote snapshot that has nothing but BuildKit's temporary labels, as its own cache
// manager makes around each mount, is answered and not written: these labels mean
// nothing to us, and the ids of sessions that are gone would fill the database.
func (s *Snapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	if given, ok := temporaryLabels(info.Labels, fieldpaths); ok {
		_, found, _, err := s.infoIn(ctx, info.Name, true)
		if err != nil {
			return snapshots.Info{}, err
		}
		if isRemote(found.Labels) && !sharesKey(found.Labels, given) {
			maps.Copy(found.Labels, given)
			return found, nil
		}
	}
	var updated snapshots.Info
	err := s.write(ctx, func(ctx context.Context) (err error) {
		updated, err = storage.UpdateInfo(ctx, info, fieldpaths...)
		return err
	})
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("update snapshot %q: %w", info.Name, err)
	}
	return updated, nil
}

// temporaryLabels picks the labels that an Update is about. ok says that it names
// some, and that all are BuildKit's temporary ones.
func temporaryLabels(labels map[string]string, fieldpaths []string) (given map[string]string, ok bool) {
	given = map[string]string{}
	for _, path := range fieldpaths {
		key, found := strings.CutPrefix(path, "labels.")
		if !found || !isTemporary(key) {
			return nil, false
		}
		given[key] = labels[key]
	}
	return given, len(given) > 0
}

// sharesKey reports whether stored has one of the keys of given: what stock
// BuildKit stored is to be changed where it is stored.
func sharesKey(stored, given map[string]string) bool {
	for k := range given {
		if _, ok := stored[k]; ok {
			return true
		}
	}
	return false
}

// Walk calls fn with each snapshot that matches a filter. The list is read at
// once, so fn may call the snapshotter.
func (s *Snapshotter) Walk(ctx context.Context, fn snapshots.WalkFunc, filters ...string) error {
	var infos []snapshots.Info
	err := s.read(ctx, func(ctx context.Context) error {
		return storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			infos = append(infos, info)
			return nil
		}, filters...)
	})
	if err != nil && !cerrdefs.IsNotFound(err) { // not found: there was never a snapshot
		return err
	}
	for _, info := range infos {
		if err := fn(ctx, info); err != nil {
			return err
		}
	}
	return nil
}

// Usage is the disk space of a snapshot without its parents: measured for an
// active one, noted at Commit for a plain committed one. For a remote one it is
// what the file system says that the layer holds, with no inode, and nothing
// where the file system doesn't say.
func (s *Snapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	id, info, usage, err := s.info(ctx, key)
	if err != nil {
		return snapshots.Usage{}, err
	}
	switch {
	case info.Kind == snapshots.KindActive:
		return s.measure(ctx, id)
	case info.Kind == snapshots.KindCommitted && isRemote(info.Labels):
		return s.remoteUsage(info)
	}
	return usage, nil
}

func (s *Snapshotter) measure(ctx context.Context, id string) (snapshots.Usage, error) {
	du, err := fs.DiskUsage(ctx, s.dirs.upper(id))
	if errors.Is(err, os.ErrNotExist) {
		// An older version's state after a power cut: a report must not fail for it, or
		// nothing could be pruned any more.
		return snapshots.Usage{}, nil
	}
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("measure snapshot %s: %w", id, err)
	}
	return snapshots.Usage(du), nil
}

func (s *Snapshotter) remoteUsage(info snapshots.Info) (snapshots.Usage, error) {
	u, ok := s.fs.(usager)
	if !ok {
		return snapshots.Usage{}, nil
	}
	src, ok, err := ParseLabels(info.Labels)
	if err != nil || !ok {
		return snapshots.Usage{}, err
	}
	size, err := u.Usage(src.Digest)
	if err != nil {
		return snapshots.Usage{}, fmt.Errorf("usage of layer %s (snapshot %q): %w", src.Digest, info.Name, err)
	}
	return snapshots.Usage{Size: size}, nil
}

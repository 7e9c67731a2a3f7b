package remotesnapshot

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Prepare makes an active snapshot. With [LabelTarget] and the labels of a layer
// that the file system can serve already, it commits that target as a remote
// snapshot instead and returns errdefs.ErrAlreadyExists, and there is no
// snapshot key; it does the same when the target is there. In every other case,
// a layer that can't be lazy included, the snapshot is a plain one that the
// caller fills.
//
// The mounts returned are good as long as all layers below are resolved; where
// one is not, mounting them fails (see [Snapshotter.Mounts]).
func (s *Snapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := apply(opts)
	if err != nil {
		return nil, err
	}
	if target := base.Labels[LabelTarget]; target != "" && s.fs != nil {
		src, ok, err := ParseLabels(base.Labels)
		if err != nil {
			log.G(ctx).WithError(err).Warnf("snapshot %q will not be lazy", target)
		}
		if ok {
			committed, err := s.prepareRemote(ctx, key, parent, target, base, src)
			if err != nil {
				return nil, err
			}
			if committed {
				return nil, fmt.Errorf("target snapshot %q: %w", target, cerrdefs.ErrAlreadyExists)
			}
		}
	}
	return s.create(ctx, snapshots.KindActive, key, parent, base)
}

// View makes a snapshot that can only be read. Its mounts are as Prepare's.
func (s *Snapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	base, err := apply(opts)
	if err != nil {
		return nil, err
	}
	return s.create(ctx, snapshots.KindView, key, parent, base)
}

// apply collects what opts say of a snapshot.
func apply(opts []snapshots.Opt) (snapshots.Info, error) {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return snapshots.Info{}, err
		}
	}
	return info, nil
}

// withInfo is the Opt that yields info's labels and parent. Labels are copied:
// the storage package keeps the map.
func withInfo(info snapshots.Info) snapshots.Opt {
	return func(i *snapshots.Info) error {
		i.Parent = info.Parent
		return snapshots.WithLabels(info.Labels)(i)
	}
}

// create makes a plain active snapshot or a view: the directory first, then the
// record, and the directory gets its place as the last thing before the commit.
func (s *Snapshotter) create(ctx context.Context, kind snapshots.Kind, key, parent string, base snapshots.Info) ([]mount.Mount, error) {
	var chain []link
	err := s.read(ctx, func(ctx context.Context) (err error) {
		chain, err = chainFrom(ctx, parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: parent: %w", key, err)
	}
	owner, err := s.rootOwner(base.Labels, chain)
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	var sn storage.Snapshot
	err = s.withNewDir(ctx, kind == snapshots.KindActive, owner, func(ctx context.Context) (string, error) {
		var err error
		sn, err = storage.CreateSnapshot(ctx, kind, key, parent, withInfo(base))
		return sn.ID, err
	})
	if err != nil {
		return nil, fmt.Errorf("prepare snapshot %q: %w", key, err)
	}
	lowers := s.readyLowers(ctx, chain, s.xattrsFor(kind))
	return s.mounts(kind, sn.ID, lowers), nil
}

// rootOwner is who owns the root directory of a new snapshot on top of chain:
// the user that its labels map root to, else the owner of its parent's.
func (s *Snapshotter) rootOwner(labels map[string]string, chain []link) (owner, error) {
	o, ok, err := mappedRoot(labels)
	if err != nil || ok || len(chain) == 0 {
		return o, err
	}
	return ownerOf(s.dirs.upper(chain[0].id))
}

// withNewDir makes a directory, runs f in a write transaction, gives the
// directory to the id that f returns and commits. After an error nothing of it
// is left, in the metadata or on disk.
func (s *Snapshotter) withNewDir(ctx context.Context, withWork bool, owner owner, f func(ctx context.Context) (id string, err error)) error {
	dir, err := s.dirs.create(withWork, owner)
	if err != nil {
		return err
	}
	published := false
	err = s.write(ctx, func(ctx context.Context) error {
		id, err := f(ctx)
		if err != nil {
			return err
		}
		if err := dir.publish(id); err != nil {
			return err
		}
		published = true
		if withWork {
			// The database is synced by the commit, which says nothing of this name. Start
			// makes the empty directories of remote snapshots anew.
			return s.dirs.sync()
		}
		return nil
	})
	if rerr := dir.release(); rerr != nil {
		log.G(ctx).WithError(rerr).Warn("can't remove the directory of a snapshot that was not made")
	}
	if err != nil && published {
		// The commit failed: the directory lies at an id that is free again.
		if cerr := s.Cleanup(context.WithoutCancel(ctx)); cerr != nil {
			log.G(ctx).WithError(cerr).Warn("can't remove the directory of a snapshot that was not made")
		}
	}
	return err
}

// prepareRemote commits target as a remote snapshot on parent. false without an
// error says that the layer can't be served now, so that a plain snapshot has
// to do; an error leaves nothing behind. key's record exists only within the
// transaction.
func (s *Snapshotter) prepareRemote(ctx context.Context, key, parent, target string, base snapshots.Info, src Source) (committed bool, err error) {
	logger := log.G(ctx).WithField("layer", src.Digest).WithField("image", src.Reference)
	if _, info, _, err := s.info(ctx, target); err == nil && info.Kind == snapshots.KindCommitted {
		return true, nil
	}
	layer, err := s.fs.Open(src, false)
	if err != nil {
		logger.WithError(err).Infof("snapshot %q will not be lazy", target)
		return false, nil
	}
	ours := true // until the snapshot that it belongs to is committed
	defer func() {
		if ours {
			if cerr := layer.Close(); cerr != nil {
				logger.WithError(cerr).Warn("closing a layer that was not used")
			}
		}
	}()
	owner, err := layerOwner(layer)
	if err != nil {
		logger.WithError(err).Warnf("snapshot %q will not be lazy", target)
		return false, nil
	}
	base.Labels = committedLabels(base.Labels, src)
	var id string
	err = s.withNewDir(ctx, false, owner, func(ctx context.Context) (_ string, err error) {
		if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, withInfo(base)); err != nil {
			return "", err
		}
		id, err = storage.CommitActive(ctx, key, target, snapshots.Usage{}, withInfo(base))
		return id, err
	})
	if err != nil {
		// Losing a race for the target is errdefs.ErrAlreadyExists here too.
		return false, fmt.Errorf("prepare remote snapshot %q: %w", target, err)
	}
	ours = false
	if err := s.adopt(context.WithoutCancel(ctx), link{id: id, name: target}, layer); err != nil {
		logger.WithError(err).Warnf("the layer of snapshot %q will be opened again", target)
	}
	logger.Debugf("snapshot %q is remote", target)
	return true, nil
}

// layerOwner is the owner of a layer's root directory, for the snapshots above.
func layerOwner(layer Layer) (owner, error) {
	dir, err := layer.Dir(0, FastXattrs)
	if err != nil {
		return owner{}, err
	}
	return ownerOf(dir)
}

package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// detachMounts detaches every mount at or below dir, as stargz-snapshotter
// leaves them there. Nothing below dir is looked at before: a path in a FUSE
// mount whose server has died answers ENOTCONN to everything. dir need not exist.
func detachMounts(dir string) error {
	// The kernel lists mounts by their real paths.
	real, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return err
	}
	real = filepath.Join(real, filepath.Base(dir))
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != real && !strings.HasPrefix(m.Mountpoint, real+"/"), false
	})
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	// Later ones lie on top of earlier ones.
	for i := len(mounts) - 1; i >= 0; i-- {
		err := unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) { // gone meanwhile
			return fmt.Errorf("detach stale mount %s: %w", mounts[i].Mountpoint, err)
		}
	}
	return nil
}

// restoreParallelism bounds the layers that are opened at once at start: each
// maps a file and checks its sum.
const restoreParallelism = 8

// restore makes every committed remote snapshot ready: its empty directory,
// which stargz-snapshotter deletes when it closes, and its layer, as far as that
// is possible without the network. What does not open is tried again by Mounts.
func (s *Snapshotter) restore(ctx context.Context) error {
	remote, err := s.remoteSnapshots(ctx)
	if err != nil {
		return fmt.Errorf("list remote snapshots: %w", err)
	}
	var eg errgroup.Group
	eg.SetLimit(restoreParallelism)
	for _, l := range remote {
		eg.Go(func() error {
			if err := os.MkdirAll(s.dirs.upper(l.id), 0o755); err != nil {
				return err
			}
			h, err := s.layerOf(ctx, l)
			if err == nil {
				err = s.holds.giveBack(h)
			}
			if err != nil {
				log.G(ctx).WithError(err).Warnf("remote snapshot %q is not ready", l.name)
			}
			return nil
		})
	}
	return eg.Wait()
}

// remoteSnapshots lists the committed remote snapshots.
func (s *Snapshotter) remoteSnapshots(ctx context.Context) ([]link, error) {
	var remote []link
	err := s.read(ctx, func(ctx context.Context) error {
		ids, err := idMap(ctx)
		if err != nil {
			return err
		}
		for id, name := range ids {
			_, info, _, err := storage.GetInfo(ctx, name)
			if err != nil {
				return fmt.Errorf("snapshot %q: %w", name, err)
			}
			if info.Kind == snapshots.KindCommitted && isRemote(info.Labels) {
				remote = append(remote, link{id: id, name: name, labels: info.Labels})
			}
		}
		return nil
	})
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	return remote, err
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/overlay"
	"github.com/moby/buildkit/util/rootless/mountopts"
	"github.com/moby/sys/mountinfo"
	"github.com/moby/sys/userns"
)

// mountPool makes mounts that several callers share. An upper directory can't be
// in two overlay mounts at once, so the overlay is mounted once, and each caller
// gets a bind mount of it.
type mountPool struct{ root string }

// newMountPool opens a directory for mount points, which may be "" for the system's
// temporary one. What an earlier process left in it is unmounted.
func newMountPool(ctx context.Context, root string) (mountPool, error) {
	if root == "" {
		return mountPool{}, nil
	}
	if err := os.MkdirAll(root, 0o700); err != nil {
		return mountPool{}, fmt.Errorf("directory of shared mounts: %w", err)
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return mountPool{}, fmt.Errorf("directory of shared mounts: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if err := clearMountPoint(filepath.Join(root, e.Name())); err != nil {
			bklog.G(ctx).WithError(err).Warn("cache: a mount of an earlier process stays")
		}
	}
	return mountPool{root}, nil
}

func clearMountPoint(dir string) error {
	if err := mount.Unmount(dir, 0); err != nil {
		if mounted, merr := mountinfo.Mounted(dir); merr != nil || mounted {
			return errors.Join(err, merr)
		}
	}
	return os.Remove(dir)
}

// share makes the mounts of mnt sharable. Those that are no overlay are so already.
func (p mountPool) share(mnt snapshot.Mountable) snapshot.Mountable {
	return &sharedMountable{Mountable: mnt, root: p.root}
}

// sharedMountable is mounted while somebody uses it.
type sharedMountable struct {
	snapshot.Mountable
	root string

	// mu is held while the overlay is mounted and unmounted, for which all wait.
	mu      sync.Mutex
	users   int
	point   string
	release func() error
}

// Mount implements snapshot.Mountable.
func (s *sharedMountable) Mount() ([]mount.Mount, func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users == 0 {
		mounts, release, err := s.Mountable.Mount()
		if err != nil {
			return nil, nil, err
		}
		if !slices.ContainsFunc(mounts, overlay.IsOverlayMountType) {
			return mounts, release, nil
		}
		point, err := s.mount(mounts)
		if err != nil {
			return nil, nil, errors.Join(err, call(release))
		}
		s.point, s.release = point, release
	}
	s.users++
	bind := []mount.Mount{{Type: "bind", Source: s.point, Options: []string{"rw", "rbind"}}}
	return bind, sync.OnceValue(s.leave), nil
}

// mount makes a mount point and mounts there.
func (s *sharedMountable) mount(mounts []mount.Mount) (point string, err error) {
	if userns.RunningInUserNS() {
		if mounts, err = mountopts.FixUp(mounts); err != nil {
			return "", fmt.Errorf("shared mount: %w", err)
		}
	}
	if point, err = os.MkdirTemp(s.root, "buildkit"); err != nil {
		return "", fmt.Errorf("shared mount: %w", err)
	}
	if err := mount.All(mounts, point); err != nil {
		return "", errors.Join(fmt.Errorf("shared mount: %w", err), os.Remove(point))
	}
	return point, nil
}

// leave ends one use; the last one unmounts.
func (s *sharedMountable) leave() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users--; s.users > 0 {
		return nil
	}
	if err := mount.Unmount(s.point, 0); err != nil {
		return fmt.Errorf("shared mount %s: %w", s.point, err)
	}
	return errors.Join(call(s.release), os.Remove(s.point))
}

func call(f func() error) error {
	if f == nil {
		return nil
	}
	return f()
}

package remotesnapshot

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
)

// Mounts returns how to mount an active snapshot or a view. It resolves, over
// the network if need be and all at once, the layers below that are pending; the
// error for one that can't be resolved names it. The mounts are good until a
// snapshot below is removed or the snapshotter closed.
func (s *Snapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	var (
		sn    storage.Snapshot
		chain []link
	)
	err := s.reading(ctx, key, false, func(ctx context.Context) (err error) {
		if sn, err = storage.GetSnapshot(ctx, key); err != nil {
			return err
		}
		_, info, _, err := storage.GetInfo(ctx, key)
		if err != nil {
			return err
		}
		chain, err = chainFrom(ctx, info.Parent)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	lowers, err := s.resolveLowers(ctx, chain, s.xattrsFor(sn.Kind))
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %q: %w", key, err)
	}
	return s.mounts(sn.Kind, sn.ID, lowers), nil
}

// mounts describes snapshot id over lowers, which are nearest first: a bind
// mount where there is only one directory to show, else an overlay.
func (s *Snapshotter) mounts(kind snapshots.Kind, id string, lowers []string) []mount.Mount {
	switch {
	case kind == snapshots.KindView && len(lowers) == 1:
		return bind(lowers[0], "ro")
	case kind == snapshots.KindView && len(lowers) == 0:
		return bind(s.dirs.upper(id), "ro")
	case len(lowers) == 0:
		return bind(s.dirs.upper(id), "rw")
	}
	var options []string
	if kind == snapshots.KindActive {
		options = append(options, "workdir="+s.dirs.work(id), "upperdir="+s.dirs.upper(id))
	}
	options = append(options, "lowerdir="+strings.Join(lowers, ":"))
	if s.opts.UserXattr {
		options = append(options, "userxattr")
	}
	if s.indexed {
		options = append(options, "index=off")
	}
	return []mount.Mount{{Type: "overlay", Source: "overlay", Options: options}}
}

func bind(dir, mode string) []mount.Mount {
	return []mount.Mount{{Type: "bind", Source: dir, Options: []string{mode, "rbind"}}}
}

// unresolvedName is the last part of the path that stands for the directory of
// a pending layer. Nothing of that name is ever made.
const unresolvedName = "unresolved"

func (d *dirs) unresolved(id string) string { return filepath.Join(d.path, id, unresolvedName) }

// resolvingViews is a snapshotter whose views are resolved.
type resolvingViews struct{ snapshots.Snapshotter }

// ResolveViews returns s with a View that ends with a call of Mounts where a
// layer below was pending, as it is after the start on a state directory of
// stock BuildKit. s is what a client sees, containerd's metadata database in
// between, whose lock View holds and Mounts does not: a client that mounts what
// View returns, as BuildKit does, gets directories that can be read.
func ResolveViews(s snapshots.Snapshotter) snapshots.Snapshotter { return resolvingViews{s} }

func (r resolvingViews) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	mounts, err := r.Snapshotter.View(ctx, key, parent, opts...)
	if err != nil || !hasUnresolved(mounts) {
		return mounts, err
	}
	mounts, err = r.Snapshotter.Mounts(ctx, key)
	if err != nil {
		// A view that was not handed out is nobody's to remove.
		if rerr := r.Snapshotter.Remove(context.WithoutCancel(ctx), key); rerr != nil {
			err = fmt.Errorf("%w (and the view stays: %w)", err, rerr)
		}
		return nil, err
	}
	return mounts, nil
}

// hasUnresolved reports whether mounts need a layer that is still pending.
func hasUnresolved(mounts []mount.Mount) bool {
	for _, m := range mounts {
		if isUnresolved(m.Source) {
			return true
		}
		for _, o := range m.Options {
			lowers, ok := strings.CutPrefix(o, "lowerdir=")
			for dir := range strings.SplitSeq(lowers, ":") {
				if ok && isUnresolved(dir) {
					return true
				}
			}
		}
	}
	return false
}

func isUnresolved(dir string) bool { return filepath.Base(dir) == unresolvedName }

package remotesnapshot

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	"golang.org/x/sync/errgroup"
)

// layerOf borrows the layer of a remote snapshot; the caller gives the hold
// back. A layer that is not open, because it did not open at start or because
// its snapshot was committed this very moment, is opened now, pending if need be.
func (s *Snapshotter) layerOf(ctx context.Context, l link) (*hold, error) {
	if h, ok := s.holds.borrow(l.id); ok {
		return h, nil
	}
	layer, err := s.openLayer(l)
	if err != nil {
		return nil, err
	}
	if err := s.adopt(ctx, l, layer); err != nil {
		return nil, err
	}
	if h, ok := s.holds.borrow(l.id); ok {
		return h, nil
	}
	return nil, fmt.Errorf("snapshot %q was removed: %w", l.name, cerrdefs.ErrNotFound)
}

// openLayer opens the layer that a committed remote snapshot's labels describe.
func (s *Snapshotter) openLayer(l link) (Layer, error) {
	if s.fs == nil {
		return nil, fmt.Errorf("snapshot %q is remote, and there is no file system for remote layers here: %w", l.name, cerrdefs.ErrUnavailable)
	}
	src, ok, err := ParseLabels(l.labels)
	if err != nil {
		return nil, fmt.Errorf("snapshot %q: %w", l.name, err)
	}
	if !ok {
		return nil, fmt.Errorf("snapshot %q is remote, but its labels describe no layer: %w", l.name, cerrdefs.ErrFailedPrecondition)
	}
	layer, err := s.fs.Open(src, true)
	if err != nil {
		return nil, fmt.Errorf("layer %s (snapshot %q): %w", src.Digest, l.name, err)
	}
	return layer, nil
}

// adopt makes layer the one that snapshot l holds, or closes it when the
// snapshot has one, or is gone.
func (s *Snapshotter) adopt(ctx context.Context, l link, layer Layer) error {
	taken, err := s.holds.put(l.id, layer)
	if !taken {
		return errors.Join(err, layer.Close())
	}
	// The snapshot may have been removed since the caller saw it: Remove either
	// found the entry, or had removed the record before it was made, which shows
	// now.
	exists := false
	err = s.read(ctx, func(ctx context.Context) error {
		id, _, _, err := storage.GetInfo(ctx, l.name)
		exists = err == nil && id == l.id
		if cerrdefs.IsNotFound(err) {
			return nil
		}
		return err
	})
	if err != nil || !exists {
		return errors.Join(err, s.holds.drop(l.id))
	}
	return nil
}

// resolveLowers returns the lower directories of chain, nearest first, after all
// its layers are resolved.
func (s *Snapshotter) resolveLowers(ctx context.Context, chain []link, x Xattrs) (_ []string, err error) {
	borrowed := make([]*hold, len(chain))
	defer func() {
		err = errors.Join(err, s.giveBack(borrowed))
	}()
	eg, egctx := errgroup.WithContext(ctx)
	for i, l := range chain {
		if !l.remote() {
			continue
		}
		h, err := s.layerOf(ctx, l)
		if err != nil {
			return nil, errors.Join(err, eg.Wait())
		}
		borrowed[i] = h
		eg.Go(func() error {
			if err := h.layer.Resolve(egctx); err != nil {
				return fmt.Errorf("layer %s (snapshot %q) can't be read: %w", layerName(l), l.name, err)
			}
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	return s.lowers(chain, func(i, n int) (string, error) { return borrowed[i].layer.Dir(n, x) })
}

// readyLowers is resolveLowers for calls that must not wait. In place of a
// directory that isn't there yet it gives a path that never exists, so that the
// mount fails instead of showing something else.
func (s *Snapshotter) readyLowers(ctx context.Context, chain []link, x Xattrs) []string {
	lowers, _ := s.lowers(chain, func(i, n int) (string, error) {
		dir, err := s.readyDir(ctx, chain[i], n, x)
		if err != nil {
			log.G(ctx).WithError(err).Debugf("snapshot %q is not resolved yet", chain[i].name)
			dir = s.dirs.unresolved(chain[i].id)
		}
		return dir, nil
	})
	return lowers
}

func (s *Snapshotter) readyDir(ctx context.Context, l link, n int, x Xattrs) (_ string, err error) {
	h, err := s.layerOf(ctx, l)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, s.holds.giveBack(h)) }()
	return h.layer.Dir(n, x)
}

// lowers lists the directories of chain, nearest first. dir gives that of the
// remote snapshot chain[i]; n counts how often its layer occurs further down,
// so that a chain's directories do not depend on what is put on top of it.
func (s *Snapshotter) lowers(chain []link, dir func(i, n int) (string, error)) ([]string, error) {
	paths := make([]string, len(chain))
	seen := map[string]int{}
	for i := len(chain) - 1; i >= 0; i-- {
		l := chain[i]
		if !l.remote() {
			paths[i] = s.dirs.upper(l.id)
			continue
		}
		name := layerName(l)
		path, err := dir(i, seen[name])
		if err != nil {
			return nil, fmt.Errorf("directory of layer %s (snapshot %q): %w", name, l.name, err)
		}
		paths[i] = path
		seen[name]++
	}
	return paths, nil
}

// layerName is the digest that a link's labels give, for telling layers apart
// and for errors.
func layerName(l link) string {
	if src, ok, err := ParseLabels(l.labels); err == nil && ok {
		return src.Digest.String()
	}
	return "of snapshot " + l.id
}

// giveBack ends borrows; nil entries are skipped.
func (s *Snapshotter) giveBack(borrowed []*hold) error {
	var errs []error
	for _, h := range borrowed {
		if h != nil {
			errs = append(errs, s.holds.giveBack(h))
		}
	}
	return errors.Join(errs...)
}

package remotesnapshot

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
)

// Commit makes the active snapshot key the committed snapshot name, and notes
// its disk usage. The directory is measured before the transaction: nothing is
// to write to it during Commit. containerd's database calls it in a transaction.
func (s *Snapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	id, info, _, err := s.infoIn(ctx, key, true)
	if err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	if info.Kind != snapshots.KindActive {
		return fmt.Errorf("commit snapshot %q: it is not active: %w", key, cerrdefs.ErrFailedPrecondition)
	}
	usage, err := s.measure(ctx, id)
	if err != nil {
		return fmt.Errorf("commit snapshot %q: %w", key, err)
	}
	err = s.write(ctx, func(ctx context.Context) error {
		committed, err := storage.CommitActive(ctx, key, name, usage, append(opts, withFormer(key))...)
		if err == nil && committed != id {
			err = fmt.Errorf("it was replaced meanwhile: %w", cerrdefs.ErrFailedPrecondition)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("commit snapshot %q as %q: %w", key, name, err)
	}
	return nil
}

// withFormer adds labelFormer.
func withFormer(key string) snapshots.Opt {
	return func(info *snapshots.Info) error {
		labels := maps.Clone(info.Labels)
		if labels == nil {
			labels = map[string]string{}
		}
		labels[labelFormer] = key
		info.Labels = labels
		return nil
	}
}

// Remove removes a snapshot that no other is based on. Once its record is gone
// the call succeeds: a remote snapshot's layer is let go, a directory is deleted
// now or, with AsyncRemove, by Cleanup.
func (s *Snapshotter) Remove(ctx context.Context, key string) error {
	id, info, _, err := s.info(ctx, key)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if owed, err := s.isOwed(info); err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	} else if owed {
		return fmt.Errorf("remove snapshot %q: containerd's database could not note that %q was committed as it: %w", key, info.Labels[labelFormer], cerrdefs.ErrFailedPrecondition)
	}
	err = s.write(ctx, func(ctx context.Context) (err error) {
		id, _, err = storage.Remove(ctx, key)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove snapshot %q: %w", key, err)
	}
	if err := s.holds.drop(id); err != nil {
		log.G(ctx).WithError(err).Warnf("closing the layer of snapshot %q, which is removed", key)
	}
	if s.opts.AsyncRemove {
		return nil
	}
	// An id that was committed is never given out again.
	if err := os.RemoveAll(filepath.Join(s.dirs.path, id)); err != nil {
		log.G(ctx).WithError(err).Warnf("deleting the directory of snapshot %q, which is removed", key)
	}
	return nil
}

// Cleanup deletes the directories that no snapshot owns any more. What can't be
// deleted is logged and left for the next time.
func (s *Snapshotter) Cleanup(ctx context.Context) error {
	rubbish, err := s.setAside(ctx)
	if err != nil {
		return fmt.Errorf("clean up snapshots: %w", err)
	}
	if err := removeAll(ctx, rubbish); err != nil {
		if ctx.Err() != nil {
			return err
		}
		log.G(ctx).WithError(err).Warn("deleting directories that no snapshot owns")
	}
	return nil
}

// setAside moves rubbish out of the way of ids, in the write transaction, so
// that it can be deleted without one.
func (s *Snapshotter) setAside(ctx context.Context) (rubbish []string, err error) {
	ctx, tx, err := s.meta.TransactionContext(ctx, true)
	if err != nil {
		return nil, err
	}
	// There is nothing to commit, and a commit would cost a sync of the disk.
	defer func() {
		if rerr := tx.Rollback(); err == nil {
			err = rerr
		}
	}()
	ids, err := idMap(ctx)
	if err != nil {
		return nil, err
	}
	return s.dirs.setAside(ids)
}

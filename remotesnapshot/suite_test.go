package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/testsuite"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// suiteName makes the suite expect what any overlayfs does: a directory of a lower
// layer can't be renamed with redirect_dir off.
const suiteName = "overlayfs"

func TestSuitePlain(t *testing.T) {
	needRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		s, err := New(ctx, root, nil, Options{AsyncRemove: true})
		if err != nil {
			return nil, nil, err
		}
		return s, s.Close, nil
	})
}

// TestSuiteRemote runs the suite with every committed layer served by a file
// system: see remoteCommits.
func TestSuiteRemote(t *testing.T) {
	needRoot(t)
	testsuite.SnapshotterSuite(t, suiteName, func(ctx context.Context, root string) (snapshots.Snapshotter, func() error, error) {
		fs := newFakeFS(t, filepath.Join(root, "p"))
		s, err := New(ctx, root, fs, Options{})
		if err != nil {
			return nil, nil, err
		}
		closeAll := func() error {
			err := s.Close()
			if n := fs.holds(); n != 0 {
				err = errors.Join(err, fmt.Errorf("%d layers are held after Close", n))
			}
			return err
		}
		return &remoteCommits{Snapshotter: s, fs: fs}, closeAll, nil
	})
}

// remoteCommits turns each commit into that of a remote snapshot: what lies in
// the upper directory becomes a layer of the fake file system, in the same form
// (whiteouts and opaque directories as overlayfs has written them).
type remoteCommits struct {
	*Snapshotter
	fs *fakeFS
}

func (r *remoteCommits) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	id, info, _, err := r.info(ctx, key)
	_, _, _, nameErr := r.info(ctx, name)
	if err != nil || info.Kind != snapshots.KindActive || nameErr == nil {
		return r.Snapshotter.Commit(ctx, name, key, opts...) // for its errors
	}
	dgst := digest.FromString(name)
	dir := filepath.Join(r.fs.root, id)
	if err := os.Rename(r.dirs.upper(id), dir); err != nil {
		return err
	}
	r.fs.add(dgst, dir, true)
	if err := r.Remove(ctx, key); err != nil {
		return err
	}
	opts = append(opts, snapshots.WithLabels(remoteLabels(name, dgst)))
	_, err = r.Prepare(ctx, "remote "+key, info.Parent, opts...)
	if !cerrdefs.IsAlreadyExists(err) {
		return fmt.Errorf("not committed as remote: %w", err)
	}
	got, err := r.Stat(ctx, name)
	if err == nil && !isRemote(got.Labels) {
		err = errors.New("committed, but not as remote")
	}
	return err
}

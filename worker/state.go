package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	cerrdefs "github.com/containerd/errdefs"
	bkmetadata "github.com/moby/buildkit/cache/metadata"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// Names in the worker's directory; see the package comment.
const (
	metadataFile   = "metadata_v2.db"
	containerdFile = "containerdmeta.db"
	contentDir     = "content"
	snapshotsDir   = "snapshots"
	executorDir    = "executor"
	cacheMountsDir = "cachemounts"
	lazyDir        = "lazy"
	inUseFile      = "inuse"
)

// namespace is the containerd namespace of all that BuildKit keeps.
const namespace = "buildkit"

// lockTimeout bounds the wait for a database that another process has open. The
// daemon's lock file keeps a second daemon out, so this is a tool, or a mistake.
const lockTimeout = 10 * time.Second

// databases are the worker's two, and what lies behind them.
type databases struct {
	records    *bkmetadata.Store // the cache manager's
	containerd *ctdmetadata.DB
	bolt       *bolt.DB // of containerd
}

// openDatabases opens the databases in dir over the snapshotter and the blobs.
func openDatabases(ctx context.Context, dir, name string, sn snapshots.Snapshotter) (_ *databases, rerr error) {
	blobs, err := local.NewStore(filepath.Join(dir, contentDir))
	if err != nil {
		return nil, fmt.Errorf("open content store: %w", err)
	}
	file := filepath.Join(dir, containerdFile)
	b, err := bolt.Open(file, 0o644, &bolt.Options{FreelistType: bolt.FreelistMapType, Timeout: lockTimeout})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", file, err)
	}
	defer func() {
		if rerr != nil {
			b.Close()
		}
	}()
	if s, ok := sn.(*remotesnapshot.Snapshotter); ok {
		s.KeptBy(b, name)
	}
	mdb := ctdmetadata.NewDB(b, blobs, map[string]snapshots.Snapshotter{name: sn})
	if err := mdb.Init(ctx); err != nil {
		return nil, fmt.Errorf("initialise %s: %w", file, err)
	}
	records, err := bkmetadata.NewStore(filepath.Join(dir, metadataFile))
	if err != nil {
		return nil, fmt.Errorf("open the cache's records: %w", err)
	}
	return &databases{records: records, containerd: mdb, bolt: b}, nil
}

// begin notes that the directory is in use, and says whether the process that used it
// before came to end.
func begin(dir string) (clean bool, err error) {
	f, err := os.OpenFile(filepath.Join(dir, inUseFile), os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("worker directory: %w", err)
	}
	return true, f.Close()
}

// end notes that nothing is left undone in the directory.
func end(dir string) error {
	if err := os.Remove(filepath.Join(dir, inUseFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("worker directory: %w", err)
	}
	return nil
}

// probeName is of what tidy makes for a moment.
const probeName = "lazykit-tidy"

// tidy removes blobs and snapshots that lie in the stores and that the database does
// not know: what a process before had made and not noted when it was killed. The
// database's own collector looks for such things only in stores from which it has
// removed something since it was opened.
func (d *databases) tidy(ctx context.Context, snapshotter string) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	body := []byte(probeName)
	desc := ocispecs.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	blobs := d.containerd.ContentStore()
	if err := content.WriteBlob(ctx, blobs, probeName, bytes.NewReader(body), desc); err != nil {
		return err
	}
	if err := blobs.Delete(ctx, desc.Digest); err != nil && !cerrdefs.IsNotFound(err) {
		return err
	}
	sn := d.containerd.Snapshotter(snapshotter)
	if _, err := sn.Prepare(ctx, probeName, ""); err != nil && !cerrdefs.IsAlreadyExists(err) {
		return err
	}
	if err := sn.Remove(ctx, probeName); err != nil && !cerrdefs.IsNotFound(err) {
		return err
	}
	_, err := d.containerd.GarbageCollect(ctx)
	return err
}

// removeHalves removes what nobody writes to any more from the local content store's
// directory. Nothing may be written there yet.
func removeHalves(dir string) error {
	return errors.Join(removeHalfIngests(filepath.Join(dir, "ingest")), removeChecks(dir))
}

// removeHalfIngests removes what a power cut, or a disk that could not be written,
// leaves of writes: the local content store overlooks one without its data, and knows
// one only by the reference in it, whose digest is the directory's name and whose bytes
// may be lost.
func removeHalfIngests(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		_, err := os.Lstat(filepath.Join(path, "data"))
		ref, refErr := os.ReadFile(filepath.Join(path, "ref"))
		lost := errors.Is(refErr, os.ErrNotExist) || refErr == nil && digest.FromBytes(ref).Encoded() != e.Name()
		if !errors.Is(err, os.ErrNotExist) && !lost {
			continue
		}
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// removeChecks removes what the local content store, killed while it was opened, left of
// its look for fs-verity.
func removeChecks(dir string) error {
	left, err := filepath.Glob(filepath.Join(dir, ".fsverity-check-*"))
	for _, path := range left {
		err = errors.Join(err, os.RemoveAll(path))
	}
	return err
}

// Close closes the records too; a worker that closes them itself calls
// closeContainerd.
func (d *databases) Close() error { return errors.Join(d.records.Close(), d.closeContainerd()) }

// closeContainerd waits for the transactions under way, as bbolt does.
func (d *databases) closeContainerd() error { return d.bolt.Close() }

package worker

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bkmetadata "github.com/moby/buildkit/cache/metadata"
	bolt "go.etcd.io/bbolt"
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

// Close closes the records too; a worker that closes them itself calls
// closeContainerd.
func (d *databases) Close() error { return errors.Join(d.records.Close(), d.closeContainerd()) }

// closeContainerd waits for the transactions under way, as bbolt does.
func (d *databases) closeContainerd() error { return d.bolt.Close() }

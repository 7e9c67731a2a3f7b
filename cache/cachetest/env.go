package cachetest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/leases"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/continuity/fs"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// namespace is the containerd namespace of what BuildKit keeps.
const namespace = "buildkit"

// Names in a state directory, as a worker has them.
const (
	recordsFile    = "metadata_v2.db"
	containerdFile = "containerdmeta.db"
	contentDir     = "content"
	snapshotsDir   = "snapshots"
	mountsDir      = "cachemounts"
)

// patience bounds the wait for what a manager does in the background.
const patience = 5 * time.Second

// env is a state directory with a manager on it.
type env struct {
	t       *testing.T
	ctx     context.Context
	impl    Implementation
	storage Storage
	dir     string
	faults  *faults
	shared  bkcache.ExternalRefCheckerFunc // may be nil

	cache    bkcache.Manager
	records  *metadata.Store
	content  content.Store
	leases   leases.Manager
	snapshot snapshots.Snapshotter // as clients of the database see it
	database *ctdmetadata.DB
	bolt     *bolt.DB
	below    snapshots.Snapshotter // what the database calls

	held  []bkcache.Ref
	leaks bool // the manager is known to leak in this test
}

// newEnv opens an empty state directory.
func newEnv(t *testing.T, impl Implementation, st Storage) *env {
	e := &env{t: t, ctx: t.Context(), impl: impl, storage: st, dir: t.TempDir(), faults: &faults{}}
	e.open()
	t.Cleanup(func() { e.close() })
	return e
}

// open opens the state directory as a worker does at its start.
func (e *env) open() {
	e.t.Helper()
	var err error
	e.below, err = e.storage.Open(e.ctx, filepath.Join(e.dir, snapshotsDir))
	require.NoError(e.t, err)
	blobs, err := local.NewStore(filepath.Join(e.dir, contentDir))
	require.NoError(e.t, err)
	e.bolt, err = bolt.Open(filepath.Join(e.dir, containerdFile), 0o600, &bolt.Options{NoSync: true, Timeout: patience})
	require.NoError(e.t, err)
	e.database = ctdmetadata.NewDB(e.bolt, blobs, map[string]snapshots.Snapshotter{e.storage.Name: e.below})
	require.NoError(e.t, e.database.Init(e.ctx))
	e.records = openRecords(e.t, e.dir)
	e.snapshot = containerdsnapshot.NSSnapshotter(namespace, e.database.Snapshotter(e.storage.Name))
	e.content = containerdsnapshot.NewContentStore(e.database.ContentStore(), namespace)
	e.leases = leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(e.database), namespace)
	e.endTemporaryLeases()
	e.cache, err = e.impl.New(e.ctx, e.options())
	require.NoError(e.t, err)
}

// openRecords opens the metadata store of a state directory.
func openRecords(t *testing.T, dir string) *metadata.Store {
	t.Helper()
	s, err := metadata.NewStore(filepath.Join(dir, recordsFile))
	require.NoError(t, err)
	s.DB().(*bolt.DB).NoSync = true // a test needs no durability
	return s
}

// options are those of a manager, with faults in front of what it calls.
func (e *env) options() bkcache.ManagerOpt {
	cs := &faultyContent{e.content, e.faults}
	sn := &faultySnapshotter{e.snapshot, e.faults}
	return bkcache.ManagerOpt{
		Snapshotter:     snapshot.FromContainerdSnapshotter(e.storage.Name, sn, nil),
		ContentStore:    cs,
		LeaseManager:    &faultyLeases{e.leases, e.faults},
		PruneRefChecker: e.shared,
		GarbageCollect:  e.database.GarbageCollect,
		Applier:         winlayers.NewFileSystemApplierWithWindows(cs, apply.NewFileSystemApplier(cs)),
		Differ:          winlayers.NewWalkingDiffWithWindows(cs, walking.NewWalkingDiff(cs)),
		MetadataStore:   e.records,
		Root:            e.dir,
		MountPoolRoot:   filepath.Join(e.dir, mountsDir),
	}
}

// endTemporaryLeases ends those of an earlier process.
func (e *env) endTemporaryLeases() {
	e.t.Helper()
	list, err := e.leases.List(e.ctx, `labels."buildkit/lease.temporary"`)
	require.NoError(e.t, err)
	for _, l := range list {
		if err := e.leases.Delete(e.ctx, l); !cerrdefs.IsNotFound(err) {
			require.NoError(e.t, err)
		}
	}
}

// close ends the process, so to speak: refs that are held are lost.
func (e *env) close() {
	if e.cache == nil {
		return
	}
	e.settle()
	require.NoError(e.t, e.cache.Close())
	require.NoError(e.t, e.bolt.Close())
	require.NoError(e.t, e.below.Close())
	e.cache, e.held = nil, nil
}

// renew goes on with an empty state directory.
func (e *env) renew() {
	e.t.Helper()
	e.close()
	e.dir = e.t.TempDir()
	e.open()
}

// restart closes and opens the state directory.
func (e *env) restart() {
	e.t.Helper()
	e.close()
	e.open()
}

// crash goes on with a copy of the state directory as it is now.
func (e *env) crash() { e.t.Helper(); e.tamper(func(*metadata.Store) {}) }

// tamper is crash, with a change of the records before the next start.
func (e *env) tamper(change func(*metadata.Store)) {
	e.t.Helper()
	dir := e.copyState()
	e.close()
	e.dir = dir
	s := openRecords(e.t, dir)
	change(s)
	require.NoError(e.t, s.Close())
	e.open()
}

// copyState copies the state directory while it is in use.
func (e *env) copyState() string {
	e.t.Helper()
	e.settle()
	return e.copyFiles()
}

func (e *env) copyFiles() string {
	e.t.Helper()
	dir := e.t.TempDir()
	require.NoError(e.t, fs.CopyDir(dir, e.dir))
	return dir
}

// settle waits until the manager does nothing in the background: BuildKit's removes
// and releases records there.
func (e *env) settle() {
	last := ""
	for range 100 {
		now := e.picture()
		if now == last {
			return
		}
		last = now
		time.Sleep(2 * time.Millisecond)
	}
}

// eventually waits for what a manager may do in the background.
func (e *env) eventually(what string, ok func() bool) {
	e.t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			require.Fail(e.t, what)
		}
	}
}

// keep has a ref released at the end of the test.
func keep[R bkcache.Ref](e *env, r R) R {
	e.held = append(e.held, r)
	return r
}

// forget leaves a ref to somebody else.
func (e *env) forget(r bkcache.Ref) {
	e.held = slices.DeleteFunc(e.held, func(h bkcache.Ref) bool { return h == r })
}

// release gives up refs now.
func (e *env) release(refs ...bkcache.Ref) {
	e.t.Helper()
	for _, r := range refs {
		e.forget(r)
		require.NoError(e.t, r.Release(e.ctx))
	}
}

// releaseAll gives up all refs.
func (e *env) releaseAll() {
	e.t.Helper()
	e.release(slices.Clone(e.held)...)
}

// namespaced is ctx for what lies below the namespace.
func (e *env) namespaced() context.Context { return namespaces.WithNamespace(e.ctx, namespace) }

// removeSnapshot removes a snapshot behind the manager's back.
func (e *env) removeSnapshot(id string) {
	e.t.Helper()
	require.NoError(e.t, e.database.Snapshotter(e.storage.Name).Remove(e.namespaced(), id))
}

// hasSnapshot says whether a snapshot is there.
func (e *env) hasSnapshot(id string) bool {
	_, err := e.snapshot.Stat(e.ctx, id)
	return err == nil
}

// mountPoints lists what is mounted below the state directory's shared mounts.
func (e *env) mountPoints() []string {
	e.t.Helper()
	list, err := os.ReadDir(filepath.Join(e.dir, mountsDir))
	require.NoError(e.t, err)
	var names []string
	for _, d := range list {
		names = append(names, d.Name())
	}
	return names
}

// lease says what a lease keeps; ok is false when there is none.
func (e *env) lease(id string) (kept []string, ok bool) {
	e.t.Helper()
	list, err := e.leases.List(e.ctx, fmt.Sprintf("id==%q", id))
	require.NoError(e.t, err)
	if len(list) == 0 {
		return nil, false
	}
	resources, err := e.leases.ListResources(e.ctx, list[0])
	require.NoError(e.t, err)
	for _, r := range resources {
		kept = append(kept, r.ID)
	}
	slices.Sort(kept)
	return kept, true
}

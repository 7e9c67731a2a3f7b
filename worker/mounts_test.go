package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestSweepSteps removes bundles, but nothing through a mount, and leaves what steps share.
func TestSweepSteps(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	require.NoError(t, sweepSteps(dir), "before the first step")
	rootfs := filepath.Join(dir, executorDir, "abc", "rootfs")
	snapshot := filepath.Join(dir, "snapshot")
	shared := filepath.Join(dir, executorDir, "resolv.conf")
	for _, d := range []string{rootfs, snapshot} {
		require.NoError(t, os.MkdirAll(d, 0o700))
	}
	for _, f := range []string{shared, filepath.Join(snapshot, "file"), filepath.Join(dir, executorDir, "abc", "config.json")} {
		require.NoError(t, os.WriteFile(f, nil, 0o600))
	}
	require.NoError(t, unix.Mount(snapshot, rootfs, "", unix.MS_BIND, ""))
	require.NoError(t, sweepSteps(dir))
	require.NoDirExists(t, filepath.Dir(rootfs))
	require.FileExists(t, shared)
	require.FileExists(t, filepath.Join(snapshot, "file"))
	requireNoMounts(t, dir)
}

// TestProbesOfAKilledProcess are removed by the next one, mounted or not.
func TestProbesOfAKilledProcess(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	left := filepath.Join(root, probeDir, "fuse-1")
	require.NoError(t, os.MkdirAll(filepath.Join(root, probeDir, "multiple-lowerdir-check1", "work"), 0o700))
	require.NoError(t, os.Mkdir(left, 0o700))
	require.NoError(t, unix.Mount("tmpfs", left, "tmpfs", 0, ""))
	require.Equal(t, Stargz, Choose(root).Name)
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Empty(t, entries)
	requireNoMounts(t, root)
}

// TestTidy: what a process made and did not get to note is removed, and nothing else.
func TestTidy(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	w, err := New(t.Context(), testOptions(t, root, Stargz))
	require.NoError(t, err)
	dir := StateDir(root, Stargz)
	ctx := namespaces.WithNamespace(t.Context(), namespace)
	mdb := w.parts.dbs.containerd
	lease, err := w.LeaseManager().Create(ctx, leases.WithRandomID())
	require.NoError(t, err)
	body := []byte("a blob that somebody needs")
	known := ocispecs.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	lctx := leases.WithLease(ctx, lease.ID)
	require.NoError(t, content.WriteBlob(lctx, mdb.ContentStore(), "known", bytes.NewReader(body), known))
	_, err = mdb.Snapshotter(Stargz).Prepare(lctx, "known", "")
	require.NoError(t, err)
	// Beside the database, as before it was told.
	body = []byte("a blob that nobody knows")
	unknown := ocispecs.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	store, err := local.NewStore(filepath.Join(dir, contentDir))
	require.NoError(t, err)
	require.NoError(t, content.WriteBlob(ctx, store, "unknown", bytes.NewReader(body), unknown))
	_, err = w.parts.storage.snapshotter.Prepare(ctx, "buildkit/77/unknown", "")
	require.NoError(t, err)
	// Halves of writes: one that will go on, and what a power cut leaves.
	begun, err := mdb.ContentStore().Writer(lctx, content.WithRef("begun"))
	require.NoError(t, err)
	_, err = begun.Write([]byte("half"))
	require.NoError(t, err)
	require.NoError(t, begun.Close())
	var lost []string
	for name, files := range map[string][]string{"no data": {"ref"}, "no reference": {"data"}, "an empty reference": {"data", "ref"}} {
		half := filepath.Join(dir, contentDir, "ingest", digest.FromString(name).Encoded())
		require.NoError(t, os.MkdirAll(half, 0o755))
		for _, file := range files {
			require.NoError(t, os.WriteFile(filepath.Join(half, file), nil, 0o600))
		}
		lost = append(lost, half)
	}
	require.NoError(t, w.Close())
	require.NoFileExists(t, filepath.Join(dir, inUseFile))
	_, err = begin(dir) // it was killed
	require.NoError(t, err)

	w, err = New(t.Context(), testOptions(t, root, Stargz))
	require.NoError(t, err)
	defer w.Close()
	for _, half := range lost {
		require.NoDirExists(t, half)
	}
	st, err := w.parts.dbs.containerd.ContentStore().Status(lctx, "begun")
	require.NoError(t, err)
	require.EqualValues(t, 4, st.Offset)
	_, err = store.Info(ctx, unknown.Digest)
	require.True(t, cerrdefs.IsNotFound(err), err)
	_, err = w.parts.storage.snapshotter.Stat(ctx, "buildkit/77/unknown")
	require.True(t, cerrdefs.IsNotFound(err), err)
	_, err = store.Info(ctx, known.Digest)
	require.NoError(t, err)
	_, err = w.parts.dbs.containerd.Snapshotter(Stargz).Stat(ctx, "known")
	require.NoError(t, err)
	_, err = w.parts.dbs.containerd.Snapshotter(Stargz).Stat(ctx, probeName)
	require.True(t, cerrdefs.IsNotFound(err), err)
}

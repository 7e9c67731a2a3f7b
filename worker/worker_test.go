package worker

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
)

// needRoot skips, unless the machine is meant to run everything.
func needRoot(t *testing.T) {
	t.Helper()
	_, err := exec.LookPath("runc")
	if os.Geteuid() == 0 && err == nil {
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatalf("LAZYKIT_PRIVILEGED=1, but uid is %d and runc: %v", os.Geteuid(), err)
	}
	t.Skip("needs root and runc")
}

func testOptions(t *testing.T, root, snapshotter string) Options {
	t.Helper()
	sessions, err := bksession.NewManager()
	require.NoError(t, err)
	return Options{
		Root:        root,
		Snapshotter: snapshotter,
		Sessions:    sessions,
		Hosts:       resolver.NewRegistryConfig(nil),
		Network:     netproviders.Opt{Mode: "host"},
		Labels:      map[string]string{"mine": "yes"},
	}
}

// TestNewAndClose opens the same state twice.
func TestNewAndClose(t *testing.T) {
	needRoot(t)
	for _, snapshotter := range []string{Native, Overlay, Stargz} {
		t.Run(snapshotter, func(t *testing.T) {
			root := t.TempDir()
			w, err := New(t.Context(), testOptions(t, root, snapshotter))
			require.NoError(t, err)
			id := w.ID()
			require.Equal(t, snapshotter, w.Labels()["org.mobyproject.buildkit.worker.snapshotter"])
			require.Equal(t, "yes", w.Labels()["mine"])
			require.Len(t, w.Platforms(false), 1)
			require.NoError(t, w.GarbageCollect(t.Context()))
			_, err = w.DiskUsage(t.Context(), client.DiskUsageInfo{})
			require.NoError(t, err)
			require.Zero(t, w.Stalled())
			require.NoError(t, w.Close())
			require.NoError(t, w.Close(), "a second time")
			requireNoMounts(t, root)
			// An end as it should be, but for a disk that took no writes.
			ingests := filepath.Join(StateDir(root, snapshotter), contentDir, "ingest")
			half, whole := filepath.Join(ingests, "half"), filepath.Join(ingests, digest.FromString("whole").Encoded())
			for path, files := range map[string][]string{half: {"data"}, whole: {"data", "ref"}} {
				require.NoError(t, os.MkdirAll(path, 0o755))
				for _, f := range files {
					require.NoError(t, os.WriteFile(filepath.Join(path, f), []byte("whole"), 0o600))
				}
			}

			w, err = New(t.Context(), testOptions(t, root, snapshotter))
			require.NoError(t, err)
			require.Equal(t, id, w.ID(), "the worker keeps its id")
			require.NoDirExists(t, half)
			require.DirExists(t, whole, "it can be gone on with")
			w.Abort()
			require.NoError(t, w.Close())
			requireNoMounts(t, root)
		})
	}
}

// TestNewThatFails leaves nothing open: the state can be opened afterwards.
func TestNewThatFails(t *testing.T) {
	needRoot(t)
	for name, spoil := range map[string]func(*Options){
		"unknown snapshotter": func(o *Options) { o.Snapshotter = "none" },
		"no runtime":          func(o *Options) { o.Binary = "no-such-runtime" },
		"no proxy":            func(o *Options) { o.ProxyAddress = filepath.Join(o.Root, "no-such-socket") },
		"no network":          func(o *Options) { o.Network.Mode = "cni" },
		"no database": func(o *Options) {
			// What is a directory can't be opened as a database.
			os.MkdirAll(filepath.Join(StateDir(o.Root, o.Snapshotter), metadataFile), 0o700)
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			opts := testOptions(t, root, Stargz)
			spoil(&opts)
			_, err := New(t.Context(), opts)
			require.Error(t, err)
			requireNoMounts(t, root)
			require.NoError(t, os.RemoveAll(filepath.Join(StateDir(root, Stargz), metadataFile)))
			began := time.Now()
			w, err := New(t.Context(), testOptions(t, root, Stargz))
			require.NoError(t, err)
			require.Less(t, time.Since(began), lockTimeout/2, "a database was left open")
			require.NoError(t, w.Close())
		})
	}
}

// TestSweepMounts detaches what steps left, nested mounts included, and nothing else.
func TestSweepMounts(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	require.NoError(t, sweepMounts(dir), "before the first step")
	step := filepath.Join(dir, executorDir, "abc", "rootfs")
	foreign := filepath.Join(dir, executorDir+"-of-somebody")
	for _, m := range []string{step, filepath.Join(step, "inner"), foreign} {
		require.NoError(t, os.MkdirAll(m, 0o700))
		require.NoError(t, unix.Mount("tmpfs", m, "tmpfs", 0, ""))
	}
	t.Cleanup(func() { unix.Unmount(foreign, unix.MNT_DETACH) })
	require.NoError(t, sweepMounts(dir))
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, foreign, left[0].Mountpoint)
}

// TestSweepLooks detaches overlays and bind mounts of the worker's own snapshots in the
// directory for temporary files, and those of no other.
func TestSweepLooks(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	dir, other, tmp := filepath.Join(base, "worker"), filepath.Join(base, "other"), filepath.Join(base, "tmp")
	look := func(of, name string) string {
		at := filepath.Join(tmp, name)
		for _, d := range []string{filepath.Join(of, "a"), filepath.Join(of, "b"), at} {
			require.NoError(t, os.MkdirAll(d, 0o700))
		}
		require.NoError(t, unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+filepath.Join(of, "a")+":"+filepath.Join(of, "b")))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		return at
	}
	bind := func(of, name string) string {
		from, at := filepath.Join(of, "of "+name), filepath.Join(tmp, name)
		require.NoError(t, os.MkdirAll(from, 0o700))
		require.NoError(t, os.MkdirAll(at, 0o700))
		require.NoError(t, unix.Mount(from, at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		require.NoError(t, os.Remove(from), "as snapshots are removed")
		return at
	}
	shown := func(of, name string) string {
		server, err := fuse.NewServer(t.Context(), fuse.Options{Root: filepath.Join(of, "fuse")})
		require.NoError(t, err)
		t.Cleanup(func() { server.Close() })
		at := filepath.Join(tmp, name)
		require.NoError(t, os.MkdirAll(at, 0o700))
		require.NoError(t, unix.Mount(filepath.Join(of, "fuse", "p"), at, "", unix.MS_BIND, ""))
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
		return at
	}
	mine := []string{shown(dir, "buildkit-mount10"), look(dir, "buildkit-mount1"), bind(dir, "buildkit-mount5"), bind(dir, "containerd-mount9")}
	others := []string{shown(other, "buildkit-mount11"), look(other, "buildkit-mount2"), look(dir, "somebodys-3"), look(dir+"-not", "buildkit-mount4"),
		bind(other, "buildkit-mount6"), bind(dir+"-not", "buildkit-mount7"), bind(dir, "somebodys-8")}
	require.NoError(t, sweepLooks(dir, tmp))
	for _, m := range mine {
		require.NoDirExists(t, m)
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(tmp))
	require.NoError(t, err)
	require.Len(t, left, len(others))
}

func requireNoMounts(t *testing.T, root string) {
	t.Helper()
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	require.NoError(t, err)
	require.Empty(t, left, "mounts that are left")
}

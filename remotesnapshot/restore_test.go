package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// unresolve makes the layer of a snapshot one that a new process knows nothing of.
func (w *world) unresolve(name string) {
	w.t.Helper()
	src, ok, err := ParseLabels(mustStat(w, name).Labels)
	if err != nil || !ok {
		w.t.Fatal(ok, err)
	}
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.resolved = false })
}

func threeLayers(t *testing.T) *world {
	w := newWorld(t, Options{})
	w.remote("1", "", w.fs.layer("lower", true, "a"))
	w.plain("2", "1", "b")
	w.remote("3", "2", w.fs.layer("upper", true, "c"))
	return w
}

func TestRestart(t *testing.T) {
	needRoot(t)
	w := threeLayers(t)
	ctx := t.Context()
	if _, err := w.Prepare(ctx, "active", "3"); err != nil {
		t.Fatal(err)
	}
	w.stop()
	if err := w.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if _, err := w.Mounts(ctx, "active"); err == nil {
		t.Error("Mounts works after Close")
	}
	if _, err := w.Prepare(ctx, "late", "3"); err == nil {
		t.Error("Prepare works after Close")
	}
	w.start(Options{})
	w.checkNoLeak()
	m, err := w.Mounts(ctx, "active")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pendingFiles, show(t, m)); diff != "" {
		t.Error(diff)
	}
	for _, l := range w.fs.layers {
		if l.resolves != 0 {
			t.Error("a layer that is known was resolved again")
		}
	}
}

// TestRestartPending: nothing is resolved at start, everything at the first Mounts.
func TestRestartPending(t *testing.T) {
	needRoot(t)
	w := threeLayers(t)
	ctx := t.Context()
	w.unresolve("1")
	w.unresolve("3")
	w.stop()
	w.start(Options{})
	if _, err := w.Prepare(ctx, "active", "3"); err != nil {
		t.Fatal(err)
	}
	for _, l := range w.fs.layers {
		if l.resolves != 0 {
			t.Error("a layer was resolved without need")
		}
	}
	m, err := w.Mounts(ctx, "active")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pendingFiles, show(t, m)); diff != "" {
		t.Error(diff)
	}
	w.checkNoLeak()
}

// TestRestartOpenFails: the daemon starts, and the layer is tried again.
func TestRestartOpenFails(t *testing.T) {
	w := threeLayers(t)
	w.stop()
	w.fs.calls, w.fs.failAt = 0, 1
	w.start(Options{})
	if n := w.fs.holds(); n != 1 {
		t.Fatalf("%d layers are held", n)
	}
	if _, err := w.View(t.Context(), "view", "3"); err != nil {
		t.Fatal(err)
	}
	if m, err := w.Mounts(t.Context(), "view"); err != nil || hasUnresolved(m) {
		t.Fatalf("%v, %v", m, err)
	}
	w.checkNoLeak()
}

// TestBrokenLabels: a snapshot whose labels are wrong does not stop the others.
func TestBrokenLabels(t *testing.T) {
	for name, label := range map[string]string{"bad": "sha256:zz", "none": ""} {
		t.Run(name, func(t *testing.T) {
			w := threeLayers(t)
			ctx := t.Context()
			info := mustStat(w, "3")
			info.Labels[labelDigest] = label
			if label == "" {
				info.Labels[labelReference] = ""
			}
			if _, err := w.Update(ctx, info); err != nil {
				t.Fatal(err)
			}
			w.stop()
			w.start(Options{})
			for _, parent := range []string{"2", "3"} {
				if _, err := w.View(ctx, "view"+parent, parent); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := w.Mounts(ctx, "view2"); err != nil {
				t.Error(err)
			}
			if _, err := w.Mounts(ctx, "view3"); err == nil || !strings.Contains(err.Error(), `snapshot "3"`) {
				t.Errorf("error %v", err)
			}
			if err := w.Remove(ctx, "view3"); err != nil {
				t.Error(err)
			}
			if err := w.Remove(ctx, "3"); err != nil {
				t.Error(err)
			}
			w.checkNoLeak()
		})
	}
}

// TestNoFileSystem: plain snapshots of a root that has remote ones still work.
func TestNoFileSystem(t *testing.T) {
	w := threeLayers(t)
	w.plain("plain", "")
	w.stop()
	ctx := t.Context()
	s, err := New(ctx, w.root, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if m, err := s.View(ctx, "view", "plain"); err != nil || hasUnresolved(m) {
		t.Errorf("%v, %v", m, err)
	}
	if m, err := s.View(ctx, "lazy", "3"); err != nil || !hasUnresolved(m) {
		t.Errorf("%v, %v", m, err)
	}
	if _, err := s.Mounts(ctx, "lazy"); !cerrdefs.IsUnavailable(err) {
		t.Errorf("error %v", err)
	}
	if usage, err := s.Usage(ctx, "3"); err != nil || usage.Size != 0 {
		t.Errorf("%+v, %v", usage, err)
	}
}

// stockState writes a root as stargz-snapshotter leaves it: two remote snapshots
// with the labels of BuildKit, temporary ones of a dead session included, a
// plain one between, and no directories for the remote ones where it was closed.
func stockState(t *testing.T, w *world, closed bool) {
	t.Helper()
	lower, upper := w.fs.layer("lower", false, "a"), w.fs.layer("upper", false, "c")
	ms, err := storage.NewMetaStore(filepath.Join(w.root, "metadata.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer ms.Close()
	labels := func(target, dgst string) map[string]string {
		return map[string]string{
			"containerd.io/snapshot.ref":                              target,
			"containerd.io/snapshot/remote":                           "remote snapshot",
			"containerd.io/snapshot/remote/stargz.reference":          testRef,
			"containerd.io/snapshot/remote/stargz.digest":             dgst,
			"containerd.io/snapshot/remote/stargz.layers":             dgst,
			"containerd.io/snapshot/remote/stargz.reference.deadbeef": testRef,
			"containerd.io/snapshot/remote/stargz.digest.deadbeef":    dgst,
			"containerd.io/snapshot/remote/stargz.session.0.deadbeef": "gone",
			"containerd.io/snapshot/stargz/toc.digest.deadbeef":       d3.String(),
			"containerd.io/snapshot/stargz/toc.digest":                d3.String(),
			"containerd.io/snapshot/remote/stargz.layers.deadbeef":    dgst,
		}
	}
	parent := ""
	for i, sn := range []struct {
		labels map[string]string
		file   string
	}{{labels("1", lower.String()), ""}, {nil, "b"}, {labels("3", upper.String()), ""}} {
		name, key := fmt.Sprint(i+1), fmt.Sprint("key", i+1)
		var id string
		err := ms.WithTransaction(t.Context(), true, func(ctx context.Context) error {
			opt := snapshots.WithLabels(sn.labels)
			if _, err := storage.CreateSnapshot(ctx, snapshots.KindActive, key, parent, opt); err != nil {
				return err
			}
			id, err = storage.CommitActive(ctx, key, name, snapshots.Usage{}, opt)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(w.root, "snapshots", id)
		if sn.labels == nil || !closed {
			for _, d := range []string{"fs", "work"} {
				if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
		}
		if sn.file != "" {
			if err := os.WriteFile(filepath.Join(dir, "fs", sn.file), []byte(name), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		parent = name
	}
}

// deadFUSE mounts a FUSE file system whose server is gone.
func deadFUSE(t *testing.T, dir string) {
	t.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
			t.Fatalf("LAZYKIT_PRIVILEGED=1, but /dev/fuse: %v", err)
		}
		t.Skipf("needs /dev/fuse: %v", err)
	}
	err = unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd))
	if err := errors.Join(err, unix.Close(fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if _, err := os.Stat(dir); !errors.Is(err, unix.ENOTCONN) {
		t.Fatalf("stat of a dead FUSE mount: %v", err)
	}
}

func tmpfs(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// TestStockState opens what stock left, after a clean stop and after a kill with
// its mounts still there, dead and alive, one on top of another.
func TestStockState(t *testing.T) {
	needRoot(t)
	for _, closed := range []bool{true, false} {
		t.Run(fmt.Sprint("closed=", closed), func(t *testing.T) {
			root := t.TempDir()
			link := filepath.Join(t.TempDir(), "link") // the kernel lists mounts by real paths
			if err := os.Symlink(root, link); err != nil {
				t.Fatal(err)
			}
			w := &world{t: t, root: link, fs: newFakeFS(t, filepath.Join(root, "p"))}
			stockState(t, w, closed)
			if !closed {
				tmpfs(t, filepath.Join(root, "snapshots/1/fs"))
				tmpfs(t, filepath.Join(root, "snapshots/3/fs"))
				deadFUSE(t, filepath.Join(root, "snapshots/3/fs"))
				if err := os.MkdirAll(filepath.Join(root, "snapshots/9/fs"), 0o755); err != nil { // no snapshot's
					t.Fatal(err)
				}
				deadFUSE(t, filepath.Join(root, "snapshots/9/fs"))
			}
			tmpfs(t, filepath.Join(root, "x")) // where a live FUSE server shows layers
			w.start(Options{})

			var mounted []string
			infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range infos {
				mounted = append(mounted, m.Mountpoint)
			}
			if diff := cmp.Diff([]string{filepath.Join(root, "x")}, mounted); diff != "" {
				t.Errorf("mounts below the root: %s", diff)
			}
			waitFor(t, func() bool {
				_, err := os.Stat(filepath.Join(root, "snapshots/9"))
				return os.IsNotExist(err)
			})
			if _, err := w.Prepare(t.Context(), "active", "3"); err != nil {
				t.Fatal(err)
			}
			m, err := w.Mounts(t.Context(), "active")
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(pendingFiles, show(t, m)); diff != "" {
				t.Error(diff)
			}
			w.checkNoLeak()
		})
	}
}

// TestStockOpensOurs gives our root to containerd's overlay snapshotter, whose
// layout it is, and takes it back.
func TestStockOpensOurs(t *testing.T) {
	needRoot(t)
	w := threeLayers(t)
	ctx := t.Context()
	w.plain("p1", "", "x")
	w.plain("p2", "p1", "y")
	if _, err := w.Prepare(ctx, "active", "p2"); err != nil {
		t.Fatal(err)
	}
	w.stop()
	stock, err := overlay.NewSnapshotter(w.root, overlay.AsynchronousRemove)
	if err != nil {
		t.Fatal(err)
	}
	m, err := stock.Mounts(ctx, "active")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"x": "p1", "y": "p2"}, show(t, m)); diff != "" {
		t.Error(diff)
	}
	if _, err := stock.Prepare(ctx, "of stock", "3"); err != nil {
		t.Errorf("on a remote snapshot: %v", err)
	}
	if err := stock.(snapshots.Cleaner).Cleanup(ctx); err != nil {
		t.Error(err)
	}
	if err := stock.Close(); err != nil {
		t.Fatal(err)
	}
	w.start(Options{})
	if m, err = w.Mounts(ctx, "of stock"); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pendingFiles, show(t, m)); diff != "" {
		t.Error(diff)
	}
	w.checkNoLeak()
}

// TestSweep: rubbish goes at start and by Cleanup; what is in use stays.
func TestSweep(t *testing.T) {
	w := threeLayers(t)
	ctx := t.Context()
	litter := func() {
		for _, d := range []string{"77/fs", "new-old/fs", "rm-old/fs", "strange"} {
			if err := os.MkdirAll(filepath.Join(w.dirs.path, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	litter()
	dir, err := w.dirs.create(true, owner{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(w.dirs.path, dir.name)); err != nil {
		t.Errorf("a directory in use: %v", err)
	}
	if err := dir.release(); err != nil {
		t.Fatal(err)
	}
	w.checkNoLeak()
	litter()
	w.stop()
	w.start(Options{})
	w.sweep.done.Wait()
	w.checkNoLeak()
}

func TestAsyncRemove(t *testing.T) {
	w := newWorld(t, Options{AsyncRemove: true})
	ctx := t.Context()
	w.remote("base", "", w.fs.layer("base", true))
	dir := filepath.Join(w.dirs.path, w.id("base"))
	if err := w.Remove(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); err != nil {
		t.Fatalf("the directory did not wait for Cleanup: %v", err)
	}
	if n := w.fs.holds(); n != 0 {
		t.Fatalf("%d layers are held", n)
	}
	w.remote("base", "", w.fs.layer("again", true)) // the name is free at once
	if err := w.Cleanup(ctx); err != nil {
		t.Fatal(err)
	}
	w.checkNoLeak()
}

// TestPublishOverRubbish: an id that was rolled back is given out again.
func TestPublishOverRubbish(t *testing.T) {
	w := newWorld(t, Options{})
	if err := os.MkdirAll(filepath.Join(w.dirs.path, "1/fs/old"), 0o755); err != nil {
		t.Fatal(err)
	}
	w.plain("first", "")
	if id := w.id("first"); id != "1" {
		t.Fatalf("id %s", id)
	}
	if _, err := os.Stat(filepath.Join(w.dirs.path, "1/fs/old")); !os.IsNotExist(err) {
		t.Fatalf("old contents in a new snapshot: %v", err)
	}
	if err := w.Cleanup(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.checkNoLeak()
}

func TestNewErrors(t *testing.T) {
	if _, err := New(t.Context(), "relative", nil, Options{}); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("relative root: %v", err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), file, nil, Options{}); err == nil {
		t.Error("a file as root")
	}
	damaged := t.TempDir()
	if err := os.WriteFile(filepath.Join(damaged, "metadata.db"), make([]byte, 8192), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(t.Context(), damaged, nil, Options{}); err == nil {
		t.Error("a damaged database")
	}
}

// TestRemoveUnderMounts: a removal while the layers are being resolved lets the
// call end and leaks nothing.
func TestRemoveUnderMounts(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	dgst := w.fs.layer("base", true)
	w.remote("base", "", dgst)
	gate := make(chan struct{})
	w.fs.edit(dgst, func(l *fakeLayer) { l.resolved, l.gate = false, gate })
	if _, err := w.Prepare(ctx, "active", "base"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { _, err := w.Mounts(ctx, "active"); done <- err }()
	waitFor(t, func() (waits bool) {
		w.fs.edit(dgst, func(l *fakeLayer) { waits = l.resolves == 1 })
		return waits
	})
	for _, key := range []string{"active", "base"} {
		if err := w.Remove(ctx, key); err != nil {
			t.Fatal(err)
		}
	}
	if n := w.fs.holds(); n != 1 {
		t.Errorf("%d holds while one call uses the layer", n)
	}
	close(gate)
	if err := <-done; err != nil {
		t.Error(err)
	}
	w.checkNoLeak()
}

// TestOpenUnderRemove: a layer that opens for a snapshot which is gone by then
// is closed again.
func TestOpenUnderRemove(t *testing.T) {
	w := newWorld(t, Options{})
	dgst := w.fs.layer("base", true)
	w.remote("base", "", dgst)
	l := link{id: w.id("base"), name: "base", labels: mustStat(w, "base").Labels}
	if err := w.Remove(t.Context(), "base"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.layerOf(t.Context(), l); !cerrdefs.IsNotFound(err) {
		t.Errorf("error %v", err)
	}
	w.checkNoLeak()
}

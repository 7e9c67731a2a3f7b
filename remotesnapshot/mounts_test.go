package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/util/overlay"
)

// TestMountForms checks what is a bind mount, what an overlay, and that BuildKit's
// differ understands every overlay.
func TestMountForms(t *testing.T) {
	needRoot(t)
	w := newWorld(t, Options{})
	ctx := t.Context()
	w.remote("r1", "", w.fs.layer("r1", true, "a"))
	w.plain("p2", "r1", "b")
	w.remote("r3", "p2", w.fs.layer("r3", true, "c"))
	all := map[string]string{"a": "r1", "b": "p2", "c": "r3"}

	view1, err := w.View(ctx, "view1", "r1")
	if err != nil {
		t.Fatal(err)
	}
	want := []mount.Mount{{Type: "bind", Source: w.fs.root + "/0", Options: []string{"ro", "rbind"}}}
	if diff := cmp.Diff(want, view1); diff != "" {
		t.Error(diff)
	}
	view3, err := w.View(ctx, "view3", "r3")
	if err != nil {
		t.Fatal(err)
	}
	active3, err := w.Prepare(ctx, "active3", "r3")
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range map[string][]mount.Mount{"view": view3, "active": active3} {
		if diff := cmp.Diff(all, show(t, m)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if got, err := w.Mounts(ctx, name+"3"); err != nil || !cmp.Equal(got, m) {
			t.Errorf("%s: Mounts gives %v, not %v: %v", name, got, m, err)
		}
	}
	upper, err := overlay.GetUpperdir(view3, active3)
	if err != nil {
		t.Errorf("BuildKit's differ: %v", err)
	}
	if want := w.dirs.upper(w.id("active3")); upper != want {
		t.Errorf("the upper directory is %s, not %s", upper, want)
	}
	if _, err := overlay.GetUpperdir(view1, mustView(w, "p2")); err != nil {
		t.Errorf("BuildKit's differ on a bind: %v", err)
	}
	empty, err := w.View(ctx, "empty", "")
	if err != nil || empty[0].Type != "bind" || empty[0].Options[0] != "ro" {
		t.Errorf("view of nothing: %v, %v", empty, err)
	}
	if _, err := w.Mounts(ctx, "r3"); !cerrdefs.IsFailedPrecondition(err) {
		t.Errorf("mounts of a committed snapshot: %v", err)
	}
	if _, err := w.Mounts(ctx, "nobody"); !cerrdefs.IsNotFound(err) {
		t.Errorf("mounts of nobody: %v", err)
	}
}

func mustView(w *world, parent string) []mount.Mount {
	w.t.Helper()
	m, err := w.View(w.t.Context(), "view of "+parent, parent)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

func TestUserXattr(t *testing.T) {
	w := newWorld(t, Options{UserXattr: true})
	w.plain("a", "")
	w.plain("b", "a")
	m := mustView(w, "b")
	if !strings.Contains(strings.Join(m[0].Options, " "), "userxattr") {
		t.Errorf("options %v", m[0].Options)
	}
	if _, err := overlay.GetOverlayLayers(m[0]); err != nil {
		t.Error(err)
	}
}

// TestSameLayerTwice: overlayfs refuses a directory that occurs twice, and a
// chain's directories must not depend on what is put on top of it.
func TestSameLayerTwice(t *testing.T) {
	needRoot(t)
	w := newWorld(t, Options{})
	base, empty := w.fs.layer("base", true, "a"), w.fs.layer("empty", true)
	w.remote("1", "", empty)
	w.remote("2", "1", base)
	w.remote("3", "2", empty)
	w.remote("4", "3", empty)
	m := mustView(w, "4")
	if diff := cmp.Diff(map[string]string{"a": "base"}, show(t, m)); diff != "" {
		t.Fatal(diff)
	}
	p := w.fs.root
	dirs := []string{p + "/1.2", p + "/1.1", p + "/0", p + "/1"}
	if diff := cmp.Diff(dirs, lowerDirs(t, m)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(dirs[1:], lowerDirs(t, mustView(w, "3"))); diff != "" {
		t.Error(diff)
	}
}

// TestManyLayers mounts more layers than a page of options has room for by full
// names.
func TestManyLayers(t *testing.T) {
	needRoot(t)
	w := newWorld(t, Options{})
	parent, want := "", map[string]string{}
	for i := range 120 {
		name := fmt.Sprint("layer", i)
		w.remote(name, parent, w.fs.layer(name, true, name))
		parent, want[name] = name, name
	}
	m := mustView(w, parent)
	if n := len(strings.Join(m[0].Options, ",")); n < 4096 {
		t.Fatalf("only %d bytes of options", n)
	}
	if diff := cmp.Diff(want, show(t, m)); diff != "" {
		t.Fatal(diff)
	}
}

// pendingChain is a chain of two pending layers with a plain one between.
func pendingChain(t *testing.T) *world {
	w := newWorld(t, Options{})
	lower, upper := w.fs.layer("lower", true, "a"), w.fs.layer("upper", true, "c")
	w.remote("1", "", lower)
	w.plain("2", "1", "b")
	w.remote("3", "2", upper)
	w.fs.edit(lower, func(l *fakeLayer) { l.resolved = false })
	w.fs.edit(upper, func(l *fakeLayer) { l.resolved = false })
	return w
}

var pendingFiles = map[string]string{"a": "lower", "b": "2", "c": "upper"}

// TestPending: Prepare and View succeed at once, with mounts that can't be
// mistaken; Mounts resolves, all layers at the same time.
func TestPending(t *testing.T) {
	needRoot(t)
	w := pendingChain(t)
	ctx := t.Context()
	gate := make(chan struct{})
	for d := range w.fs.layers {
		w.fs.edit(d, func(l *fakeLayer) { l.gate = gate })
	}
	prepared, err := w.Prepare(ctx, "active", "3")
	if err != nil {
		t.Fatal(err)
	}
	viewed, err := w.View(ctx, "view", "3")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range [][]mount.Mount{prepared, viewed} {
		if err := mount.All(m, t.TempDir()); err == nil {
			t.Errorf("%v can be mounted", m)
		}
		if !hasUnresolved(m) {
			t.Errorf("%v does not tell that it waits", m)
		}
	}
	done := make(chan error, 1)
	var mounts []mount.Mount
	go func() {
		var err error
		mounts, err = w.Mounts(ctx, "active")
		done <- err
	}()
	// Both are being resolved before either is done, and writers get through.
	waitFor(t, func() bool {
		n := 0
		for d := range w.fs.layers {
			w.fs.edit(d, func(l *fakeLayer) { n += l.resolves })
		}
		return n == 2
	})
	w.plain("meanwhile", "")
	close(gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pendingFiles, show(t, mounts)); diff != "" {
		t.Error(diff)
	}
	w.checkNoLeak()
}

// waitFor polls for what other goroutines bring about.
func waitFor(t testing.TB, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not happen")
		}
	}
}

func TestResolveFails(t *testing.T) {
	w := pendingChain(t)
	ctx := t.Context()
	if _, err := w.Prepare(ctx, "active", "3"); err != nil {
		t.Fatal(err)
	}
	src, _, err := ParseLabels(mustStat(w, "3").Labels)
	if err != nil {
		t.Fatal(err)
	}
	cause := errors.New("registry.example says 403")
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.resolveErr = cause })
	_, err = w.Mounts(ctx, "active")
	if !errors.Is(err, cause) || !strings.Contains(err.Error(), src.Digest.String()) || !strings.Contains(err.Error(), `"3"`) {
		t.Fatalf("error %v", err)
	}
	// A caller that gives up is let go at once.
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.gate = make(chan struct{}) })
	cancelled, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { _, err := w.Mounts(cancelled, "active"); done <- err }()
	waitFor(t, func() (waits bool) {
		w.fs.edit(src.Digest, func(l *fakeLayer) { waits = l.resolves == 2 })
		return waits
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v", err)
	}
	// And what failed once is not broken for ever.
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.gate, l.resolveErr = nil, nil })
	if _, err := w.Mounts(ctx, "active"); err != nil {
		t.Fatal(err)
	}
	w.checkNoLeak()
}

func mustStat(w *world, name string) snapshots.Info {
	w.t.Helper()
	info, err := w.Stat(w.t.Context(), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return info
}

func TestResolveViews(t *testing.T) {
	needRoot(t)
	w := pendingChain(t)
	ctx := t.Context()
	s := ResolveViews(w.Snapshotter)
	src, _, _ := ParseLabels(mustStat(w, "1").Labels)
	cause := errors.New("no network")
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.resolveErr = cause })
	for _, parent := range []string{"1", "3"} { // a bind mount and an overlay
		if _, err := s.View(ctx, "view", parent); !errors.Is(err, cause) {
			t.Fatalf("error %v", err)
		}
	}
	if _, err := w.Stat(ctx, "view"); !cerrdefs.IsNotFound(err) {
		t.Fatalf("a view that nobody got stays: %v", err)
	}
	w.fs.edit(src.Digest, func(l *fakeLayer) { l.resolveErr = nil })
	m, err := s.View(ctx, "view", "3")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(pendingFiles, show(t, m)); diff != "" {
		t.Error(diff)
	}
	if _, err := s.View(ctx, "again", "3"); err != nil {
		t.Error(err)
	}
	w.checkNoLeak()
}

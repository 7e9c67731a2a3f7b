package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
)

func TestPrepareRemote(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	dgst := w.fs.layer("base", true, "a")
	labels := remoteLabels("base", dgst)
	labels[AnnotationTOCDigest] = d3.String()
	temporary := map[string]string{
		labelReference + suffix: testRef, labelDigest + suffix: dgst.String(),
		AnnotationTOCDigest + suffix: d3.String(), labelSession + ".0" + suffix: "session",
	}
	_, err := w.Prepare(ctx, "key", "", snapshots.WithLabels(labels), snapshots.WithLabels(temporary))
	if !cerrdefs.IsAlreadyExists(err) || !strings.Contains(err.Error(), `"base"`) {
		t.Fatalf("error %v", err)
	}
	if diff := cmp.Diff(map[string]snapshots.Kind{"base": snapshots.KindCommitted}, w.names()); diff != "" {
		t.Fatal(diff)
	}
	info, err := w.Stat(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	// What stock needs to find the layer again, and nothing that dies with a session.
	want := map[string]string{
		LabelTarget: "base", LabelRemote: "remote snapshot", labelReference: testRef,
		labelDigest: dgst.String(), AnnotationTOCDigest: d3.String(),
	}
	if diff := cmp.Diff(want, info.Labels); diff != "" {
		t.Fatal(diff)
	}
	// containerd's metadata database looks for the target that way.
	found := false
	filter := fmt.Sprintf(`labels."containerd.io/snapshot.ref"==%s,parent==%q`, "base", "")
	err = w.Walk(ctx, func(context.Context, snapshots.Info) error { found = true; return nil }, filter)
	if err != nil || !found {
		t.Fatalf("found %v, error %v", found, err)
	}
	entries, err := os.ReadDir(filepath.Join(w.dirs.path, w.id("base"), "fs"))
	if err != nil || len(entries) != 0 {
		t.Fatalf("fs of a remote snapshot: %v, %v", entries, err)
	}
	w.checkNoLeak()

	if err := w.Remove(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	if n := w.fs.holds(); n != 0 {
		t.Fatalf("%d layers are held after Remove", n)
	}
	w.checkNoLeak()
}

// TestPrepareOnlyTemporaryLabels: the committed snapshot gets plain labels.
func TestPrepareOnlyTemporaryLabels(t *testing.T) {
	w := newWorld(t, Options{})
	dgst := w.fs.layer("base", true)
	_, err := w.Prepare(t.Context(), "key", "", snapshots.WithLabels(map[string]string{
		LabelTarget: "base", labelReference + suffix: testRef, labelDigest + suffix: dgst.String(),
	}))
	if !cerrdefs.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	info, err := w.Stat(t.Context(), "base")
	if err != nil {
		t.Fatal(err)
	}
	if info.Labels[labelReference] != testRef || info.Labels[labelDigest] != dgst.String() {
		t.Fatalf("labels %v", info.Labels)
	}
}

// TestPrepareFallsBack lists what makes a Prepare with a target a plain one.
func TestPrepareFallsBack(t *testing.T) {
	pending := func(w *world) map[string]string {
		return remoteLabels("base", w.fs.layer("pending", false))
	}
	for name, labels := range map[string]func(w *world) map[string]string{
		"not resolved": pending,
		"unknown":      func(*world) map[string]string { return remoteLabels("base", d1) },
		"bad labels": func(*world) map[string]string {
			return map[string]string{LabelTarget: "base", labelReference: testRef, labelDigest: "nonsense"}
		},
		"no labels": func(*world) map[string]string { return map[string]string{LabelTarget: "base"} },
		"no target": func(w *world) map[string]string {
			l := remoteLabels("base", w.fs.layer("resolved", true))
			delete(l, LabelTarget)
			return l
		},
		"open fails": func(w *world) map[string]string {
			w.fs.failAt = 1
			return remoteLabels("base", w.fs.layer("resolved", true))
		},
		"directory fails": func(w *world) map[string]string {
			w.fs.failAt = 2
			return remoteLabels("base", w.fs.layer("resolved", true))
		},
		"directory is gone": func(w *world) map[string]string {
			dgst := w.fs.layer("resolved", true)
			if err := os.Remove(w.fs.layers[dgst].dir); err != nil {
				t.Fatal(err)
			}
			return remoteLabels("base", dgst)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, Options{})
			mounts, err := w.Prepare(t.Context(), "key", "", snapshots.WithLabels(labels(w)))
			if err != nil {
				t.Fatal(err)
			}
			if len(mounts) != 1 || mounts[0].Type != "bind" {
				t.Fatalf("mounts %v", mounts)
			}
			if diff := cmp.Diff(map[string]snapshots.Kind{"key": snapshots.KindActive}, w.names()); diff != "" {
				t.Fatal(diff)
			}
			if err := w.Commit(t.Context(), "base", "key"); err != nil {
				t.Fatal(err)
			}
			w.checkNoLeak()
		})
	}
	t.Run("no file system", func(t *testing.T) {
		s, err := New(t.Context(), t.TempDir(), nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Prepare(t.Context(), "key", "", snapshots.WithLabels(remoteLabels("base", d1))); err != nil {
			t.Fatal(err)
		}
	})
}

// TestPrepareRemoteErrors lists what neither commits nor falls back.
func TestPrepareRemoteErrors(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	dgst := w.fs.layer("base", true)
	w.remote("base", "", dgst)
	w.plain("plain", "")
	if _, err := w.Prepare(ctx, "active", ""); err != nil {
		t.Fatal(err)
	}
	before := w.names()
	for name, tt := range map[string]struct {
		key, parent, target string
		is                  func(error) bool
	}{
		"target exists":          {"new", "", "base", cerrdefs.IsAlreadyExists},
		"target exists, plain":   {"new", "", "plain", cerrdefs.IsAlreadyExists},
		"target is active":       {"new", "", "active", cerrdefs.IsAlreadyExists},
		"key exists":             {"active", "", "new", cerrdefs.IsAlreadyExists},
		"no parent":              {"new", "nobody", "new-target", cerrdefs.IsNotFound},
		"parent is active":       {"new", "active", "new-target", cerrdefs.IsInvalidArgument},
		"key and target are one": {"new", "", "new", cerrdefs.IsAlreadyExists},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := w.Prepare(ctx, tt.key, tt.parent, snapshots.WithLabels(remoteLabels(tt.target, dgst)))
			if !tt.is(err) {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(before, w.names()); diff != "" {
				t.Error(diff)
			}
			w.checkNoLeak()
		})
	}
}

// TestFaults makes each step of each operation fail in turn: afterwards nothing
// is left of it, and the same operation works.
func TestFaults(t *testing.T) {
	ops := map[string]func(w *world) error{
		"remote": func(w *world) error {
			_, err := w.Prepare(w.t.Context(), "key", "base", snapshots.WithLabels(remoteLabels("target", digest.FromString("upper"))))
			if cerrdefs.IsAlreadyExists(err) {
				return nil
			}
			return err
		},
		"prepare": func(w *world) error { _, err := w.Prepare(w.t.Context(), "key", "base"); return err },
		"view":    func(w *world) error { _, err := w.View(w.t.Context(), "key", "base"); return err },
		"mounts":  func(w *world) error { _, err := w.Mounts(w.t.Context(), "active"); return err },
		"commit":  func(w *world) error { return w.Commit(w.t.Context(), "name", "active") },
		"remove":  func(w *world) error { return w.Remove(w.t.Context(), "removable") },
		"cleanup": func(w *world) error { return w.Cleanup(w.t.Context()) },
		"usage":   func(w *world) error { _, err := w.Usage(w.t.Context(), "base"); return err },
		"update": func(w *world) error {
			_, err := w.Update(w.t.Context(), snapshots.Info{Name: "base", Labels: map[string]string{"a": "b"}}, "labels.a")
			return err
		},
	}
	for name, op := range ops {
		t.Run(name, func(t *testing.T) {
			for _, place := range []string{"metadata", "file system"} {
				for n := 1; ; n++ {
					if n > 50 {
						t.Fatal("the operation never gets through")
					}
					if !faultAt(t, place, n, op) {
						break
					}
				}
			}
		})
	}
}

// faultAt runs op with the n-th step failing, and reports whether it has so many.
func faultAt(t *testing.T, place string, n int, op func(w *world) error) bool {
	w := newWorld(t, Options{})
	defer w.stop()
	w.remote("base", "", w.fs.layer("base", true))
	w.remote("removable", "", w.fs.layer("removable", true))
	w.fs.layer("upper", true)
	if _, err := w.Prepare(t.Context(), "active", "base"); err != nil {
		t.Fatal(err)
	}
	before := w.names()
	var reached func() bool
	if place == "metadata" {
		w.meta.steps, w.meta.failAt = 0, n
		reached = func() bool { return w.meta.steps >= n }
	} else {
		w.fs.calls, w.fs.failAt = 0, n
		reached = func() bool { return w.fs.calls >= n }
	}
	err := op(w)
	hit := reached()
	if err != nil && !errors.Is(err, errInjected) {
		t.Errorf("%s fault %d: %v", place, n, err)
	}
	if !hit && err != nil {
		t.Errorf("%s fault %d: failed without a fault: %v", place, n, err)
	}
	w.meta.failAt, w.fs.failAt = 0, 0
	if n := w.fs.holds(); n > len(w.names()) {
		t.Errorf("%s fault %d: %d layers are held", place, n, n)
	}
	w.reopen()
	if err != nil {
		if diff := cmp.Diff(before, w.names()); diff != "" {
			t.Errorf("%s fault %d: %s", place, n, diff)
		}
		w.checkNoLeak()
		if err := op(w); err != nil {
			t.Errorf("%s fault %d: again: %v", place, n, err)
		}
	}
	w.checkNoLeak()
	return hit
}

// reopen opens the layers that a fault has kept their snapshots from holding:
// a snapshot that is committed is good even so.
func (w *world) reopen() {
	w.t.Helper()
	remote, err := w.remoteSnapshots(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range remote {
		h, err := w.layerOf(w.t.Context(), l)
		if err != nil {
			w.t.Fatal(err)
		}
		if err := w.Snapshotter.holds.giveBack(h); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestNothingHeldOverCalls: no transaction is open while the file system works.
func TestNothingHeldOverCalls(t *testing.T) {
	w := newWorld(t, Options{})
	base, pending := w.fs.layer("base", true), w.fs.layer("pending", true)
	var mu sync.Mutex
	calls := map[string]int{}
	check := func(call string) {
		mu.Lock()
		defer mu.Unlock()
		calls[call]++
		if n := w.meta.open.Load(); n != 0 {
			t.Errorf("%d transactions are open during %s", n, call)
		}
	}
	w.fs.onCall.Store(&check)
	w.remote("base", "", base)
	w.remote("upper", "base", pending)
	w.fs.edit(pending, func(l *fakeLayer) { l.resolved = false })
	ctx := t.Context()
	if _, err := w.View(ctx, "view", "upper"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Mounts(ctx, "view"); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Usage(ctx, "base"); err != nil {
		t.Fatal(err)
	}
	for _, call := range []string{"open", "dir", "resolve", "usage"} {
		if calls[call] == 0 {
			t.Errorf("no call of %s", call)
		}
	}
}

// TestRace: of many Prepares for one target one commits, and all say so.
func TestRace(t *testing.T) {
	w := newWorld(t, Options{})
	dgst := w.fs.layer("base", true)
	for round := range 5 {
		target := fmt.Sprint("base", round)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				key := fmt.Sprint(target, "-key", i)
				_, err := w.Prepare(t.Context(), key, "", snapshots.WithLabels(remoteLabels(target, dgst)))
				if !cerrdefs.IsAlreadyExists(err) {
					t.Errorf("prepare %s: %v", key, err)
				}
			})
		}
		wg.Wait()
		w.checkNoLeak()
	}
	if n := len(w.names()); n != 5 {
		t.Errorf("%d snapshots", n)
	}
}

// TestUpdateOfTemporaryLabels: they are answered, and not stored.
func TestUpdateOfTemporaryLabels(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	dgst := w.fs.layer("base", true)
	w.remote("base", "", dgst)
	w.plain("plain", "")
	stored, err := w.Stat(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	// An image that shares the layer, as BuildKit's mount of it says.
	given := map[string]string{
		labelReference + suffix: "other.example/x:1", labelDigest + suffix: dgst.String(),
		labelSession + ".0" + suffix: "s1", labelSession + ".1" + suffix: "s2",
	}
	var fields []string
	for k := range given {
		fields = append(fields, "labels."+k)
	}
	steps := w.meta.steps
	got, err := w.Update(ctx, snapshots.Info{Name: "base", Labels: given}, fields...)
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range given {
		if got.Labels[k] != v {
			t.Errorf("label %s is %q", k, got.Labels[k])
		}
	}
	if n := w.meta.steps - steps; n != 1 {
		t.Errorf("%d steps of transactions for what is not to be stored", n)
	}
	// And BuildKit's way of taking them back.
	for k := range given {
		given[k] = ""
	}
	if _, err := w.Update(ctx, snapshots.Info{Name: "base", Labels: given}, fields...); err != nil {
		t.Fatal(err)
	}
	after, err := w.Stat(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(stored, after); diff != "" {
		t.Error(diff)
	}

	// Beside another label they are written, as the caller says.
	mixed := map[string]string{"x": "y", labelSession + ".0" + suffix: "s1"}
	if _, err := w.Update(ctx, snapshots.Info{Name: "base", Labels: mixed}, "labels.x", "labels."+labelSession+".0"+suffix); err != nil {
		t.Fatal(err)
	}
	if info, _ := w.Stat(ctx, "base"); info.Labels["x"] != "y" || info.Labels[labelSession+".0"+suffix] != "s1" {
		t.Errorf("labels %v", info.Labels)
	}

	// On a plain snapshot they are labels like others.
	if _, err := w.Update(ctx, snapshots.Info{Name: "plain", Labels: map[string]string{labelReference + suffix: "x"}}, "labels."+labelReference+suffix); err != nil {
		t.Fatal(err)
	}
	if info, _ := w.Stat(ctx, "plain"); info.Labels[labelReference+suffix] != "x" {
		t.Errorf("labels %v", info.Labels)
	}
	if _, err := w.Update(ctx, snapshots.Info{Name: "nobody"}, "labels."+labelReference+suffix); !cerrdefs.IsNotFound(err) {
		t.Errorf("update of nobody: %v", err)
	}
}

// TestUpdateOfStoredTemporaryLabels: stock stores them, so they can be removed.
func TestUpdateOfStoredTemporaryLabels(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	w.remote("base", "", w.fs.layer("base", true))
	info, err := w.Stat(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	info.Labels[labelSession+".0"+suffix] = "dead"
	if _, err := w.Update(ctx, info); err != nil { // all labels at once: stored
		t.Fatal(err)
	}
	key := labelSession + ".0" + suffix
	if _, err := w.Update(ctx, snapshots.Info{Name: "base", Labels: map[string]string{key: ""}}, "labels."+key); err != nil {
		t.Fatal(err)
	}
	info, err = w.Stat(ctx, "base")
	if err != nil {
		t.Fatal(err)
	}
	if v := info.Labels[key]; v != "" {
		t.Fatalf("the label is still %q", v)
	}
}

func TestUsage(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	dgst := w.fs.layer("base", true, "a")
	w.remote("base", "", dgst)
	var asked digest.Digest
	w.fs.usageOf = func(d digest.Digest) (int64, error) { asked = d; return 12345, nil }
	got, err := w.Usage(ctx, "base")
	if err != nil || got != (snapshots.Usage{Size: 12345}) || asked != dgst {
		t.Fatalf("%+v of %s, %v", got, asked, err)
	}
	w.fs.usageOf = func(digest.Digest) (int64, error) { return 0, errInjected }
	if _, err := w.Usage(ctx, "base"); !errors.Is(err, errInjected) || !strings.Contains(err.Error(), dgst.String()) {
		t.Fatalf("error %v", err)
	}
	if _, err := w.Usage(ctx, "nobody"); !cerrdefs.IsNotFound(err) {
		t.Fatalf("error %v", err)
	}
	// A child counts its own files only, before and after the commit.
	if _, err := w.Prepare(ctx, "child", "base"); err != nil {
		t.Fatal(err)
	}
	empty, err := w.Usage(ctx, "child")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.dirs.upper(w.id("child")), "f"), make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
	filled, err := w.Usage(ctx, "child")
	if err != nil || filled.Size-empty.Size < 1<<16 || filled.Inodes != empty.Inodes+1 {
		t.Fatalf("%+v after %+v, %v", filled, empty, err)
	}
	if err := w.Commit(ctx, "committed", "child"); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Usage(ctx, "committed"); err != nil || got != filled {
		t.Fatalf("%+v, %v", got, err)
	}
}

func TestCommitErrors(t *testing.T) {
	w := newWorld(t, Options{})
	ctx := t.Context()
	w.plain("base", "")
	for _, key := range []string{"a", "b"} {
		if _, err := w.Prepare(ctx, key, ""); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.View(ctx, "view", "base"); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		name, key string
		is        func(error) bool
	}{
		"no key":    {"x", "nobody", cerrdefs.IsNotFound},
		"a view":    {"x", "view", cerrdefs.IsFailedPrecondition},
		"committed": {"x", "base", cerrdefs.IsFailedPrecondition},
		"name":      {"base", "a", cerrdefs.IsAlreadyExists},
	} {
		if err := w.Commit(ctx, tt.name, tt.key); !tt.is(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := w.Remove(ctx, "base"); !cerrdefs.IsFailedPrecondition(err) {
		t.Errorf("remove of a parent: %v", err)
	}
	w.checkNoLeak()
}

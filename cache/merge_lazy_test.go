package cache

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	bksession "github.com/moby/buildkit/session"
)

// collecting runs the garbage collector before every call that the manager makes,
// until the returned function is called.
func (w *world) collecting() (stop func()) {
	w.faults.hook(func(name string) {
		if !underLock(name) {
			if _, err := w.mdb.GarbageCollect(w.ctx()); err != nil {
				w.t.Errorf("collect garbage before %s: %v", name, err)
			}
		}
	})
	return func() { w.faults.hook(nil) }
}

func (w *world) merge(inputs ...bkcache.ImmutableRef) *immutableRef {
	w.t.Helper()
	h, err := w.m.Merge(w.ctx(), inputs, nil)
	if err != nil {
		w.t.Fatalf("merge: %v", err)
	}
	return h.(*immutableRef)
}

func (w *world) diff(lower, upper bkcache.ImmutableRef) *immutableRef {
	w.t.Helper()
	h, err := w.m.Diff(w.ctx(), lower, upper, nil)
	if err != nil {
		w.t.Fatalf("diff: %v", err)
	}
	return h.(*immutableRef)
}

// TestLazyMerges: layers that come from blobs are stacked, not copied, whatever the
// garbage collector does meanwhile; those that steps have written are applied.
func TestLazyMerges(t *testing.T) {
	two := []layerKind{lazyLayer, zstdLayer}
	for _, c := range []struct {
		name  string
		make  func(w *world) (h *immutableRef, files []string, refs []bkcache.Ref)
		chain string   // of the result, from the top: r(emote), p(lain)
		pulls []string // what is fetched
	}{
		{"two images", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b := w.layers("a", two...), w.layers("b", two...)
			ha, hb := w.pull(a...), w.pull(b...)
			return w.merge(ha, hb), append(names(a...), names(b...)...), []bkcache.Ref{ha, hb}
		}, "prrrr", nil},
		{"three images, the first two prepared before", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b, c := w.layers("a", two...), w.layers("b", two...), w.layers("c", two...)
			ha, hb, hc := w.pull(a...), w.pull(b...), w.pull(c...)
			w.checkFiles(ha, names(a...)...)
			w.checkFiles(hb, names(b...)...)
			return w.merge(ha, hb, hc), append(append(names(a...), names(b...)...), names(c...)...), []bkcache.Ref{ha, hb, hc}
		}, "prrrrrr", nil},
		{"the same image twice", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a := w.layers("a", two...)
			h := w.pull(a...)
			return w.merge(h, h), names(a...), []bkcache.Ref{h}
		}, "prrrr", nil},
		{"images on the same base", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			base := w.layers("base", lazyLayer)
			a := append(slices.Clone(base), w.layers("a", lazyLayer)...)
			b := append(slices.Clone(base), w.layers("b", lazyLayer)...)
			ha, hb := w.pull(a...), w.pull(b...)
			return w.merge(ha, hb), append(names(a...), names(b...)...), []bkcache.Ref{ha, hb}
		}, "prrrr", nil},
		{"a merge of a merge", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b, c := w.layers("a", lazyLayer), w.layers("b", lazyLayer), w.layers("c", lazyLayer)
			ha, hb, hc := w.pull(a...), w.pull(b...), w.pull(c...)
			ab := w.merge(ha, hb)
			return w.merge(ab, hc), append(append(names(a...), names(b...)...), names(c...)...), []bkcache.Ref{ha, hb, hc, ab}
		}, "prrr", nil},
		{"a step's layer on a lazy image", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b := w.layers("a", two...), w.layers("b", lazyLayer)
			ha, hb := w.pull(a...), w.pull(b...)
			step := w.step(hb, "step")
			diff := w.diff(hb, step)
			return w.merge(ha, diff), append(names(a...), "step"), []bkcache.Ref{ha, hb, step, diff}
		}, "prr", nil},
		{"a lazy image on a step's layer", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b := w.layers("a", lazyLayer), w.layers("b", two...)
			ha, hb := w.pull(a...), w.pull(b...)
			step := w.step(ha, "step")
			return w.merge(step, hb), append(append(names(a...), names(b...)...), "step"), []bkcache.Ref{ha, hb, step}
		}, "prrpr", nil},
		{"a plain image between lazy ones", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			a, b, c := w.layers("a", lazyLayer), w.layers("b", plainLayer), w.layers("c", lazyLayer)
			ha, hb, hc := w.pull(a...), w.pull(b...), w.pull(c...)
			return w.merge(ha, hb, hc), append(append(names(a...), names(b...)...), names(c...)...), []bkcache.Ref{ha, hb, hc}
		}, "", []string{"unlazy b0-plain"}},
		{"what an image adds to its base", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			base := w.layers("base", two...)
			top := w.layers("top", two...)
			lower, upper := w.pull(base...), w.pull(append(slices.Clone(base), top...)...)
			return w.diff(lower, upper), names(top...), []bkcache.Ref{lower, upper}
		}, "prr", nil},
		{"one layer of an image", func(w *world) (*immutableRef, []string, []bkcache.Ref) {
			base := w.layers("base", two...)
			top := w.layers("top", lazyLayer)
			lower, upper := w.pull(base...), w.pull(append(slices.Clone(base), top...)...)
			return w.diff(lower, upper), names(top...), []bkcache.Ref{lower, upper}
		}, "pr", nil},
	} {
		for _, collects := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, collecting %v", c.name, collects), func(t *testing.T) {
				w := newWorld(t, true)
				stop := func() {}
				if collects {
					stop = w.collecting()
				}
				h, files, refs := c.make(w)
				w.reg.happened()
				w.faults.fail(0)
				if err := h.Extract(w.ctx(), group("s")); err != nil {
					t.Fatal(err)
				}
				calls := w.faults.calls()
				w.faults.disarm()
				if got := w.reg.happened("unlazy", "provide"); !slices.Equal(got, c.pulls) {
					t.Errorf("fetched: %v, want %v", got, c.pulls)
				}
				if n := countPrefix(calls, "apply "); n != len(c.pulls) {
					t.Errorf("%d layers were extracted, want %d", n, len(c.pulls))
				}
				w.quiet() // the temporary leases are gone now
				w.collect()
				chain := ""
				for _, s := range w.chainOf(h) {
					chain += s[:1]
				}
				if c.chain != "" && chain != c.chain {
					t.Errorf("snapshots from the top are %s, want %s", chain, c.chain)
				}
				w.checkFiles(h, files...)
				w.release(refs...)
				w.collect()
				w.checkFiles(h, files...)
				stop()
				w.done(h)
			})
		}
	}
}

func countPrefix(list []string, prefix string) (n int) {
	for _, s := range list {
		if strings.HasPrefix(s, prefix) {
			n++
		}
	}
	return n
}

// TestNamesOfStacks: the snapshots of a lazy merge are those that an image with the
// same layers has, so such an image needs nothing more, and the other way round.
func TestNamesOfStacks(t *testing.T) {
	for _, imageFirst := range []bool{false, true} {
		t.Run(fmt.Sprintf("image first %v", imageFirst), func(t *testing.T) {
			w := newWorld(t, true)
			a, b := w.layers("a", lazyLayer, lazyLayer), w.layers("b", lazyLayer, lazyLayer)
			ha, hb := w.pull(a...), w.pull(b...)
			merge, image := w.merge(ha, hb), w.pull(append(slices.Clone(a), b...)...)
			first, second := merge, image
			if imageFirst {
				first, second = image, merge
			}
			if err := first.Extract(w.ctx(), group("s")); err != nil {
				t.Fatal(err)
			}
			before := w.look()
			if err := second.Extract(w.ctx(), group("s")); err != nil {
				t.Fatal(err)
			}
			var made []string
			for name := range w.look().snapshots {
				if before.snapshots[name] == "" && name != merge.snapshotID() && name != hb.snapshotID() && name != hb.parents.layer.snapshotID() {
					made = append(made, name)
				}
			}
			if len(made) > 0 {
				t.Errorf("new snapshots: %v", made)
			}
			info, err := w.snaps.Stat(w.ctx(), merge.snapshotID())
			if err != nil || info.Parent != image.snapshotID() {
				t.Errorf("the merge stands on %s, the image is %s: %v", info.Parent, image.snapshotID(), err)
			}
			want := append(names(a...), names(b...)...)
			w.checkFiles(merge, want...)
			w.checkFiles(image, want...)
			w.done(ha, hb, merge, image)
		})
	}
}

// TestStepsOnMerges: a step on a lazy merge, its layer, and reads after a restart.
func TestStepsOnMerges(t *testing.T) {
	w := newWorld(t, true)
	defer w.collecting()()
	a, b := w.layers("a", lazyLayer, plainLayer), w.layers("b", lazyLayer)
	ha, hb := w.pull(a...), w.pull(b...)
	merge := w.merge(ha, hb)
	step := w.step(merge, "step")
	want := append(append(names(a...), names(b...)...), "step")
	w.checkFiles(step, want...)
	if _, err := step.GetRemotes(w.ctx(), true, gzipRefs, false, group("s")); err != nil {
		t.Fatal(err)
	}
	if got := w.reg.happened("unlazy", "provide"); !slices.Equal(got, []string{"unlazy a1-plain"}) {
		t.Errorf("fetched for the step's own layer: %v", got)
	}
	id := step.ID()
	w.release(ha, hb, merge, step)
	w.restart()
	step = w.get(id)
	w.checkFiles(step, want...)
	var none bksession.Group
	if err := step.Extract(w.ctx(), none); err != nil {
		t.Error(err)
	}
	w.faults.hook(nil)
	w.done(step)
}

// TestStackOfAnother: a merge that finds its snapshots made by an image keeps them,
// whenever the image goes.
func TestStackOfAnother(t *testing.T) {
	w := newWorld(t, true)
	for n, more := 1, true; more; n++ {
		a, b := w.layers("a", lazyLayer), w.layers("b", lazyLayer)
		ha, hb, image := w.pull(a...), w.pull(b...), w.pull(a[0], b[0])
		if err := image.Extract(w.ctx(), group("s")); err != nil {
			t.Fatal(err)
		}
		step := w.step(ha, "step")
		diff := w.diff(ha, step)
		merge := w.merge(ha, hb, diff)
		more = false
		w.faults.arm(n, func(name string) error {
			more = true
			if underLock(name) {
				return nil
			}
			w.release(image)
			return w.m.Prune(w.ctx(), nil, client.PruneInfo{All: true})
		})
		err := merge.Extract(w.ctx(), group("s"))
		hit := w.faults.disarm()
		if err != nil {
			t.Errorf("the image goes at call %d, %s: %v", n, hit, err)
		} else {
			w.checkFiles(merge, append(append(names(a...), names(b...)...), "step")...)
		}
		w.release(image, ha, hb, step, diff, merge)
		w.done()
		w.reg.forget()
		if t.Failed() {
			break
		}
	}
}

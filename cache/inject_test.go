package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/compression"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// scenario is an operation that faults are injected into.
type scenario struct {
	name string
	lazy bool
	// setup makes what the operation needs and returns it. After success the
	// operation returns a function that checks the outcome and gives it up.
	setup func(w *world) (op func(ctx context.Context) (verify func(), err error), done func())
}

// spared are failures that cost something, but not the operation: of a call, or of
// one that is made below a function.
var spared = []struct{ call, below, why string }{
	{"lease.Delete", "", "a temporary lease expires by itself"},
	{"lease.DeleteResource", "", "the resource goes with its lease"},
	{"sn.Remove", "", "the garbage collector removes it"},
	{"content.Abort", "", "the garbage collector removes it"},
	{"meta.Get", "", "it is asked about new ids only, which have nothing stored"},
	{"meta.View", "(*immutableRef).FileList", "the list is made again"},
	{"lazy.Resolve", "", "the layer is pulled whole"},
	{"fs.Open", "", "the layer is pulled whole"},
	{"fs.Dir", "", "the layer is pulled whole, or its directory asked for again"},
	{"sn.Prepare", "(*Manager).prepareRemote", "the layer is pulled whole"},
	{"sn.Stat", "(*Manager).prepareRemote", "the layer is pulled whole"},
	{"lazy.Unlazy", "", "the handler's provider has the blob, too"},
	{"content.", "content.WriteBlob", "the handler's provider has the blob, too"},
	{"content.Info", "pullprogress.", "it is for progress only"},
	{"content.", "(*differ).overlay", "the trees are compared instead"},
	{"content.", "(*record).variantOf", "it is converted again, to the same bytes"},
	{"content.", "estargzType.Is", "BuildKit asks it before it reads gzip"},
	{"meta.", "(*Manager).eraseAll", "it is erased by the next prune"},
}

func spares(call, where string) bool {
	return slices.ContainsFunc(spared, func(s struct{ call, below, why string }) bool {
		return strings.HasPrefix(call, s.call) && strings.Contains(where, s.below)
	})
}

func scenarios() []scenario {
	var list []scenario
	for _, lazy := range []bool{false, true} {
		suffix := " of plain layers"
		kinds := []layerKind{plainLayer, layoutLayer}
		if lazy {
			suffix = " of lazy layers"
			kinds = []layerKind{plainLayer, lazyLayer}
		}
		image := func(w *world) (*immutableRef, []string) {
			layers := w.layers("base", kinds...)
			return w.pull(layers...), names(layers...)
		}
		add := func(name string, setup func(w *world) (func(context.Context) (func(), error), func())) {
			list = append(list, scenario{name: name + suffix, lazy: lazy, setup: setup})
		}

		add("pull", func(w *world) (func(context.Context) (func(), error), func()) {
			layers := w.layers("base", kinds...)
			below := w.pull(layers[:1]...)
			dhs := w.handlers(layers...)
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.GetByBlob(ctx, layers[1].desc, below, dhs, bkcache.WithImageRef(testImage))
				if err != nil {
					return nil, err
				}
				return func() { w.checkFiles(h, names(layers[:2]...)...); w.release(h) }, nil
			}, func() { w.release(below) }
		})
		add("pull again", func(w *world) (func(context.Context) (func(), error), func()) {
			layers := w.layers("base", kinds...)
			top := w.pull(layers...)
			layers[0].image = "registry.example/other:2"
			dhs := w.handlers(layers...)
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.GetByBlob(ctx, layers[0].desc, nil, dhs, bkcache.WithImageRef("registry.example/other:2"))
				if err != nil {
					return nil, err
				}
				return func() {
					if !slices.Contains(h.(*immutableRef).ancestry(), h.(*immutableRef).record) || len(w.m.mu.records) != len(layers) {
						w.t.Errorf("%d records of %d layers", len(w.m.mu.records), len(layers))
					}
					w.release(h)
				}, nil
			}, func() { w.release(top) }
		})
		add("extract", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			return func(ctx context.Context) (func(), error) {
				if err := base.Extract(ctx, group("s")); err != nil {
					return nil, err
				}
				return func() { w.checkFiles(base, files...) }, nil
			}, func() { w.release(base) }
		})
		add("new", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			return func(ctx context.Context) (func(), error) {
				mut, err := w.m.New(ctx, base, group("s"), bkcache.WithDescription("a step"))
				if err != nil {
					return nil, err
				}
				return func() {
					if got := mut.GetDescription(); got != "a step" {
						w.t.Errorf("description %q", got)
					}
					w.write(mut, "new")
					c, err := mut.Commit(w.ctx())
					if err != nil {
						w.t.Fatal(err)
					}
					w.checkFiles(c, append(files, "new")...)
					w.release(c)
				}, nil
			}, func() { w.release(base) }
		})
		add("new on a twin", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			twin := w.step(base, "step")
			w.release(base)
			return func(ctx context.Context) (func(), error) {
				mut, err := w.m.New(ctx, twin, group("s"))
				if err != nil {
					return nil, err
				}
				return func() {
					w.write(mut, "new")
					c, err := mut.Commit(w.ctx())
					if err != nil {
						w.t.Fatal(err)
					}
					w.checkFiles(c, append(files, "step", "new")...)
					w.release(c)
				}, nil
			}, func() { w.release(twin) }
		})
		add("commit", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			mut, err := w.m.New(w.ctx(), base, group("s"), bkcache.WithDescription("a step"))
			if err != nil {
				w.t.Fatal(err)
			}
			w.write(mut, "step")
			w.release(base)
			return func(ctx context.Context) (func(), error) {
				c, err := mut.Commit(ctx)
				if err != nil {
					return nil, err
				}
				return func() {
					w.checkFiles(c, append(files, "step")...)
					if got := c.GetDescription(); got != "a step" {
						w.t.Errorf("description %q", got)
					}
					w.release(c)
				}, nil
			}, func() { w.release(mut) }
		})
		add("finalize", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			twin := w.step(base, "step")
			w.release(base)
			return func(ctx context.Context) (func(), error) {
				if err := twin.Finalize(ctx); err != nil {
					return nil, err
				}
				return func() { w.checkFiles(twin, append(files, "step")...) }, nil
			}, func() { w.release(twin) }
		})
		add("mount", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			if err := base.Extract(w.ctx(), group("s")); err != nil {
				w.t.Fatal(err)
			}
			return func(ctx context.Context) (func(), error) {
				mountable, err := base.Mount(ctx, true, group("s"))
				if err != nil {
					return nil, err
				}
				_, release, err := mountable.Mount()
				if err != nil {
					return nil, err
				}
				if release != nil {
					if err := release(); err != nil {
						return nil, err
					}
				}
				return func() { w.checkFiles(base, files...) }, nil
			}, func() { w.release(base) }
		})
		add("mount for writing", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			mut, err := w.m.New(w.ctx(), base, group("s"))
			if err != nil {
				w.t.Fatal(err)
			}
			w.release(base)
			return func(ctx context.Context) (func(), error) {
				mountable, err := mut.Mount(ctx, false, group("s"))
				if err != nil {
					return nil, err
				}
				_, release, err := mountable.Mount()
				if err != nil {
					return nil, err
				}
				if err := release(); err != nil {
					return nil, err
				}
				return func() {
					w.write(mut, "step")
					c, err := mut.Commit(w.ctx())
					if err != nil {
						w.t.Fatal(err)
					}
					w.checkFiles(c, append(files, "step")...)
					w.release(c)
				}, nil
			}, func() { w.release(mut) }
		})
		add("get", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			twin := w.step(base, "step")
			w.release(base)
			id := twin.ID()
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.Get(ctx, id, nil)
				if err != nil {
					return nil, err
				}
				return func() { w.checkFiles(h, append(files, "step")...); w.release(h) }, nil
			}, func() { w.release(twin) }
		})
		add("get what nobody has committed", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			mut, err := w.m.New(w.ctx(), base, group("s"), bkcache.CachePolicyRetain)
			if err != nil {
				w.t.Fatal(err)
			}
			w.write(mut, "step")
			w.release(base, mut)
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.Get(ctx, mut.ID(), nil)
				if err != nil {
					return nil, err
				}
				return func() { w.checkFiles(h, append(files, "step")...); w.release(h) }, nil
			}, func() {}
		})
		add("get a twin for writing", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			twin := w.step(base, "step")
			id := keyTwin.get(twin.meta)
			w.release(base, twin)
			return func(ctx context.Context) (func(), error) {
				mut, err := w.m.GetMutable(ctx, id)
				if err != nil {
					return nil, err
				}
				return func() {
					w.write(mut, "more")
					c, err := mut.Commit(w.ctx())
					if err != nil {
						w.t.Fatal(err)
					}
					w.checkFiles(c, append(files, "step", "more")...)
					w.release(c)
				}, nil
			}, func() {}
		})
		add("release", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			mut, err := w.m.New(w.ctx(), base, group("s"))
			if err != nil {
				w.t.Fatal(err)
			}
			w.release(base)
			return func(ctx context.Context) (func(), error) {
				if err := mut.Release(ctx); err != nil {
					return nil, err
				}
				return func() {}, nil
			}, func() {}
		})
		add("prune", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			twin := w.step(base, "step")
			other := w.step(base, "other")
			if err := other.Finalize(w.ctx()); err != nil {
				w.t.Fatal(err)
			}
			w.release(base, twin, other)
			return func(ctx context.Context) (func(), error) {
				if err := w.m.Prune(ctx, nil, client.PruneInfo{All: true}); err != nil {
					return nil, err
				}
				w.faults.disarm()
				w.pruneAll()
				return w.checkEmpty, nil
			}, func() {}
		})
		add("disk usage", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			twin := w.step(base, "step")
			return func(ctx context.Context) (func(), error) {
				list, err := w.m.DiskUsage(ctx, client.DiskUsageInfo{})
				if err != nil {
					return nil, err
				}
				return func() {
					if want := len(kinds) + 1; len(list) != want {
						w.t.Errorf("%d records are listed, want %d", len(list), want)
					}
				}, nil
			}, func() { w.release(base, twin) }
		})
		add("merge", func(w *world) (func(context.Context) (func(), error), func()) {
			a, afiles := image(w)
			b := w.pull(w.layers("b", kinds[1])...)
			step := w.step(a, "step")
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.Merge(ctx, []bkcache.ImmutableRef{step, b}, nil)
				if err != nil {
					return nil, err
				}
				return func() {
					w.checkFiles(h, append(afiles, "step", "b0-"+string(kinds[1]))...)
					w.release(h)
				}, nil
			}, func() { w.release(a, b, step) }
		})
		add("extract a merge", func(w *world) (func(context.Context) (func(), error), func()) {
			a, afiles := image(w)
			b := w.pull(w.layers("b", kinds...)...)
			h, err := w.m.Merge(w.ctx(), []bkcache.ImmutableRef{a, b}, nil)
			if err != nil {
				w.t.Fatal(err)
			}
			w.release(a, b)
			return func(ctx context.Context) (func(), error) {
				if err := h.Extract(ctx, group("s")); err != nil {
					return nil, err
				}
				return func() {
					want := slices.Clone(afiles)
					for i, k := range kinds {
						want = append(want, fmt.Sprintf("b%d-%s", i, k))
					}
					w.checkFiles(h, want...)
				}, nil
			}, func() { w.release(h) }
		})
		add("diff", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			one := w.step(base, "one")
			two := w.step(one, "two")
			w.release(one)
			return func(ctx context.Context) (func(), error) {
				h, err := w.m.Diff(ctx, base, two, nil)
				if err != nil {
					return nil, err
				}
				return func() { w.checkFiles(h, "one", "two"); w.release(h) }, nil
			}, func() { w.release(base, two) }
		})
		add("extract a diff", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			step := w.step(base, "step")
			h, err := w.m.Diff(w.ctx(), base, step, nil)
			if err != nil {
				w.t.Fatal(err)
			}
			w.release(base, step)
			return func(ctx context.Context) (func(), error) {
				if err := h.Extract(ctx, group("s")); err != nil {
					return nil, err
				}
				return func() { w.checkFiles(h, "step") }, nil
			}, func() { w.release(h) }
		})
		for _, force := range []bool{false, true} {
			name := "remotes"
			cfg := cacheconfig.RefConfig{Compression: compression.New(compression.Gzip)}
			if force && !lazy {
				continue // there is nothing in it that the other one has not
			}
			if force {
				name = "remotes converted"
				cfg.Compression = compression.New(compression.Zstd).SetForce(true)
			}
			add(name, func(w *world) (func(context.Context) (func(), error), func()) {
				base, _ := image(w)
				step := w.step(base, "step")
				w.release(base)
				return func(ctx context.Context) (func(), error) {
					list, err := step.GetRemotes(ctx, true, cfg, false, group("s"))
					if err != nil {
						return nil, err
					}
					return func() { w.checkRemote(list[0].Descriptors, len(kinds)+1, cfg.Compression) }, nil
				}, func() { w.release(step) }
			})
		}
		add("remotes' blobs", func(w *world) (func(context.Context) (func(), error), func()) {
			base, _ := image(w)
			return func(ctx context.Context) (func(), error) {
				list, err := base.GetRemotes(ctx, false, cacheconfig.RefConfig{Compression: compression.New(compression.Gzip)}, false, group("s"))
				if err != nil {
					return nil, err
				}
				if err := list[0].Provider.(bkcache.Unlazier).Unlazy(ctx); err != nil {
					return nil, err
				}
				return func() {
					for _, l := range base.digests() {
						if _, err := w.content.Info(w.ctx(), l); err != nil {
							w.t.Error(err)
						}
					}
				}, nil
			}, func() { w.release(base) }
		})
		add("list files", func(w *world) (func(context.Context) (func(), error), func()) {
			base, files := image(w)
			return func(ctx context.Context) (func(), error) {
				list, err := base.FileList(ctx, group("s"))
				if err != nil {
					return nil, err
				}
				return func() {
					if want := files[len(files)-1:]; !slices.Equal(list, want) {
						w.t.Errorf("files %v, want %v", list, want)
					}
				}, nil
			}, func() { w.release(base) }
		})
	}
	return list
}

// checkRemote fails unless the descriptors are those of n layers, each of which,
// when that is forced, has the wanted compression and is in the content store.
func (w *world) checkRemote(descs []ocispecs.Descriptor, n int, comp compression.Config) {
	w.t.Helper()
	if len(descs) != n {
		w.t.Errorf("%d layers, want %d", len(descs), n)
	}
	for i, d := range descs {
		if comp.Force && d.MediaType != comp.Type.MediaType() {
			w.t.Errorf("layer %d has media type %s", i, d.MediaType)
		}
		if !comp.Force && i < n-1 {
			continue // it may be lazy
		}
		if _, err := w.content.Info(w.ctx(), d.Digest); err != nil {
			w.t.Errorf("layer %d: %v", i, err)
		}
	}
}

// TestFaults makes each call of each scenario fail in turn. The operation fails with
// that error and leaves nothing held, leased or mounted; it succeeds when it is
// tried again, unless the record was lost, which nobody finds then; and all can be
// pruned in the end.
func TestFaults(t *testing.T) {
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			s.runAll(t, false)
		})
	}
}

// TestCancels cancels the operation's context at each call in turn. Plain layers
// take no way that a chain with lazy ones does not.
func TestCancels(t *testing.T) {
	for _, s := range scenarios() {
		if !s.lazy {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			s.runAll(t, true)
		})
	}
}

// runAll runs the scenario for each of its calls, in the same world as long as
// nothing is left in it.
func (s *scenario) runAll(t *testing.T, cancels bool) {
	t.Helper()
	w := newWorld(t, s.lazy)
	step := 1
	for n := 1; s.run(t, w, n, cancels); n += step {
		if n > 3 {
			step = everyFault
		}
		w.reg.forget()
		if t.Failed() {
			w.stop()
			w = newWorld(t, s.lazy)
		}
	}
}

// run makes the n-th call fail, or cancels there. It returns false when there was no
// such call.
func (s *scenario) run(t *testing.T, w *world, n int, cancels bool) (more bool) {
	// The mounts of a containerd snapshotter can always be had once they are known,
	// so BuildKit does not expect otherwise: applierFor loses the error, and panics.
	w.faults.ignore = map[string]bool{"mountable.Mount": strings.Contains(s.name, "merge") || strings.Contains(s.name, "diff")}
	op, done := s.setup(w)
	before := w.look()
	ctx, cancel := context.WithCancel(w.ctx())
	defer cancel()
	if cancels {
		w.faults.cancel(n, cancel)
	} else {
		w.faults.fail(n)
	}
	verify, err := op(ctx)
	w.quiet()
	hit := w.faults.disarm()
	say := func(format string, args ...any) {
		t.Helper()
		t.Errorf("%s at call %d, %s: %s", map[bool]string{false: "fault", true: "cancelled"}[cancels], n, hit, fmt.Sprintf(format, args...))
	}
	if err == nil {
		if hit != "" && !cancels && !spares(hit, w.faults.where) {
			say("the operation succeeds: %s", w.faults.where)
		}
	} else {
		switch {
		case hit == "":
			t.Errorf("without any fault: %v", err)
		case !cancels && !errors.Is(err, errInjected):
			say("the cause is hidden: %v", err)
		case cancels && !errors.Is(err, context.Canceled):
			say("the cause is hidden: %v", err)
		}
		if err := w.m.Prune(w.ctx(), nil); err != nil { // erases what could not be erased
			say("prune: %v", err)
		}
		if hit == "lease.Delete" {
			w.expire(before)
		}
		lost := hit == "fs.Committed" && errors.Is(err, errLost)
		if list := before.differences(w.look()); len(list) > 0 && !lost && !strings.HasPrefix(s.name, "release") && !strings.HasPrefix(s.name, "prune") {
			say("after it (%v):\n  %s", err, strings.Join(list, "\n  "))
		}
		verify, err = op(w.ctx())
		if lost {
			w.checkNothingLost()
		}
		if lost && w.lazy {
			say("a snapshot can't be had again: %v", err)
		}
		if lost != errors.Is(err, errLost) || err != nil && !lost {
			say("tried again: %v", err)
		}
		if err != nil {
			verify = func() {}
		}
	}
	verify()
	done()
	if hit == "lease.Delete" {
		w.expire(before)
	}
	w.pruneAll()
	failed := t.Failed()
	w.checkEmpty()
	if t.Failed() && !failed {
		say("left something")
	}
	return hit != ""
}

// checkNothingLost fails if a record can be found whose snapshot is in the table of
// containerd only.
func (w *world) checkNothingLost() {
	w.t.Helper()
	for _, r := range w.m.mu.records {
		if !r.mutable {
			continue
		}
		if _, err := w.snaps.Stat(w.ctx(), r.snapshotID()); err != nil {
			w.t.Errorf("record %s can be found: %v", r.ID(), err)
		}
	}
}

// expire ends the temporary leases that were not there before, as time does.
func (w *world) expire(before *picture) {
	w.t.Helper()
	list, err := w.leases.List(w.ctx())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range list {
		_, temporary := l.Labels["containerd.io/gc.expire"]
		if _, ok := before.leases[l.ID]; temporary && !ok {
			if err := w.leases.Delete(w.ctx(), l); err != nil {
				w.t.Fatal(err)
			}
		}
	}
	w.collect()
}

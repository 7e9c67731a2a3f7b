package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// mixtures are all chains of a length of layers of the given kinds.
func mixtures(n int, kinds ...layerKind) (list [][]layerKind) {
	if n == 0 {
		return [][]layerKind{nil}
	}
	for _, below := range mixtures(n-1, kinds...) {
		for _, k := range kinds {
			list = append(list, append(slices.Clone(below), k))
		}
	}
	return list
}

// TestMixtures: of a chain, the layers that can't be lazy are pulled and extracted,
// each once, and all others become remote snapshots without a byte of them.
func TestMixtures(t *testing.T) {
	for n := 1; n <= 4; n++ {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			w := newWorld(t, true)
			for i, kinds := range mixtures(n, lazyLayer, plainLayer, layoutLayer) {
				w.checkMixture(fmt.Sprintf("c%d.", i), kinds)
			}
			w.pruneAll()
			w.checkEmpty()
		})
	}
}

func (w *world) checkMixture(prefix string, kinds []layerKind) {
	t := w.t
	t.Helper()
	layers := w.layers(prefix, kinds...)
	h := w.pull(layers...)
	defer w.release(h)
	w.reg.happened()
	w.faults.fail(0)
	if err := h.Extract(w.ctx(), group("s")); err != nil {
		t.Fatalf("%v: %v", kinds, err)
	}
	w.faults.disarm()
	var wantChain, wantGot, wantApplied []string
	for _, l := range layers {
		switch l.kind {
		case lazyLayer:
			wantChain = append([]string{"remote"}, wantChain...)
		case plainLayer:
			wantChain = append([]string{"plain"}, wantChain...)
			wantGot = append(wantGot, "unlazy "+l.name)
			wantApplied = append(wantApplied, "apply "+l.desc.Digest.String())
		case layoutLayer:
			wantChain = append([]string{"plain"}, wantChain...)
			wantGot = append(wantGot, "provide "+l.name)
			wantApplied = append(wantApplied, "apply "+l.desc.Digest.String())
		}
	}
	if got := w.chainOf(h); !slices.Equal(got, wantChain) {
		t.Errorf("%v: snapshots from the top are %v, want %v", kinds, got, wantChain)
	}
	got := w.reg.happened("unlazy", "provide")
	slices.Sort(got)
	slices.Sort(wantGot)
	if !slices.Equal(got, wantGot) {
		t.Errorf("%v: pulled %v, want %v", kinds, got, wantGot)
	}
	var applied []string
	for _, c := range w.faults.calls() {
		if strings.HasPrefix(c, "apply") {
			applied = append(applied, c)
		}
	}
	if !slices.Equal(applied, wantApplied) {
		t.Errorf("%v: extracted %v, want %v in this order", kinds, applied, wantApplied)
	}
	w.checkFiles(h, names(layers...)...)
}

// TestResolveFirst: all layers are resolved at once, and nothing is prepared before
// the last one is.
func TestResolveFirst(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", lazyLayer, plainLayer, lazyLayer, zstdLayer)
	h := w.pull(layers...)
	var open []func()
	for _, l := range layers {
		if l.kind != plainLayer { // its manifest says enough
			open = append(open, w.reg.gate("resolve "+l.name))
		}
	}
	w.faults.fail(0)
	done := make(chan error, 1)
	go func() { done <- h.Extract(w.ctx(), group("s")) }()
	for range open {
		<-w.reg.at // each is under way while all others are
	}
	for i, o := range open {
		if calls := w.faults.calls(); slices.Contains(calls, "sn.Prepare") || slices.Contains(calls, "content.Writer") {
			t.Errorf("%d of %d layers are resolved, and already %v", i, len(open), calls)
		}
		o()
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if calls := w.faults.calls(); !slices.Contains(calls, "sn.Prepare") {
		t.Errorf("nothing was prepared: %v", calls)
	}
	w.checkFiles(h, names(layers...)...)
	w.done(h)
}

// TestReasons: what disk usage says of each layer.
func TestReasons(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", lazyLayer, plainLayer, layoutLayer)
	h := w.pull(layers...)
	w.checkFiles(h, names(layers...)...)
	w.reg.usage = 40
	list, err := w.m.DiskUsage(w.ctx(), client.DiskUsageInfo{})
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]*client.UsageInfo{}
	for _, u := range list {
		got[string(keyBlob.get(w.m.lookup(u.ID).meta))] = u
	}
	for i, want := range []string{"lazy, 0.0 of 0.0 MB fetched", "not lazy: "} {
		u := got[string(layers[i].desc.Digest)]
		if !strings.Contains(u.Description, want) {
			t.Errorf("%s: %q, want %q in it", layers[i].name, u.Description, want)
		}
	}
	if u := got[string(layers[1].desc.Digest)]; !strings.Contains(u.Description, errNotBound.Error()) {
		t.Errorf("the reason is not told: %q", u.Description)
	}
	if u := got[string(layers[0].desc.Digest)]; u.Size != 40 {
		t.Errorf("the lazy layer has size %d, the file system holds 40", u.Size)
	}
	w.done(h)
}

// TestLayerWithoutTOCDigest: a layer that could be served, but whose manifest does not
// bind what would be shown to the name of its snapshot, is extracted.
func TestLayerWithoutTOCDigest(t *testing.T) {
	w := newWorld(t, true)
	l := w.layerOf(lazyLayer, "a")
	delete(l.desc.Annotations, remotesnapshot.AnnotationTOCDigest)
	h := w.pull(l)
	w.checkFiles(h, "a")
	info, err := w.snaps.Stat(w.ctx(), h.snapshotID())
	if err != nil {
		t.Fatal(err)
	}
	if _, remote := info.Labels[remotesnapshot.LabelRemote]; remote {
		t.Error("it is served under a name that others may claim")
	}
	w.done(h)
}

// TestSameLayerTwice: an image may have a layer twice, in a row or not.
func TestSameLayerTwice(t *testing.T) {
	for _, kind := range []layerKind{lazyLayer, plainLayer, layoutLayer} {
		w := newWorld(t, true)
		a, b := w.layerOf(kind, "a"), w.layerOf(lazyLayer, "b")
		for _, layers := range [][]*layer{{a, a}, {a, b, a}, {b, a, a, b}} {
			h := w.pull(layers...)
			w.checkFiles(h, names(layers...)...)
			if n := len(w.chainOf(h)); n != len(layers) {
				t.Errorf("%v: %d snapshots", names(layers...), n)
			}
			w.release(h)
		}
		w.done()
	}
}

// TestSharedWork: builds that want the same layers at the same time, on their own
// or below others, resolve, pull and extract each of them once.
func TestSharedWork(t *testing.T) {
	w := newWorld(t, true)
	base := w.layers("base", lazyLayer, plainLayer, layoutLayer)
	var refs []*immutableRef
	var want [][]string
	for i := range 8 {
		layers := base
		switch i % 3 {
		case 1:
			layers = append(slices.Clone(base), w.layerOf(plainLayer, fmt.Sprint("top", i)))
		case 2:
			layers = append(slices.Clone(base), w.layerOf(lazyLayer, fmt.Sprint("top", i)))
		}
		refs = append(refs, w.pull(layers...))
		want = append(want, names(layers...))
	}
	w.reg.happened()
	w.faults.fail(0)
	var wg sync.WaitGroup
	for _, h := range refs {
		wg.Go(func() {
			if err := h.Extract(w.ctx(), group("s")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	calls := w.faults.calls()
	w.faults.disarm()
	for _, l := range base {
		n := 0
		for _, c := range calls {
			if c == "apply "+l.desc.Digest.String() {
				n++
			}
		}
		if wantApplied := map[layerKind]int{plainLayer: 1, layoutLayer: 1}[l.kind]; n != wantApplied {
			t.Errorf("%s was extracted %d times", l.name, n)
		}
	}
	events := w.reg.happened("unlazy", "provide")
	slices.Sort(events)
	if len(slices.Compact(slices.Clone(events))) != len(events) {
		t.Errorf("pulled twice: %v", events)
	}
	for i, h := range refs {
		w.checkFiles(h, want[i]...)
		w.release(h)
	}
	w.done()
}

// TestPartOfSharedWork: a caller that leaves does not end the work of the others,
// and when all have left it ends.
func TestPartOfSharedWork(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", lazyLayer, plainLayer)
	a, b := w.pull(layers...), w.pull(layers...)
	open := w.reg.gate("resolve a0-lazy")
	defer open()
	ctx, cancel := context.WithCancel(w.ctx())
	first, second := make(chan error, 1), make(chan error, 1)
	go func() { first <- a.Extract(ctx, group("one")) }()
	<-w.reg.at
	go func() { second <- b.Extract(w.ctx(), group("two")) }()
	time.Sleep(10 * time.Millisecond) // it is a waiter now, or will share the resolve
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the one that left: %v", err)
	}
	select {
	case err := <-second:
		t.Fatalf("the other one ended as well: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	open()
	if err := <-second; err != nil {
		t.Fatal(err)
	}
	w.checkFiles(b, names(layers...)...)
	w.done(a, b)

	w.reg.forget()
	a = w.pull(layers...)
	open = w.reg.gate("resolve a0-lazy")
	defer open()
	ctx, cancel = context.WithCancel(w.ctx())
	go func() { first <- a.Extract(ctx, group("one")) }()
	<-w.reg.at
	cancel()
	if err := <-first; !errors.Is(err, context.Canceled) {
		t.Errorf("the only one: %v", err)
	}
	w.done(a)
}

// soon is an operation's error, which has to come.
func (w *world) soon(c <-chan error) error {
	w.t.Helper()
	select {
	case err := <-c:
		return err
	case <-time.After(20 * time.Second):
		w.t.Fatal("an operation hangs")
		return nil
	}
}

// TestLeaversHurtNobody: builds share the work on the layers that they have in
// common. What ends one of them (its user, or a layer that only it needs) does not
// end the others.
func TestLeaversHurtNobody(t *testing.T) {
	for _, kind := range []layerKind{plainLayer, layoutLayer} {
		for _, fails := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, own layer fails %v", kind, fails), func(t *testing.T) {
				w := newWorld(t, true)
				defer w.collecting()()
				base := w.layerOf(kind, "base")
				own := w.layerOf(layoutLayer, "own")
				mine, other := w.pull(base, own), w.pull(base, w.layerOf(plainLayer, "other"))
				openApply := w.faults.gate("apply " + base.desc.Digest.String())
				defer openApply()
				openOwn := w.reg.gate("provide own")
				defer openOwn()
				ctx, cancel := context.WithCancel(w.ctx())
				defer cancel()
				first, second := make(chan error, 1), make(chan error, 1)
				go func() { first <- mine.Extract(ctx, group("one")) }()
				<-w.faults.at // it extracts the base
				go func() { second <- other.Extract(w.ctx(), group("two")) }()
				for n := 0; n < 2; { // "other" is pulled, and waits for the base
					n = countPrefix(w.reg.seen(), "unlazy other") * 2
					time.Sleep(time.Millisecond)
				}
				time.Sleep(20 * time.Millisecond)
				if fails {
					w.reg.mu.Lock()
					own.data = own.data[:10]
					w.reg.mu.Unlock()
					openOwn()
				} else {
					cancel()
				}
				if err := w.soon(first); err == nil || fails == errors.Is(err, context.Canceled) {
					t.Errorf("the one that ends: %v", err)
				}
				openApply()
				openOwn()
				if err := w.soon(second); err != nil {
					t.Errorf("the other one: %v", err)
				} else {
					w.checkFiles(other, "base", "other")
				}
				w.faults.hook(nil)
				w.done(mine, other)
			})
		}
	}
}

// TestOneMerge: several steps on a merge, and the merge itself, make it once.
func TestOneMerge(t *testing.T) {
	for _, kind := range []layerKind{lazyLayer, plainLayer} {
		w := newWorld(t, true)
		a, b := w.pull(w.layerOf(kind, "a")), w.pull(w.layerOf(kind, "b"))
		merge := w.merge(a, b)
		var refs []bkcache.Ref
		var mu sync.Mutex
		var wg sync.WaitGroup
		for i := range 6 {
			wg.Go(func() {
				var h bkcache.Ref
				var err error
				if i%2 == 0 {
					h, err = w.m.New(w.ctx(), merge, group("s"))
				} else {
					d := w.diff(a, merge)
					err = d.Extract(w.ctx(), group("s"))
					h = d
				}
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				refs = append(refs, h)
			})
		}
		wg.Wait()
		w.checkFiles(merge, "a", "b")
		w.release(refs...)
		w.done(a, b, merge)
	}
}

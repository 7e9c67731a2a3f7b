package cache

// Each of these tests failed once: what BuildKit's manager does wrong, or what ours did.

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/leaseutil"

	"github.com/lazykit/lazykit/remotesnapshot"
)

func TestCancelledBuildLeavesItsNeighbourAlone(t *testing.T) {
	w := newWorld(t, true)
	base, a, b := w.layerOf(plainLayer, "base"), w.layerOf(plainLayer, "a"), w.layerOf(plainLayer, "b")
	ha, hb := w.pull(base, a), w.pull(base, b)
	open := w.reg.gate("unlazy base")
	ctx1, cancel := context.WithCancel(context.Background())
	e1, e2 := make(chan error, 1), make(chan error, 1)
	go func() { e1 <- ha.Extract(ctx1, group("s")) }()
	<-w.reg.at
	time.Sleep(200 * time.Millisecond)
	go func() { e2 <- hb.Extract(context.Background(), group("s2")) }()
	time.Sleep(300 * time.Millisecond)
	cancel()
	t.Log("first:", <-e1)
	time.Sleep(100 * time.Millisecond)
	open()
	if err := <-e2; err != nil {
		t.Errorf("second: %v", err)
	}
	w.release(ha, hb)
}

func (w *world) remotes(h *immutableRef, all bool) (out []string) {
	rs, err := h.GetRemotes(w.ctx(), true, cacheconfig.RefConfig{Compression: compression.New(compression.Gzip)}, all, group("s"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, r := range rs {
		s := ""
		for _, d := range r.Descriptors {
			_, err := r.Provider.Info(w.ctx(), d.Digest)
			s += fmt.Sprint(d.Digest.String()[:12], " ", err, "; ")
		}
		out = append(out, s)
	}
	return out
}

func TestLayerOfADiffIsNoBaseLayer(t *testing.T) {
	w := newWorld(t, false)
	a := w.step(nil, "a")
	b := w.step(a, "b")
	d, err := w.m.Diff(w.ctx(), a, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	w.remotes(d.(*immutableRef), false)
	desc, err := b.record.descriptor(w.ctx(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("B chain", keyChainID.get(b.meta), "identity", b.identity())
	h, err := w.m.GetByBlob(w.ctx(), desc, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Log("got record", h.ID(), "B is", b.ID(), "diff is", d.ID())
	w.checkFiles(h, "b")
	w.release(a, b, d, h)
}

func TestDiffIsNotTheUpperImage(t *testing.T) {
	w := newWorld(t, false)
	l := w.layers("x", plainLayer, plainLayer)
	h0 := w.pull(l[0])
	h := w.pull(l...)
	var ds []bkcache.Ref
	for range 6 {
		d, err := w.m.Diff(w.ctx(), h0, h, nil)
		if err != nil {
			t.Fatal(err)
		}
		w.remotes(d.(*immutableRef), false)
		ds = append(ds, d)
	}
	h2 := w.pull(l...)
	t.Log("kind", h2.kind())
	w.checkFiles(h2, l[0].name, l[1].name)
	w.release(h0, h, h2)
	w.release(ds...)
}

func TestMergeOnALocalLayerOfTheSameChain(t *testing.T) {
	w := newWorld(t, true)
	mk := func() *immutableRef {
		mut, err := w.m.New(w.ctx(), nil, group("s"), bkcache.CachePolicyRetain)
		if err != nil {
			t.Fatal(err)
		}
		mountable, err := mut.Mount(w.ctx(), false, group("s"))
		if err != nil {
			t.Fatal(err)
		}
		w.inside(mountable, func(dir string) {
			p := filepath.Join(dir, "same")
			os.WriteFile(p, []byte("same"), 0o644)
			os.Chtimes(p, time.Unix(5, 0), time.Unix(5, 0))
			os.Chtimes(dir, time.Unix(5, 0), time.Unix(5, 0))
		})
		c, err := mut.Commit(w.ctx())
		if err != nil {
			t.Fatal(err)
		}
		return c.(*immutableRef)
	}
	r := mk()
	w.remotes(r, false)
	desc, err := r.record.descriptor(w.ctx(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	data, err := content.ReadBlob(w.ctx(), w.content, desc)
	if err != nil {
		t.Fatal(err)
	}
	w.release(r)
	w.pruneAll()
	l0 := &layer{kind: plainLayer, name: "same", image: testImage, data: data, desc: desc}
	w.reg.add(l0)
	l1 := w.layerOf(lazyLayer, "lazy1")
	h0, h1 := w.pull(l0), w.pull(l0, l1)
	if err := h1.Extract(w.ctx(), group("s")); err != nil {
		t.Fatal(err)
	}
	r0 := mk()
	w.remotes(r0, false)
	t.Log("r0", keyChainID.get(r0.meta), r0.snapshotID(), "h0", keyChainID.get(h0.meta), h0.snapshotID())
	d, err := w.m.Diff(w.ctx(), h0, h1, nil)
	if err != nil {
		t.Fatal(err)
	}
	mg, err := w.m.Merge(w.ctx(), []bkcache.ImmutableRef{r0, d}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := mg.Extract(w.ctx(), group("s")); err != nil {
		t.Error(err)
	}
	w.release(h0, h1, r0, d, mg)
}

func TestMergesOfDiffsOfTheSameMerge(t *testing.T) {
	w := newWorld(t, false)
	bad := 0
	for i := range 20 {
		a, b, x, y := w.step(nil, "a"), w.step(nil, "b"), w.step(nil, "x"), w.step(nil, "y")
		m1, err := w.m.Merge(w.ctx(), []bkcache.ImmutableRef{a, b}, nil)
		if err != nil {
			t.Fatal(err)
		}
		d1, _ := w.m.Diff(w.ctx(), m1, x, nil)
		d2, _ := w.m.Diff(w.ctx(), m1, y, nil)
		m2, err := w.m.Merge(w.ctx(), []bkcache.ImmutableRef{d1, d2}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := m2.Extract(w.ctx(), group("s")); err != nil {
			bad++
			if bad == 1 {
				t.Errorf("%d: %v", i, err)
			}
		}
		w.release(a, b, x, y, m1, d1, d2, m2)
	}
	t.Logf("%d of 20 failed", bad)
}

func TestCancelledPruneLosesNothing(t *testing.T) {
	w := newWorld(t, false)
	for i := range 8 {
		w.release(w.step(nil, fmt.Sprint("f", i)))
	}
	ctx, cancel := context.WithCancel(context.Background())
	ch := make(chan client.UsageInfo)
	done := make(chan error, 1)
	go func() { done <- w.m.Prune(ctx, ch, client.PruneInfo{All: true}) }()
	<-ch
	time.Sleep(50 * time.Millisecond)
	cancel()
	t.Log(<-done)
	w.pruneAll()
	w.checkEmpty()
}

func TestLazyTopmostLayerCanBeHad(t *testing.T) {
	w := newWorld(t, true)
	l := w.layers("x", lazyLayer, lazyLayer)
	h := w.pull(l...)
	for _, s := range w.remotes(h, true) {
		if strings.Count(s, "<nil>") != len(l) {
			t.Errorf("a blob can't be had: %s", s)
		}
	}
	w.release(h)
}

func TestIdentityIsOfTheTOCThatIsVerified(t *testing.T) {
	w := newWorld(t, true)
	l := w.layerOf(lazyLayer, "x")
	diffID, _ := diffIDOf(l.desc)
	one, _ := lazyIdentity(l.desc, diffID)
	l.desc.Annotations[remotesnapshot.AnnotationZstdChecksum] = "sha256:1111111111111111111111111111111111111111111111111111111111111111"
	two, _ := lazyIdentity(l.desc, diffID)
	if one == two {
		t.Error("same identity, other TOC")
	}
}

func TestTwoGetsOfAnIdleMutable(t *testing.T) {
	w := newWorld(t, false)
	for range 20 {
		mut, err := w.m.New(w.ctx(), nil, group("s"), bkcache.CachePolicyRetain)
		if err != nil {
			t.Fatal(err)
		}
		id := mut.ID()
		w.release(mut)
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() {
				h, err := w.m.Get(context.Background(), id, nil)
				if errors.Is(err, bkcache.ErrLocked) {
					t.Error(err)
					return
				}
				if err == nil {
					h.Release(context.Background())
				}
			})
		}
		wg.Wait()
	}
}

func TestSharedWorkOutlivesTheFirstLease(t *testing.T) {
	w := newWorld(t, true)
	base := w.layerOf(plainLayer, "base")
	ha, hb := w.pull(base), w.pull(base)
	open := w.reg.gate("unlazy base")
	ctx1, cancel := context.WithCancel(context.Background())
	ctx1, done, err := leaseutil.WithLease(ctx1, w.leases, leaseutil.MakeTemporary)
	if err != nil {
		t.Fatal(err)
	}
	e1, e2 := make(chan error, 1), make(chan error, 1)
	go func() { e1 <- ha.Extract(ctx1, group("s")) }()
	<-w.reg.at
	go func() { e2 <- hb.Extract(context.Background(), group("s2")) }()
	time.Sleep(200 * time.Millisecond)
	cancel()
	t.Log("first:", <-e1)
	_ = done(context.Background())
	open()
	if err := <-e2; err != nil {
		t.Errorf("second: %v", err)
	}
	w.release(ha, hb)
}

func TestMountsResolveWithSessions(t *testing.T) {
	w := newWorld(t, true)
	l := w.layerOf(lazyLayer, "l")
	h := w.pull(l)
	id := h.ID()
	if err := h.Extract(w.ctx(), group("s")); err != nil {
		t.Fatal(err)
	}
	w.release(h)
	w.restart()
	r, err := w.m.Get(w.ctx(), id, nil, w.handlers(l))
	if err != nil {
		t.Fatal(err)
	}
	mut, err := w.m.New(w.ctx(), r, group("s"))
	if err != nil {
		t.Fatal(err)
	}
	open := w.reg.gate("resolve l")
	done := make(chan error, 1)
	go func() { _, err := mut.Mount(w.ctx(), false, group("s")); done <- err }()
	t.Log(<-w.reg.at, "holds:", w.reg.held())
	if w.reg.held() == 0 {
		t.Error("resolved over the network with no session held")
	}
	open()
	t.Log(<-done)
	w.release(mut, r)
}

func TestCacheMountIsMeasuredAfterEachUse(t *testing.T) {
	w := newWorld(t, false)
	mut, err := w.m.New(w.ctx(), nil, group("s"), bkcache.CachePolicyRetain)
	if err != nil {
		t.Fatal(err)
	}
	w.write(mut, "a")
	id := mut.ID()
	w.release(mut)
	du, _ := w.m.DiskUsage(w.ctx(), client.DiskUsageInfo{})
	t.Log(du[0].Size)
	mut, err = w.m.GetMutable(w.ctx(), id)
	if err != nil {
		t.Fatal(err)
	}
	mnt, _ := mut.Mount(w.ctx(), false, group("s"))
	w.inside(mnt, func(dir string) { os.WriteFile(filepath.Join(dir, "big"), make([]byte, 50<<20), 0o644) })
	w.release(mut)
	du, _ = w.m.DiskUsage(w.ctx(), client.DiskUsageInfo{})
	if du[0].Size < 50<<20 {
		t.Errorf("size is %d", du[0].Size)
	}
}

func TestHandlerOfAnotherTOC(t *testing.T) {
	w := newWorld(t, true)
	l := w.layerOf(lazyLayer, "l")
	h := w.pull(l)
	dh := *w.handlers(l)[l.desc.Digest]
	dh.Annotations = map[string]string{remotesnapshot.AnnotationTOCDigest: "sha256:1111111111111111111111111111111111111111111111111111111111111111"}
	g, err := w.m.Get(w.ctx(), h.ID(), nil, bkcache.DescHandlers{l.desc.Digest: &dh})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Extract(w.ctx(), group("s")); err != nil {
		t.Fatal(err)
	}
	info, err := w.snaps.Stat(w.ctx(), h.snapshotID())
	if err != nil {
		t.Fatal(err)
	}
	t.Log("record's:", h.sources()[0].Annotations, "snapshot's:", info.Labels[remotesnapshot.AnnotationTOCDigest])
	if info.Labels[remotesnapshot.AnnotationTOCDigest] != l.desc.Annotations[remotesnapshot.AnnotationTOCDigest] {
		t.Error("other TOC under the same name")
	}
	w.release(h, g)
}

func TestLeaseWithoutARecordEndsAtStart(t *testing.T) {
	w := newWorld(t, false)
	if _, err := w.m.lease(w.ctx(), identity.NewID(), w.m.snapshotResource("x")); err != nil {
		t.Fatal(err)
	}
	if err := w.m.sn.Prepare(w.ctx(), "x", ""); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.pruneAll()
	w.checkEmpty()
}

// TestLeaseOfACutCommit: the power went between the lease of a record and the commit of its
// snapshot, which is the mutable record's still.
func TestLeaseOfACutCommit(t *testing.T) {
	w := newWorld(t, false)
	mut, err := w.m.New(w.ctx(), nil, nil, bkcache.CachePolicyRetain)
	if err != nil {
		t.Fatal(err)
	}
	w.write(mut, "step")
	step, err := mut.Commit(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	id := step.ID()
	if err := w.m.ensureLease(w.ctx(), id, leaseOpts(flat), w.m.snapshotResource(id)); err != nil {
		t.Fatal(err)
	}
	w.release(step)
	w.restart()
	again, err := w.m.Get(w.ctx(), id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if again.(*immutableRef).twinNow() == nil {
		t.Fatal("the record has no mutable twin")
	}
	w.release(again)
	w.pruneAll()
	w.checkEmpty()
}

// TestStepsOnAMergeOfADiff: such a merge is not known by its layers, and neither is
// what stands on it, but all of it can be exported.
func TestStepsOnAMergeOfADiff(t *testing.T) {
	w := newWorld(t, false)
	a := w.step(nil, "a")
	b := w.step(a, "b")
	d, err := w.m.Diff(w.ctx(), a, b, nil)
	if err != nil {
		t.Fatal(err)
	}
	c := w.step(nil, "c")
	m, err := w.m.Merge(w.ctx(), []bkcache.ImmutableRef{d, c}, nil)
	if err != nil {
		t.Fatal(err)
	}
	one := w.step(m.(*immutableRef), "one")
	two := w.step(one, "two")
	for _, s := range w.remotes(two, false) {
		if strings.Count(s, "<nil>") != 4 {
			t.Errorf("not all of four layers: %s", s)
		}
	}
	w.checkFiles(two, "b", "c", "one", "two")
	w.release(a, b, c, d, m, one, two)
}

// TestCommitThatIsNotNoted: containerd's database can't be written when a snapshot
// has been committed. Nothing of it is lost, neither to the collector nor to another
// process.
func TestCommitThatIsNotNoted(t *testing.T) {
	for _, then := range []string{"again", "collect", "restart", "write on"} {
		t.Run(then, func(t *testing.T) {
			w := newWorld(t, true)
			base := w.pull(w.layerOf(lazyLayer, "l"))
			mut, err := w.m.New(w.ctx(), base, group("s"), bkcache.CachePolicyRetain)
			if err != nil {
				t.Fatal(err)
			}
			id := mut.ID()
			w.write(mut, "step")
			step, err := mut.Commit(w.ctx())
			if err != nil {
				t.Fatal(err)
			}
			// Nor can anything else be on a full disk: nobody mends it at once.
			w.faults.breakCalls("fs.Committed", "sn.Stat")
			if err := step.Finalize(w.ctx()); !errors.Is(err, errInjected) {
				t.Fatalf("a commit that is not noted: %v", err)
			}
			w.faults.breakCalls()
			switch then {
			case "collect":
				w.release(w.step(base, "rubbish")) // or there is nothing to collect
				w.collect()
			case "restart":
				w.release(step, base)
				w.restart()
				base, step = w.get(base.ID()), w.get(step.ID())
			case "write on":
				w.release(step)
				mut, err := w.m.GetMutable(w.ctx(), id)
				if err != nil {
					t.Fatal(err)
				}
				w.write(mut, "more")
				if step, err = mut.Commit(w.ctx()); err != nil {
					t.Fatal(err)
				}
			}
			if err := step.Finalize(w.ctx()); err != nil {
				t.Fatal(err)
			}
			files := []string{"l", "step"}
			if then == "write on" {
				files = []string{"l", "more", "step"}
			}
			w.checkFiles(step, files...)
			w.release(step, base)
			w.pruneAll()
			w.checkEmpty()
		})
	}
}

// TestCommitThatIsBeingNoted: a snapshot is asked for by its key after it has been
// committed and before containerd's database has noted that.
func TestCommitThatIsBeingNoted(t *testing.T) {
	w := newWorld(t, true)
	base := w.pull(w.layerOf(lazyLayer, "l"))
	step := w.step(base, "step")
	key := step.twinNow().snapshotID()
	asked := make(chan error, 1)
	w.faults.hook(func(name string) {
		if name != "fs.Committed" {
			return
		}
		go func() { _, err := w.snaps.Stat(w.ctx(), key); asked <- err }()
		time.Sleep(50 * time.Millisecond)
	})
	if err := step.Finalize(w.ctx()); err != nil {
		t.Fatal(err)
	}
	w.faults.hook(nil)
	if err := <-asked; !cerrdefs.IsNotFound(err) {
		t.Errorf("snapshot that is committed: %v", err)
	}
	w.release(w.step(step, "more"))
	w.checkFiles(step, "l", "step")
	w.release(step, base)
	w.pruneAll()
	w.checkEmpty()
}

package cache

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// gzipRefs leaves layers as they are.
var gzipRefs = cacheconfig.RefConfig{Compression: compression.New(compression.Gzip)}

// spyMountable notes the mounts that it makes.
type spyMountable struct {
	snapshot.Mountable
	seen string
}

func (s *spyMountable) Mount() ([]mount.Mount, func() error, error) {
	mounts, release, err := s.Mountable.Mount()
	s.seen = fmt.Sprint(mounts)
	return mounts, release, err
}

// get holds a record without any handler, as a later build does.
func (w *world) get(id string, opts ...bkcache.RefOption) *immutableRef {
	w.t.Helper()
	h, err := w.m.Get(w.ctx(), id, nil, opts...)
	if err != nil {
		w.t.Fatalf("get: %v", err)
	}
	return h.(*immutableRef)
}

// mount mounts a record read-only for sessions and returns what the caller gets,
// not mounted yet.
func (w *world) mount(h bkcache.Mountable, s bksession.Group) snapshot.Mountable {
	w.t.Helper()
	m, err := h.Mount(w.ctx(), true, s)
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	return m
}

// use mounts and returns the release.
func (w *world) use(m snapshot.Mountable) func() {
	w.t.Helper()
	_, release, err := m.Mount()
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	return func() {
		w.t.Helper()
		if release == nil {
			return
		}
		if err := release(); err != nil {
			w.t.Errorf("release: %v", err)
		}
	}
}

// done releases, prunes and checks that nothing is left.
func (w *world) done(refs ...bkcache.Ref) {
	w.t.Helper()
	w.release(refs...)
	w.pruneAll()
	w.checkEmpty()
}

// TestRights: a build shows its right to read a lazy layer by the handler that its
// pull has made, or the registry is asked for each layer. One that may not read
// gets no mount, and nothing of its attempt stays.
func TestRights(t *testing.T) {
	t.Run("handlers prove them", func(t *testing.T) {
		w := newWorld(t, true)
		layers := w.layers("a", lazyLayer, lazyLayer)
		h := w.pull(layers...)
		w.checkFiles(h, names(layers...)...)
		got := w.reg.happened("authorize", "vouch")
		if !slices.Contains(got, "vouch a0-lazy s") || !slices.Contains(got, "vouch a1-lazy s") || strings.Contains(fmt.Sprint(got), "authorize") {
			t.Errorf("asked: %v", got)
		}
		w.done(h)
	})
	t.Run("without handlers the registry is asked", func(t *testing.T) {
		w := newWorld(t, true)
		layers := w.layers("a", lazyLayer, lazyLayer)
		pulled := w.pull(layers...)
		h := w.get(pulled.ID())
		w.checkFiles(h, names(layers...)...)
		got := w.reg.happened("authorize", "vouch")
		if !slices.Contains(got, "authorize a0-lazy s") || !slices.Contains(got, "authorize a1-lazy s") || strings.Contains(fmt.Sprint(got), "vouch") {
			t.Errorf("asked: %v", got)
		}
		w.done(pulled, h)
	})
	t.Run("a handler of one layer proves nothing of another", func(t *testing.T) {
		w := newWorld(t, true)
		layers := w.layers("a", lazyLayer, lazyLayer)
		pulled := w.pull(layers...)
		h := w.get(pulled.ID(), w.handlers(layers[1]))
		w.checkFiles(h, names(layers...)...)
		got := w.reg.happened("authorize", "vouch")
		if !slices.Contains(got, "authorize a0-lazy s") || !slices.Contains(got, "vouch a1-lazy s") ||
			slices.Contains(got, "authorize a1-lazy s") || slices.Contains(got, "vouch a0-lazy s") {
			t.Errorf("asked: %v", got)
		}
		w.done(pulled, h)
	})
	t.Run("plain layers need none", func(t *testing.T) {
		w := newWorld(t, true)
		layers := w.layers("a", layoutLayer, plainLayer)
		pulled := w.pull(layers...)
		if err := pulled.Extract(w.ctx(), group("s")); err != nil {
			t.Fatal(err)
		}
		w.reg.happened()
		h := w.get(pulled.ID())
		w.checkFiles(h, names(layers...)...)
		if got := w.reg.happened("authorize", "vouch"); len(got) > 0 {
			t.Errorf("asked: %v", got)
		}
		w.done(pulled, h)
	})
	for _, extracted := range []bool{false, true} {
		t.Run(fmt.Sprintf("none, extracted before: %v", extracted), func(t *testing.T) {
			w := newWorld(t, true)
			layers := w.layers("a", lazyLayer, lazyLayer)
			pulled := w.pull(layers...)
			if extracted {
				w.checkFiles(pulled, names(layers...)...)
			}
			h := w.get(pulled.ID())
			// The lower layer may be read, the upper one may not: the hold on the lower
			// one must not stay.
			w.reg.refuse["evil a1-lazy"] = true
			before := w.look()
			if err := h.Extract(w.ctx(), group("evil")); extracted != (err == nil) && !cerrdefs.IsPermissionDenied(err) {
				t.Errorf("extract: %v", err)
			}
			m, err := h.Mount(w.ctx(), true, group("evil"))
			if err == nil {
				_, _, err = m.Mount()
			}
			if !cerrdefs.IsPermissionDenied(err) {
				t.Errorf("mount: %v", err)
			}
			if err := h.blobsFor("evil"); !cerrdefs.IsPermissionDenied(err) {
				t.Errorf("blobs: %v", err)
			}
			if _, err := h.FileList(w.ctx(), group("evil")); !cerrdefs.IsPermissionDenied(err) {
				t.Errorf("list of files: %v", err)
			}
			if _, err := w.m.New(w.ctx(), h, group("evil")); !extracted && !cerrdefs.IsPermissionDenied(err) {
				t.Errorf("new: %v", err)
			} else if err == nil {
				t.Log("a step starts, and can't be mounted")
			}
			if list := before.differences(w.look()); len(list) > 0 && !extracted {
				t.Errorf("after it:\n%s", strings.Join(list, "\n"))
			}
			if w.reg.held() != 0 {
				t.Errorf("%d holds", w.reg.held())
			}
			// Another session may.
			w.checkFiles(h, names(layers...)...)
			w.release(pulled, h)
		})
	}
}

// blobsFor makes the record's blobs local for a session.
func (h *immutableRef) blobsFor(session string) error {
	ctx := context.Background()
	list, err := h.GetRemotes(ctx, false, gzipRefs, false, group(session))
	if err != nil {
		return err
	}
	return list[0].Provider.(bkcache.Unlazier).Unlazy(ctx)
}

// growing is a session group that a second build joins later.
type growing struct {
	mu  sync.Mutex
	ids []string
}

func (g *growing) add(id string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids = append(g.ids, id)
}

func (g *growing) SessionIterator() bksession.Iterator {
	g.mu.Lock()
	defer g.mu.Unlock()
	return group(slices.Clone(g.ids)...).SessionIterator()
}

// TestHolds: sessions authenticate reads from Mount to the release, each caller's
// for itself, and those that join the group later as well.
func TestHolds(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", lazyLayer, plainLayer, lazyLayer)
	h := w.pull(layers...)
	check := func(holds int, sessions ...string) {
		t.Helper()
		if got := w.reg.sessions(); w.reg.held() != holds || !slices.Equal(got, sessions) {
			t.Errorf("%d holds of sessions %v, want %d of %v", w.reg.held(), got, holds, sessions)
		}
	}
	if err := h.Extract(w.ctx(), group("s")); err != nil {
		t.Fatal(err)
	}
	check(0)
	g := &growing{ids: []string{"one"}}
	first := w.mount(h, g)
	check(0) // mountable is not mounted
	endFirst := w.use(first)
	check(2, "one")
	g.add("two")
	check(2, "one", "two")
	endSecond := w.use(w.mount(h, group("three")))
	check(4, "one", "three", "two")
	endThird := w.use(first)
	check(6, "one", "three", "two")
	endFirst()
	check(4, "one", "three", "two")
	endFirst() // twice does nothing
	check(4, "one", "three", "two")
	endThird()
	check(2, "three")
	endSecond()
	check(0)

	// The same of a step's own mount.
	mut, err := w.m.New(w.ctx(), h, group("s"))
	if err != nil {
		t.Fatal(err)
	}
	check(0)
	m, err := mut.Mount(w.ctx(), false, group("step"))
	if err != nil {
		t.Fatal(err)
	}
	end := w.use(m)
	check(2, "step")
	end()
	check(0)

	// A mount that fails holds nothing.
	for n := 1; ; n++ {
		w.faults.fail(n)
		mounts, err := w.mountAndUse(mut)
		hit := w.faults.disarm()
		if hit == "" {
			break
		}
		if err == nil {
			t.Errorf("fault in %s: the mount succeeds: %v", hit, mounts)
		}
		check(0)
	}
	w.done(h, mut)
}

func (w *world) mountAndUse(r bkcache.Mountable) (string, error) {
	m, err := r.Mount(w.ctx(), false, group("s"))
	if err != nil {
		return "", err
	}
	mounts, release, err := m.Mount()
	if err != nil {
		return "", err
	}
	if release != nil {
		err = release()
	}
	return fmt.Sprint(mounts), err
}

// TestFastDirectories: who reads or steps gets the directories that answer fast,
// who compares trees those that answer exactly.
func TestFastDirectories(t *testing.T) {
	w := newWorld(t, true)
	one := w.pull(w.layers("one", lazyLayer)...) // a bind mount
	h := w.pull(w.layers("a", lazyLayer, lazyLayer)...)
	for _, h := range []*immutableRef{one, h} {
		toCompare, err := h.mountToCompare(w.ctx(), group("s"))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range []struct {
			how        string
			mountable  snapshot.Mountable
			with, none string
		}{{"read", w.mount(h, group("s")), fastDir, exactDir}, {"compared", toCompare, exactDir, fastDir}} {
			mounts, release, err := m.mountable.Mount()
			if err != nil {
				t.Fatal(err)
			}
			if s := fmt.Sprint(mounts); !strings.Contains(s, m.with) || strings.Contains(s, m.none) {
				t.Errorf("an immutable record that is %s is mounted by %s", m.how, s)
			}
			_ = release()
		}
	}
	mut, err := w.m.New(w.ctx(), h, group("s"))
	if err != nil {
		t.Fatal(err)
	}
	held := w.mount(mut, group("s"))
	if own := LayerMounts(held); len(own) != 1 || own[0].Type != "overlay" || !strings.Contains(fmt.Sprint(own), exactDir) {
		t.Errorf("a step's layers are %v", own)
	}
	if own := LayerMounts(&readonlyMountable{held}); len(own) != 1 {
		t.Errorf("a step's layers are %v", own)
	}
	if LayerMounts(nil) != nil || LayerMounts("?") != nil {
		t.Error("what is not ours has layers")
	}
	inner := &spyMountable{}
	mnt, err := mut.(*mutableRef).record.mountMutable(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	shared := mnt.(*sharedMountable)
	inner.Mountable, shared.Mountable = shared.Mountable, inner
	w.write(mut, "x")
	if s := inner.seen; strings.Contains(s, "exact") || !strings.Contains(s, "fast") {
		t.Errorf("a step is mounted by %s", s)
	}
	w.done(one, h, mut)
}

// TestRestart: after a restart, with no build that has pulled anything, records of
// registry images can be used, mounted and read; of others only by those who have a
// handler.
func TestRestart(t *testing.T) {
	w := newWorld(t, true)
	all := []layerKind{lazyLayer, plainLayer, zstdLayer}
	for _, prepared := range []bool{false, true} {
		layers := w.layers(fmt.Sprintf("p%v", prepared), all...)
		h := w.pull(layers...)
		if prepared {
			w.checkFiles(h, names(layers...)...)
		}
		id := h.ID()
		w.release(h)
		w.restart()
		w.reg.happened()
		again := w.get(id)
		w.checkFiles(again, names(layers...)...)
		got := w.reg.happened("provide", "resolve", "authorize", "unlazy")
		if strings.Contains(fmt.Sprint(got), "provide") || !slices.Contains(got, "authorize "+layers[0].name+" s") {
			t.Errorf("prepared before: %v: %v", prepared, got)
		}
		if err := again.blobsFor("s"); err != nil {
			t.Error(err)
		}
		w.release(again)
	}

	layout := w.layers("client", layoutLayer)
	h := w.pull(layout...)
	id := h.ID()
	w.release(h)
	w.restart()
	_, err := w.m.Get(w.ctx(), id, nil)
	var missing bkcache.NeedsRemoteProviderError
	if !errors.As(err, &missing) || !slices.Equal(missing, []digest.Digest{layout[0].desc.Digest}) {
		t.Errorf("a layer of a client's layout without handler: %v", err)
	}
	_, err = w.m.GetByBlob(w.ctx(), layout[0].desc, nil)
	if !errors.As(err, &missing) {
		t.Errorf("a blob without handler: %v", err)
	}
	w.reg.happened()
	h = w.get(id, w.handlers(layout...))
	w.checkFiles(h, names(layout...)...)
	if got := w.reg.happened("unlazy", "provide", "authorize"); !slices.Equal(got, []string{"provide client0-layout"}) {
		t.Errorf("%v", got)
	}
	w.release(h)
	h = w.get(id) // its files are here now
	w.done(h)
}

// TestLayoutHandlers: an image that a client's layout brings along, without labels,
// is read from that handler even if the same layer is known from a registry.
func TestLayoutHandlers(t *testing.T) {
	w := newWorld(t, true)
	l := w.layerOf(plainLayer, "a")
	pulled := w.pull(l)
	dhs := w.handlers(l)
	dhs[l.desc.Digest].SnapshotLabels = nil
	w.reg.refuse["client"] = true
	h, err := w.m.GetByBlob(w.ctx(), l.desc, nil, dhs)
	if err != nil {
		t.Fatal(err)
	}
	if h.ID() != pulled.ID() {
		t.Error("the same layer has two records")
	}
	w.reg.happened()
	w.reg.down = fmt.Errorf("the registry is down: %w", cerrdefs.ErrUnavailable)
	if err := h.Extract(w.ctx(), group("client")); err != nil {
		t.Fatal(err)
	}
	if got := w.reg.happened("provide", "authorize", "vouch"); !slices.Equal(got, []string{"provide a"}) {
		t.Errorf("%v", got)
	}
	w.reg.down = nil
	w.done(h, pulled)
}

// TestRecordsOfStock: a record that stock BuildKit has made has its source in the
// labels of its snapshot only; rights and reads are as for one of ours.
func TestRecordsOfStock(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", lazyLayer, lazyLayer)
	h := w.pull(layers...)
	w.checkFiles(h, names(layers...)...)
	for _, r := range h.ancestry() {
		var c change
		drop(&c, keyOrigins)
		if err := r.meta.commit(c); err != nil {
			t.Fatal(err)
		}
	}
	id := h.ID()
	w.release(h)
	w.restart()
	w.reg.happened()
	h = w.get(id)
	w.checkFiles(h, names(layers...)...)
	if got := w.reg.happened("authorize"); !slices.Contains(got, "authorize a0-lazy s") || !slices.Contains(got, "authorize a1-lazy s") {
		t.Errorf("%v", got)
	}
	w.reg.refuse["evil"] = true
	if _, err := h.Mount(w.ctx(), true, group("evil")); !cerrdefs.IsPermissionDenied(err) {
		t.Errorf("mount: %v", err)
	}
	// The rights are asked for even if the snapshotter fails just then.
	for n := 1; ; n++ {
		w.faults.fail(n)
		m, err := h.Mount(w.ctx(), true, group("evil"))
		if err == nil {
			_, _, err = m.Mount()
		}
		hit := w.faults.disarm()
		if err == nil {
			t.Errorf("with a fault in %s: mounted without rights", hit)
		}
		if hit == "" {
			break
		}
	}
	end := w.use(w.mount(h, group("x")))
	if got := w.reg.sessions(); !slices.Equal(got, []string{"x"}) {
		t.Errorf("held: %v", got)
	}
	end()
	if err := h.blobsFor("s"); err != nil {
		t.Error(err)
	}
	w.done(h)
}

// TestIdentity: a layer that may stay lazy is what its DiffID and its table of
// contents say, since only the latter is ever checked; any other is its DiffID.
func TestIdentity(t *testing.T) {
	for _, lazy := range []bool{true, false} {
		w := newWorld(t, lazy)
		l := w.layerOf(plainLayer, "a")
		diffID, err := diffIDOf(l.desc)
		if err != nil {
			t.Fatal(err)
		}
		toc := digest.FromString("toc")
		for annotation, bound := range map[string]bool{
			"":                                    false,
			remotesnapshot.AnnotationTOCDigest:    true,
			remotesnapshot.AnnotationZstdChecksum: true,
			remotesnapshot.AnnotationZstdChecksumLegacy: true,
			remotesnapshot.AnnotationUncompressedSize:   false,
		} {
			desc := l.desc
			desc.Annotations = map[string]string{"containerd.io/uncompressed": diffID.String()}
			if annotation != "" {
				desc.Annotations[annotation] = toc.String()
			}
			want := diffID
			if bound && lazy {
				want = imageid.ChainID([]digest.Digest{diffID, toc})
			}
			id, err := identify(desc, nil, lazy)
			if err != nil || id.identity != want || id.chain != want || id.diffID != diffID || id.blobs != imageid.ChainID([]digest.Digest{desc.Digest, diffID}) {
				t.Errorf("lazy %v, annotation %q: %+v, %v; want %s", lazy, annotation, id, err, want)
			}
		}
		desc := l.desc
		desc.Annotations = map[string]string{"containerd.io/uncompressed": diffID.String(), remotesnapshot.AnnotationTOCDigest: "nonsense"}
		if _, err := identify(desc, nil, lazy); lazy == (err == nil) {
			t.Errorf("lazy %v: a table of contents without a digest: %v", lazy, err)
		}
		desc.Annotations = map[string]string{"containerd.io/uncompressed": diffID.String(), remotesnapshot.AnnotationZstdChecksum: "nonsense"}
		if id, err := identify(desc, nil, lazy); err != nil || id.identity != diffID {
			t.Errorf("lazy %v: zstd:chunked that can't be lazy, and that BuildKit takes: %+v %v", lazy, id, err)
		}
	}

	// Two layers that claim the same DiffID and have other tables share nothing.
	w := newWorld(t, true)
	good, evil := w.layerOf(lazyLayer, "good"), w.layerOf(zstdLayer, "evil")
	evil.desc.Annotations["containerd.io/uncompressed"] = good.desc.Annotations["containerd.io/uncompressed"]
	a, b := w.pull(good), w.pull(evil)
	if a.snapshotID() == b.snapshotID() {
		t.Error("they share a snapshot")
	}
	w.checkFiles(a, "good")
	w.checkFiles(b, "evil")
	w.done(a, b)
}

package cache

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff/apply"
	"github.com/containerd/containerd/v2/core/leases"
	ctdmetadata "github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	"github.com/containerd/log"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/db"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/winlayers"
	"github.com/moby/sys/mountinfo"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/remotesnapshot"
)

func init() {
	// Faults are injected by the hundred; their warnings would bury the verdict.
	_ = log.SetLevel("fatal")
	// Worlds are many and small: a third of the time would go to collecting them.
	debug.SetGCPercent(800)
}

const testNamespace = "cachetest"

// needRoot skips a test that mounts where that is not possible, unless the
// environment says that it has to be.
func needRoot(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4k")
	if err == nil {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatalf("LAZYKIT_PRIVILEGED=1, but mounting fails: %v", err)
	}
	t.Skipf("needs the privilege to mount: %v", err)
}

// kindOf a layer of the fake registry.
type layerKind string

const (
	lazyLayer   layerKind = "lazy"   // in a registry, with a table of contents
	zstdLayer   layerKind = "zstd"   // the same, with zstd:chunked's annotations
	plainLayer  layerKind = "plain"  // in a registry, without a table of contents
	layoutLayer layerKind = "layout" // of a client's OCI layout: no labels
)

// layer is a blob that somebody outside of the cache has.
type layer struct {
	kind  layerKind
	name  string // of its one file, which holds it as well
	data  []byte
	desc  ocispecs.Descriptor
	image string
}

func (l *layer) source() remotesnapshot.Source {
	return remotesnapshot.Source{Reference: l.image, Digest: l.desc.Digest, Annotations: remotesnapshot.KnownAnnotations(l.desc.Annotations)}
}

const testImage = "registry.example/base:1"

// world is a manager on real stores and a real snapshotter, over a fake registry
// and a fake lazy file system. Every call that the manager makes to any of them
// passes through faults.
type world struct {
	t       testing.TB
	dir     string
	lazy    bool
	faults  *faults
	reg     *fakeLazy
	remote  *remotesnapshot.Snapshotter
	ctdDB   *bolt.DB
	mdb     *ctdmetadata.DB
	leases  leases.Manager
	content content.Store
	snaps   snapshot.Snapshotter
	md      *metadata.Store
	m       *Manager
	pools   map[*sharedMountable]bool
	base    int // goroutines before the first operation
}

// newWorld makes a world whose manager has the lazy ability, or not.
func newWorld(t testing.TB, lazy bool) *world {
	t.Helper()
	needRoot(t)
	dir, err := os.MkdirTemp(fastDisk(), "cachetest")
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: dir, lazy: lazy, faults: &faults{}}
	w.reg = newFakeLazy(t, filepath.Join(dir, "lazy"), w.faults)
	w.start()
	t.Cleanup(func() {
		w.stop()
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return w
}

// fastDisk is where a thousand worlds are made in a minute: memory, if there is
// some to write to.
func fastDisk() string {
	var st unix.Statfs_t
	if unix.Statfs("/dev/shm", &st) == nil && st.Type == unix.TMPFS_MAGIC && unix.Access("/dev/shm", unix.W_OK) == nil && st.Bavail*uint64(st.Bsize) > 1<<30 {
		return "/dev/shm"
	}
	return ""
}

// start opens everything on the world's directory, again after stop.
func (w *world) start() {
	w.t.Helper()
	must := func(err error) {
		w.t.Helper()
		if err != nil {
			w.t.Fatal(err)
		}
	}
	ctx := w.t.Context()
	name := "overlayfs"
	var fs remotesnapshot.FileSystem
	if w.lazy {
		name, fs = "stargz", w.reg
	}
	var err error
	w.remote, err = remotesnapshot.New(ctx, filepath.Join(w.dir, "snapshots"), fs, remotesnapshot.Options{ExactXattrs: true})
	must(err)
	store, err := local.NewStore(filepath.Join(w.dir, "content"))
	must(err)
	w.ctdDB, err = bolt.Open(filepath.Join(w.dir, "containerdmeta.db"), 0o600, &bolt.Options{NoSync: true})
	must(err)
	if w.lazy { // else containerd's database has what containerd's snapshotters are to it
		w.remote.KeptBy(w.ctdDB, name)
	}
	w.mdb = ctdmetadata.NewDB(w.ctdDB, store, map[string]snapshots.Snapshotter{name: &lateFaults{Snapshotter: w.remote, f: w.faults}})
	must(w.mdb.Init(ctx))
	w.content = containerdsnapshot.NewContentStore(w.mdb.ContentStore(), testNamespace)
	w.leases = leaseutil.WithNamespace(ctdmetadata.NewLeaseManager(w.mdb), testNamespace)
	w.snaps = containerdsnapshot.NewSnapshotter(name, remotesnapshot.ResolveViews(w.mdb.Snapshotter(name)), testNamespace, nil)
	w.md, err = metadata.NewStore(filepath.Join(w.dir, "metadata_v2.db"))
	must(err)
	w.injectIntoMetadata()
	cs := &faultyContent{Store: w.content, f: w.faults}
	opts := Options{
		Snapshotter:    &faultySnapshotter{Snapshotter: w.snaps, f: w.faults},
		Content:        cs,
		Leases:         &faultyLeases{Manager: w.leases, f: w.faults},
		Metadata:       w.md,
		Applier:        &faultyApplier{Applier: winlayers.NewFileSystemApplierWithWindows(cs, apply.NewFileSystemApplier(cs)), f: w.faults},
		Differ:         &faultyDiffer{Comparer: winlayers.NewWalkingDiffWithWindows(cs, walking.NewWalkingDiff(cs)), f: w.faults},
		GarbageCollect: w.mdb.GarbageCollect,
		Root:           w.dir,
		MountRoot:      filepath.Join(w.dir, "mounts"),
	}
	if w.lazy {
		opts.Lazy = w.reg
		opts.Adopt = func(ctx context.Context, desc ocispecs.Descriptor, path string) error {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return content.WriteBlob(ctx, cs, "adopt "+desc.Digest.String(), bytes.NewReader(data), desc)
		}
	}
	w.m, err = New(ctx, opts)
	must(err)
	w.base = runtime.NumGoroutine()
}

// injectIntoMetadata puts faults between BuildKit's metadata store and its
// database, a field that nobody else can reach.
func (w *world) injectIntoMetadata() {
	w.t.Helper()
	field := reflect.ValueOf(w.md).Elem().FieldByName("db")
	if !field.IsValid() {
		w.t.Fatal("BuildKit's metadata.Store has no field db any more")
	}
	p := (*db.DB)(unsafe.Pointer(field.UnsafeAddr()))
	if b, ok := (*p).(*bolt.DB); ok {
		b.NoSync = true
	}
	*p = &faultyDB{DB: *p, f: w.faults}
}

// stop closes what start has opened. Nothing may be in use.
func (w *world) stop() {
	w.t.Helper()
	if w.m == nil {
		return
	}
	w.faults.disarm()
	w.quiet()
	for _, err := range []error{w.m.Close(), w.remote.Close(), w.ctdDB.Close()} {
		if err != nil {
			w.t.Error(err)
		}
	}
	w.m = nil
	if n := w.reg.open(); n != 0 {
		w.t.Errorf("%d layers are open after the snapshotter was closed", n)
	}
}

// restart is stop and start, with a file system that has forgotten all layers.
func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.reg.forget()
	w.start()
}

func (w *world) ctx() context.Context { return context.Background() }

// group is one session.
func group(ids ...string) bksession.Group { return bksession.NewGroup(ids...) }

// layerOf adds a layer with one file to the registry.
func (w *world) layerOf(kind layerKind, name string) *layer {
	w.t.Helper()
	l := &layer{kind: kind, name: name, image: testImage}
	var tarball bytes.Buffer
	tw := tar.NewWriter(&tarball)
	hdr := &tar.Header{Name: name, Mode: 0o644, Size: int64(len(name)), Typeflag: tar.TypeReg, ModTime: time.Unix(1, 0)}
	if err := tw.WriteHeader(hdr); err != nil {
		w.t.Fatal(err)
	}
	_, _ = tw.Write([]byte(name))
	_ = tw.Close()
	diffID := digest.FromBytes(tarball.Bytes())
	var blob bytes.Buffer
	zw := gzip.NewWriter(&blob)
	_, _ = zw.Write(tarball.Bytes())
	_ = zw.Close()
	l.data = blob.Bytes()
	l.desc = ocispecs.Descriptor{
		MediaType:   ocispecs.MediaTypeImageLayerGzip,
		Digest:      digest.FromBytes(l.data),
		Size:        int64(len(l.data)),
		Annotations: map[string]string{labels.LabelUncompressed: diffID.String()},
	}
	switch kind {
	case lazyLayer:
		l.desc.Annotations[remotesnapshot.AnnotationTOCDigest] = digest.FromString("toc of " + name).String()
	case zstdLayer:
		l.desc.Annotations[remotesnapshot.AnnotationZstdChecksum] = digest.FromString("toc of " + name).String()
		l.desc.Annotations[remotesnapshot.AnnotationZstdPosition] = "1:2:3:1"
	}
	w.reg.add(l)
	return l
}

// layers adds several at once: their kinds in words.
func (w *world) layers(prefix string, kinds ...layerKind) (list []*layer) {
	for i, k := range kinds {
		list = append(list, w.layerOf(k, fmt.Sprintf("%s%d-%s", prefix, i, k)))
	}
	return list
}

// handlers are those that a pull has for layers.
func (w *world) handlers(layers ...*layer) bkcache.DescHandlers {
	dhs := bkcache.DescHandlers{}
	for _, l := range layers {
		dh := &bkcache.DescHandler{
			Provider:    func(bksession.Group) content.Provider { return &registryProvider{reg: w.reg, layer: l} },
			Annotations: l.desc.Annotations,
			Ref:         "handler of " + l.name,
		}
		if l.kind != layoutLayer {
			dh.SnapshotLabels = l.source().Labels()
		}
		dhs[l.desc.Digest] = dh
	}
	return dhs
}

// pull makes the records of an image's layers, as the image source does. Only the
// topmost one is held.
func (w *world) pull(layers ...*layer) *immutableRef {
	w.t.Helper()
	h, err := w.tryPull(w.ctx(), layers...)
	if err != nil {
		w.t.Fatalf("pull: %v", err)
	}
	return h
}

func (w *world) tryPull(ctx context.Context, layers ...*layer) (*immutableRef, error) {
	dhs := w.handlers(layers...)
	var top bkcache.ImmutableRef
	for _, l := range layers {
		next, err := w.m.GetByBlob(ctx, l.desc, top, dhs, bkcache.WithImageRef(l.image))
		if top != nil {
			_ = top.Release(context.Background())
		}
		if err != nil {
			return nil, err
		}
		top = next
	}
	return top.(*immutableRef), nil
}

// step makes a record as a step does that writes one file on top of parent.
func (w *world) step(parent bkcache.ImmutableRef, file string) *immutableRef {
	w.t.Helper()
	mut, err := w.m.New(w.ctx(), parent, group("s"), bkcache.CachePolicyRetain)
	if err != nil {
		w.t.Fatalf("new: %v", err)
	}
	w.write(mut, file)
	c, err := mut.Commit(w.ctx())
	if err != nil {
		w.t.Fatalf("commit: %v", err)
	}
	return c.(*immutableRef)
}

// write puts a file into a mutable record.
func (w *world) write(mut bkcache.MutableRef, file string) {
	w.t.Helper()
	mountable, err := mut.Mount(w.ctx(), false, group("s"))
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	w.inside(mountable, func(dir string) {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(file), 0o644); err != nil {
			w.t.Fatal(err)
		}
	})
}

// inside mounts, calls f and unmounts.
func (w *world) inside(mountable snapshot.Mountable, f func(dir string)) {
	w.t.Helper()
	mounts, release, err := mountable.Mount()
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	defer func() {
		if release == nil {
			return
		}
		if err := release(); err != nil {
			w.t.Errorf("unmount: %v", err)
		}
	}()
	dir, err := os.MkdirTemp(w.dir, "look")
	if err != nil {
		w.t.Fatal(err)
	}
	defer os.Remove(dir)
	if err := mount.All(mounts, dir); err != nil {
		w.t.Fatalf("mount %v: %v", mounts, err)
	}
	defer func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			w.t.Error(err)
		}
	}()
	f(dir)
}

// files lists the regular files that a record shows in its root directory; each
// has its own name as contents.
func (w *world) files(h bkcache.ImmutableRef) (names []string) {
	w.t.Helper()
	mountable, err := h.Mount(w.ctx(), true, group("s"))
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	w.inside(mountable, func(dir string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			if data, err := os.ReadFile(filepath.Join(dir, e.Name())); err != nil || string(data) != e.Name() {
				w.t.Errorf("file %s holds %q: %v", e.Name(), data, err)
			}
			names = append(names, e.Name())
		}
	})
	return names
}

// checkFiles fails unless a record shows these files and no other.
func (w *world) checkFiles(h bkcache.ImmutableRef, want ...string) {
	w.t.Helper()
	want = slices.Compact(slices.Sorted(slices.Values(want)))
	if got := w.files(h); !slices.Equal(got, want) {
		w.t.Errorf("record %s (%s) shows %v, want %v", h.ID(), h.GetDescription(), got, want)
	}
}

func names(layers ...*layer) (list []string) {
	for _, l := range layers {
		list = append(list, l.name)
	}
	return list
}

// collect runs containerd's garbage collector.
func (w *world) collect() {
	w.t.Helper()
	if _, err := w.mdb.GarbageCollect(w.ctx()); err != nil {
		w.t.Fatalf("collect garbage: %v", err)
	}
}

// pruneAll removes all that nobody holds.
func (w *world) pruneAll() {
	w.t.Helper()
	w.quiet() // BuildKit ends some leases in the background
	if err := w.m.Prune(w.ctx(), nil, client.PruneInfo{All: true}); err != nil {
		w.t.Fatalf("prune: %v", err)
	}
}

// quiet waits until no more goroutines run than at the beginning.
func (w *world) quiet() {
	w.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > w.base; {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			w.t.Errorf("%d goroutines, %d at the beginning:\n%s", runtime.NumGoroutine(), w.base, buf[:runtime.Stack(buf, true)])
			w.base = runtime.NumGoroutine()
			return
		}
		time.Sleep(200 * time.Microsecond)
	}
}

// picture is all that a world has at one moment.
type picture struct {
	records   map[string]string   // id: what it is
	users     map[string]int      // id: how many refs there are that are no record's
	views     map[string]bool     // leases and snapshots of views that are in use
	doomed    int                 // records that could not be erased yet
	leases    map[string][]string // id: what it holds
	snapshots map[string]string   // name: kind and parent
	blobs     []string
	ingests   []string
	items     []string // of the metadata store
	indexes   []string
	mounts    []string
	holds     int // of sessions
}

// look takes a picture, once nothing is under way.
func (w *world) look() *picture {
	w.t.Helper()
	w.quiet()
	ctx := namespaces.WithNamespace(w.ctx(), testNamespace)
	p := &picture{records: map[string]string{}, users: map[string]int{}, views: map[string]bool{}, leases: map[string][]string{}, snapshots: map[string]string{}, holds: w.reg.held()}
	w.m.mu.Lock()
	p.doomed = len(w.m.mu.doomed)
	children := w.m.childRefsLocked()
	for id, r := range w.m.mu.records {
		s := fmt.Sprintf("mutable=%v kind=%d parents=%v", r.mutable, r.kind(), r.parents.ids())
		if r.twin != nil {
			s += " twin=" + r.twin.ID()
		}
		if r.dead {
			s += " dead"
		}
		p.records[id], p.users[id] = s, len(r.refs)-children[r]
		if r.mounted != nil { // nothing is under way
			p.views[viewLease(id)], p.views[r.snapshotID()+"-view"] = true, true
		}
	}
	w.m.mu.Unlock()
	list, err := w.leases.List(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, l := range list {
		rs, err := w.leases.ListResources(ctx, l)
		if err != nil {
			w.t.Fatal(err)
		}
		p.leases[l.ID] = []string{}
		for _, r := range rs {
			p.leases[l.ID] = append(p.leases[l.ID], r.Type+" "+r.ID)
		}
		slices.Sort(p.leases[l.ID])
	}
	err = w.snaps.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		p.snapshots[i.Name] = fmt.Sprintf("%v on %q", i.Kind, i.Parent)
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	err = w.content.Walk(ctx, func(i content.Info) error {
		p.blobs = append(p.blobs, i.Digest.String())
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	statuses, err := w.content.ListStatuses(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range statuses {
		p.ingests = append(p.ingests, s.Ref)
	}
	p.items, p.indexes = w.stored()
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(w.dir))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range infos {
		p.mounts = append(p.mounts, i.Mountpoint)
	}
	slices.Sort(p.mounts)
	return p
}

// stored lists the items and index entries of the metadata store.
func (w *world) stored() (items, indexes []string) {
	w.t.Helper()
	err := w.md.DB().View(func(tx *bolt.Tx) error {
		if b := tx.Bucket([]byte("_main")); b != nil {
			_ = b.ForEach(func(k, _ []byte) error { items = append(items, string(k)); return nil })
		}
		if b := tx.Bucket([]byte("_index")); b != nil {
			_ = b.ForEach(func(k, _ []byte) error { indexes = append(indexes, string(k)); return nil })
		}
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return items, indexes
}

// checkEmpty fails unless there is nothing at all.
func (w *world) checkEmpty() {
	w.t.Helper()
	p := w.look()
	var left []string
	add := func(what string, n int, v any) {
		if n > 0 {
			left = append(left, fmt.Sprintf("%s: %v", what, v))
		}
	}
	add("records", len(p.records), p.records)
	add("doomed", p.doomed, p.doomed)
	add("leases", len(p.leases), p.leases)
	add("snapshots", len(p.snapshots), p.snapshots)
	add("blobs", len(p.blobs), p.blobs)
	add("ingests", len(p.ingests), p.ingests)
	add("items", len(p.items), p.items)
	add("indexes", len(p.indexes), p.indexes)
	add("mounts", len(p.mounts), p.mounts)
	add("holds of sessions", p.holds, p.holds)
	add("reasons", len(w.m.mu.reasons), w.m.mu.reasons)
	if n := w.reg.open(); n != 0 {
		left = append(left, fmt.Sprintf("%d layers are open", n))
	}
	if len(left) > 0 {
		w.t.Errorf("something is left:\n%s", strings.Join(left, "\n"))
	}
}

// differences says what a failed operation has changed that it must not: after it
// nothing may be held, leased or active that was not before. What it has made of
// existing records (snapshots of their layers, blobs) may stay, since their leases
// keep it; so may the end of a twin that was finalized, views of records that are
// held, and records that nobody holds and that can be pruned.
func (before *picture) differences(after *picture) (list []string) {
	say := func(f string, args ...any) { list = append(list, fmt.Sprintf(f, args...)) }
	for id, want := range before.records {
		got, ok := after.records[id]
		was, twin, _ := strings.Cut(want, " twin=")
		switch {
		case !ok && twin != "" && before.users[id] == 0 && after.records[twin] != "" && !strings.Contains(after.records[twin], "twin="):
			continue // it was finalized
		case !ok:
			say("record %s (%s) is gone", id, want)
		case got != want && got != was:
			say("record %s was %s, is %s", id, want, got)
		}
		if before.users[id] != after.users[id] {
			say("record %s had %d users, has %d (%s)", id, before.users[id], after.users[id], got)
		}
	}
	loose := map[string]bool{}
	for id, got := range after.records {
		if _, ok := before.records[id]; !ok {
			if loose[id] = after.users[id] == 0 && !strings.Contains(got, "mutable=true"); loose[id] {
				continue
			}
			say("record %s (%s, %d users) is new", id, got, after.users[id])
		}
	}
	if after.doomed != 0 {
		say("%d records are still to be erased", after.doomed)
	}
	for _, id := range sortedKeys(after.leases) {
		record := strings.TrimSuffix(id, "-variants")
		if _, ok := before.leases[id]; !ok && after.records[record] == "" && !after.views[id] {
			say("lease %s is new: %v", id, after.leases[id])
		}
	}
	for _, id := range sortedKeys(before.leases) {
		if _, ok := after.leases[id]; !ok && after.records[id] != "" {
			say("lease %s is gone", id)
		}
	}
	for _, name := range sortedKeys(after.snapshots) {
		if _, ok := before.snapshots[name]; !ok && !strings.HasPrefix(after.snapshots[name], "Committed") && !after.views[name] {
			say("snapshot %s (%s) is new", name, after.snapshots[name])
		}
	}
	for _, ref := range after.ingests {
		if !slices.Contains(before.ingests, ref) {
			say("ingest %s is new", ref)
		}
	}
	for _, id := range after.items {
		if !slices.Contains(before.items, id) && !loose[id] {
			say("item %s of the metadata store is new", id)
		}
	}
	if !slices.Equal(before.mounts, after.mounts) {
		say("mounts were %v, are %v", before.mounts, after.mounts)
	}
	if before.holds != after.holds {
		say("%d holds of sessions, before %d", after.holds, before.holds)
	}
	return list
}

func sortedKeys[V any](m map[string]V) []string {
	keys := slices.Collect(maps.Keys(m))
	sort.Strings(keys)
	return keys
}

// snapshotOf is the chain of a record's snapshots, from the top, without names:
// "remote" or "plain".
func (w *world) chainOf(h *immutableRef) (list []string) {
	w.t.Helper()
	for name := h.snapshotID(); name != ""; {
		info, err := w.snaps.Stat(w.ctx(), name)
		if err != nil {
			w.t.Fatalf("snapshot %s: %v", name, err)
		}
		what := "plain"
		if _, ok := info.Labels[remotesnapshot.LabelRemote]; ok {
			what = "remote"
		}
		list = append(list, what)
		name = info.Parent
	}
	return list
}

func (w *world) release(refs ...bkcache.Ref) {
	w.t.Helper()
	for _, r := range refs {
		if err := r.Release(w.ctx()); err != nil {
			w.t.Errorf("release: %v", err)
		}
	}
}

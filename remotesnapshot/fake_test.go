package remotesnapshot

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	// Faults are injected by the hundred; their warnings would bury the verdict.
	_ = log.SetLevel("fatal")
	os.Exit(m.Run())
}

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

// fakeFS serves layers from ordinary directories below root, and counts.
type fakeFS struct {
	t    testing.TB
	root string

	mu     sync.Mutex
	layers map[digest.Digest]*fakeLayer
	calls  int // of Open, Dir and Resolve
	failAt int // this call fails, counted from 1

	onCall  atomic.Pointer[func(call string)] // before each call of a method
	usageOf func(digest.Digest) (int64, error)
}

// fakeLayer is what the holds on one layer share; guarded by fakeFS.mu.
type fakeLayer struct {
	dir        string
	resolved   bool
	resolveErr error
	holds      int
	resolves   int
	gate       chan struct{} // Resolve waits for it when there is one
}

var (
	_ FileSystem = (*fakeFS)(nil)
	_ usager     = (*fakeFS)(nil)
	_ Layer      = (*fakeHold)(nil)
)

var errInjected = fmt.Errorf("injected fault")

func newFakeFS(t testing.TB, root string) *fakeFS {
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &fakeFS{t: t, root: root, layers: map[digest.Digest]*fakeLayer{}}
}

// layer adds one with the given files and returns its digest.
func (f *fakeFS) layer(name string, resolved bool, files ...string) digest.Digest {
	f.t.Helper()
	dgst := digest.FromString(name)
	dir := f.newDir()
	for _, file := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(name), 0o644); err != nil {
			f.t.Fatal(err)
		}
	}
	f.add(dgst, dir, resolved)
	return dgst
}

func (f *fakeFS) newDir() string {
	f.mu.Lock()
	n := len(f.layers)
	f.mu.Unlock()
	dir := filepath.Join(f.root, fmt.Sprint(n))
	if err := os.Mkdir(dir, 0o755); err != nil {
		f.t.Fatal(err)
	}
	return dir
}

func (f *fakeFS) add(dgst digest.Digest, dir string, resolved bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.layers[dgst] = &fakeLayer{dir: dir, resolved: resolved}
}

// edit changes a layer.
func (f *fakeFS) edit(dgst digest.Digest, change func(*fakeLayer)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change(f.layers[dgst])
}

// holds is the number of open holds on all layers.
func (f *fakeFS) holds() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.layers {
		n += l.holds
	}
	return n
}

// call counts one, and makes it fail if it is the one that is to.
func (f *fakeFS) call(name string) error {
	if on := f.onCall.Load(); on != nil {
		(*on)(name)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls++
	if f.calls == f.failAt {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

func (f *fakeFS) Open(src Source, restore bool) (Layer, error) {
	if err := f.call("open"); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	l := f.layers[src.Digest]
	if l == nil || !l.resolved && !restore {
		return nil, fmt.Errorf("layer %s: %w", src.Digest, cerrdefs.ErrUnavailable)
	}
	l.holds++
	return &fakeHold{fs: f, layer: l}, nil
}

func (f *fakeFS) Usage(dgst digest.Digest) (int64, error) {
	_ = f.call("usage")
	if f.usageOf == nil {
		return 0, nil
	}
	return f.usageOf(dgst)
}

// fakeHold is one open hold.
type fakeHold struct {
	fs     *fakeFS
	layer  *fakeLayer
	closed atomic.Bool
}

func (h *fakeHold) use(call string) error {
	if h.closed.Load() {
		h.fs.t.Errorf("%s of a layer that is closed", call)
	}
	return h.fs.call(call)
}

func (h *fakeHold) Dir(n int, x Xattrs) (string, error) {
	if err := h.use("dir"); err != nil {
		return "", err
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if !h.layer.resolved {
		return "", fmt.Errorf("pending: %w", cerrdefs.ErrUnavailable)
	}
	if n == 0 {
		return h.layer.dir, nil
	}
	alias := fmt.Sprintf("%s.%d", h.layer.dir, n)
	if _, err := os.Stat(alias); err != nil {
		if out, err := exec.Command("cp", "-a", h.layer.dir, alias).CombinedOutput(); err != nil {
			return "", fmt.Errorf("%w: %s", err, out)
		}
	}
	return alias, nil
}

func (h *fakeHold) Resolve(ctx context.Context) error {
	if err := h.use("resolve"); err != nil {
		return err
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if h.layer.resolved {
		return nil
	}
	h.layer.resolves++
	if gate := h.layer.gate; gate != nil {
		h.fs.mu.Unlock()
		select {
		case <-gate:
		case <-ctx.Done():
		}
		h.fs.mu.Lock()
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if h.layer.resolveErr != nil {
		return h.layer.resolveErr
	}
	h.layer.resolved = true
	return nil
}

func (h *fakeHold) Close() error {
	if h.closed.Swap(true) {
		h.fs.t.Error("a layer is closed twice")
		return nil
	}
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	h.layer.holds--
	return nil
}

// faultyMeta is a metadata store that counts its transactions' steps (begin and
// commit), makes one of them fail, and knows how many are open.
type faultyMeta struct {
	*storage.MetaStore
	mu     sync.Mutex
	steps  int
	failAt int
	open   atomic.Int32
}

func (m *faultyMeta) step(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.steps++
	if m.steps == m.failAt {
		return fmt.Errorf("%s: %w", name, errInjected)
	}
	return nil
}

func (m *faultyMeta) TransactionContext(ctx context.Context, writable bool) (context.Context, storage.Transactor, error) {
	if err := m.step("begin"); err != nil {
		return ctx, nil, err
	}
	ctx, tx, err := m.MetaStore.TransactionContext(ctx, writable)
	if err == nil {
		m.open.Add(1)
	}
	return ctx, &faultyTx{Transactor: tx, meta: m}, err
}

type faultyTx struct {
	storage.Transactor
	meta *faultyMeta
}

func (tx *faultyTx) Commit() error {
	defer tx.meta.open.Add(-1)
	if err := tx.meta.step("commit"); err != nil {
		return fmt.Errorf("%w (rollback: %v)", err, tx.Transactor.Rollback())
	}
	return tx.Transactor.Commit()
}

func (tx *faultyTx) Rollback() error {
	defer tx.meta.open.Add(-1)
	return tx.Transactor.Rollback()
}

// world is a snapshotter on a fake file system and a store that can fail.
type world struct {
	*Snapshotter
	t    testing.TB
	root string
	fs   *fakeFS
	meta *faultyMeta
}

func newWorld(t testing.TB, opts Options) *world {
	t.Helper()
	root := t.TempDir()
	w := &world{t: t, root: root, fs: newFakeFS(t, filepath.Join(root, "p"))}
	w.start(opts)
	return w
}

// start opens the snapshotter on the world's root, again after stop.
func (w *world) start(opts Options) {
	w.t.Helper()
	ms, err := openMetaStore(w.root)
	if err != nil {
		w.t.Fatal(err)
	}
	w.meta = &faultyMeta{MetaStore: ms}
	w.Snapshotter, err = open(w.t.Context(), w.root, w.fs, opts, w.meta)
	if err != nil {
		w.t.Fatal(err)
	}
	sn := w.Snapshotter
	w.t.Cleanup(func() { _ = sn.Close() })
}

func (w *world) stop() {
	w.t.Helper()
	if err := w.Close(); err != nil {
		w.t.Fatal(err)
	}
	if n := w.fs.holds(); n != 0 {
		w.t.Fatalf("%d layers are held after Close", n)
	}
}

const testRef = "registry.example/base:1"

// labels are those that BuildKit hands over for a layer.
func remoteLabels(target string, dgst digest.Digest) map[string]string {
	return map[string]string{
		LabelTarget:         target,
		labelReference:      testRef,
		labelDigest:         dgst.String(),
		AnnotationTOCDigest: "",
	}
}

// remote commits a remote snapshot.
func (w *world) remote(name, parent string, dgst digest.Digest) {
	w.t.Helper()
	_, err := w.Prepare(w.t.Context(), "tmp-"+name, parent, snapshots.WithLabels(remoteLabels(name, dgst)))
	if !cerrdefs.IsAlreadyExists(err) {
		w.t.Fatalf("prepare of remote snapshot %s: %v", name, err)
	}
}

// plain commits a plain snapshot with files.
func (w *world) plain(name, parent string, files ...string) {
	w.t.Helper()
	ctx := w.t.Context()
	if _, err := w.Prepare(ctx, "tmp-"+name, parent); err != nil {
		w.t.Fatal(err)
	}
	id, _, _, err := w.info(ctx, "tmp-"+name)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, f := range files {
		if err := os.WriteFile(filepath.Join(w.dirs.upper(id), f), []byte(name), 0o644); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := w.Commit(ctx, name, "tmp-"+name); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) id(key string) string {
	w.t.Helper()
	id, _, _, err := w.info(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// names lists all snapshots.
func (w *world) names() map[string]snapshots.Kind {
	w.t.Helper()
	m := map[string]snapshots.Kind{}
	err := w.Walk(w.t.Context(), func(_ context.Context, i snapshots.Info) error {
		m[i.Name] = i.Kind
		return nil
	})
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// checkNoLeak fails unless directories and holds are those of the snapshots.
func (w *world) checkNoLeak() {
	w.t.Helper()
	ids, remote := map[string]bool{}, 0
	for name := range w.names() {
		id, info, _, err := w.info(w.t.Context(), name)
		if err != nil {
			w.t.Fatal(err)
		}
		ids[id] = true
		if info.Kind == snapshots.KindCommitted && isRemote(info.Labels) {
			remote++
		}
	}
	entries, err := os.ReadDir(filepath.Join(w.root, "snapshots"))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if !ids[e.Name()] {
			w.t.Errorf("directory %s belongs to no snapshot", e.Name())
		}
		delete(ids, e.Name())
	}
	for id := range ids {
		w.t.Errorf("snapshot %s has no directory", id)
	}
	if got := w.fs.holds(); got != remote {
		w.t.Errorf("%d layers are held for %d remote snapshots", got, remote)
	}
	if n := w.meta.open.Load(); n != 0 {
		w.t.Errorf("%d transactions are open", n)
	}
}

// show mounts and returns the names of the files in the root directory and
// what they hold.
func show(t testing.TB, mounts []mount.Mount) map[string]string {
	t.Helper()
	dir := t.TempDir()
	if err := mount.All(mounts, dir); err != nil {
		t.Fatalf("mount %v: %v", mounts, err)
	}
	defer func() {
		if err := mount.UnmountAll(dir, 0); err != nil {
			t.Error(err)
		}
	}()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, e := range entries {
		if e.Type().IsRegular() {
			b, err := os.ReadFile(filepath.Join(dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			files[e.Name()] = string(b)
		}
	}
	return files
}

// lowerDirs are the lower directories of an overlay mount, nearest first.
func lowerDirs(t testing.TB, mounts []mount.Mount) []string {
	t.Helper()
	if len(mounts) != 1 || mounts[0].Type != "overlay" {
		t.Fatalf("not an overlay: %v", mounts)
	}
	for _, o := range mounts[0].Options {
		if l, ok := strings.CutPrefix(o, "lowerdir="); ok {
			return strings.Split(l, ":")
		}
	}
	t.Fatalf("no lowerdir: %v", mounts)
	return nil
}

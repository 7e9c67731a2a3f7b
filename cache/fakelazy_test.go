package cache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// fakeLazy is a registry, the lazy ability over it, and the file system that the
// snapshotter serves lazy layers from: ordinary directories. It writes down what it
// is asked for.
type fakeLazy struct {
	t    testing.TB
	root string
	f    *faults

	mu       sync.Mutex
	layers   map[digest.Digest]*layer
	resolved map[digest.Digest]bool
	opened   map[digest.Digest]int
	holds    map[int]remotesnapshot.Sessions
	nextHold int
	events   []string                 // "resolve x", "authorize x s1 s2", "unlazy x", "provide x", ...
	refuse   map[string]bool          // sessions that may not read, or not a layer: "s", "s x"
	down     error                    // of every request, when the registry does not answer
	gates    map[string]chan struct{} // "resolve x", "unlazy x": waited for when there
	at       chan string              // gets what has reached a gate
	usage    int64
}

var (
	_ remotesnapshot.Lazy       = (*fakeLazy)(nil)
	_ remotesnapshot.FileSystem = (*fakeLazy)(nil)
)

func newFakeLazy(t testing.TB, root string, f *faults) *fakeLazy {
	if err := os.MkdirAll(root, 0o755); err != nil {
		t.Fatal(err)
	}
	return &fakeLazy{
		t: t, root: root, f: f,
		layers:   map[digest.Digest]*layer{},
		resolved: map[digest.Digest]bool{},
		opened:   map[digest.Digest]int{},
		holds:    map[int]remotesnapshot.Sessions{},
		refuse:   map[string]bool{},
		gates:    map[string]chan struct{}{},
		at:       make(chan string, 100),
	}
}

func (r *fakeLazy) add(l *layer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.layers[l.desc.Digest] = l
}

// forget makes all layers unresolved, as a restart does.
func (r *fakeLazy) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.resolved)
}

// open is how many holds the snapshotter has on layers.
func (r *fakeLazy) open() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.opened {
		n += c
	}
	return n
}

// held is how many holds of sessions there are.
func (r *fakeLazy) held() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.holds)
}

// sessions are those of all holds at this moment.
func (r *fakeLazy) sessions() (list []string) {
	r.mu.Lock()
	holds := r.holds
	r.mu.Unlock()
	for _, s := range holds {
		list = append(list, s()...)
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// happened lists the events since the last call, those with a prefix only.
func (r *fakeLazy) happened(prefixes ...string) (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.events {
		if len(prefixes) == 0 || slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(e, p) }) {
			list = append(list, e)
		}
	}
	r.events = nil
	return list
}

// seen lists the events so far.
func (r *fakeLazy) seen() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *fakeLazy) note(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, fmt.Sprintf(format, args...))
}

// gate makes a call wait until the returned function is called.
func (r *fakeLazy) gate(call string) (open func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan struct{})
	r.gates[call] = c
	return sync.OnceFunc(func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.gates, call)
		close(c)
	})
}

func (r *fakeLazy) pass(ctx context.Context, call string) error {
	r.mu.Lock()
	c := r.gates[call]
	r.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case r.at <- call:
	default:
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (r *fakeLazy) find(src remotesnapshot.Source) (*layer, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.layers[src.Digest]
	switch {
	case r.down != nil:
		return nil, r.down
	case l == nil:
		return nil, fmt.Errorf("layer %s: %w", src.Digest, cerrdefs.ErrNotFound)
	}
	return l, nil
}

var errNoTOC = errors.New("it has no table of contents")

func (r *fakeLazy) Resolve(ctx context.Context, srcs ...remotesnapshot.Source) []error {
	errs := make([]error, len(srcs))
	for i, src := range srcs {
		errs[i] = r.resolve(ctx, src)
	}
	return errs
}

func (r *fakeLazy) resolve(ctx context.Context, src remotesnapshot.Source) error {
	if err := r.f.call("lazy.Resolve"); err != nil {
		return err
	}
	r.mu.Lock()
	known := r.resolved[src.Digest]
	r.mu.Unlock()
	if known {
		return nil
	}
	l, err := r.find(src)
	if err != nil {
		return err
	}
	r.note("resolve %s", l.name)
	if err := r.pass(ctx, "resolve "+l.name); err != nil {
		return err
	}
	if l.kind != lazyLayer && l.kind != zstdLayer {
		return fmt.Errorf("layer %s of %s: %w", src.Digest, src.Reference, errNoTOC)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resolved[src.Digest] = true
	return nil
}

func (r *fakeLazy) Hold(src remotesnapshot.Source, s remotesnapshot.Sessions) func() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.nextHold++
	id := r.nextHold
	r.holds[id] = s
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.holds, id)
	}
}

func (r *fakeLazy) Authorize(ctx context.Context, src remotesnapshot.Source, s remotesnapshot.Sessions) error {
	if err := r.f.call("lazy.Authorize"); err != nil {
		return err
	}
	l, err := r.find(src)
	if err != nil {
		return err
	}
	r.note("authorize %s %s", l.name, strings.Join(s(), " "))
	if err := r.pass(ctx, "authorize "+l.name); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, id := range s() {
		if !r.refuse[id] && !r.refuse[id+" "+l.name] {
			return nil
		}
	}
	return fmt.Errorf("layer %s of %s: %w", src.Digest, src.Reference, cerrdefs.ErrPermissionDenied)
}

func (r *fakeLazy) Vouch(src remotesnapshot.Source, s remotesnapshot.Sessions) {
	r.mu.Lock()
	name := r.layers[src.Digest].name
	r.mu.Unlock()
	r.note("vouch %s %s", name, strings.Join(s(), " "))
}

func (r *fakeLazy) Unlazy(ctx context.Context, src remotesnapshot.Source) (string, func(), error) {
	if err := r.f.call("lazy.Unlazy"); err != nil {
		return "", nil, err
	}
	l, err := r.find(src)
	if err != nil {
		return "", nil, err
	}
	r.note("unlazy %s", l.name)
	if err := r.pass(ctx, "unlazy "+l.name); err != nil {
		return "", nil, err
	}
	path := filepath.Join(r.root, "blob-"+src.Digest.Encoded())
	if err := os.WriteFile(path, l.data, 0o644); err != nil {
		return "", nil, err
	}
	return path, func() {}, nil
}

func (r *fakeLazy) Info(dgst digest.Digest) remotesnapshot.LayerInfo {
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.layers[dgst]
	if l == nil {
		return remotesnapshot.LayerInfo{}
	}
	return remotesnapshot.LayerInfo{Size: int64(len(l.data)), Fetched: r.usage, Open: r.opened[dgst] > 0}
}

func (r *fakeLazy) Usage(dgst digest.Digest) (int64, error) {
	if err := r.f.call("lazy.Usage"); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.resolved[dgst] {
		return 0, nil
	}
	return r.usage, nil
}

// Directories are root/<layer>/exact<n> and fast<n>.
const exactDir, fastDir = "exact", "fast"

func (r *fakeLazy) Fast(dirs []string) ([]string, error) {
	if err := r.f.call("lazy.Fast"); err != nil {
		return nil, err
	}
	out := slices.Clone(dirs)
	for i, d := range dirs {
		if n, ok := strings.CutPrefix(filepath.Base(d), exactDir); ok && strings.HasPrefix(d, r.root) {
			out[i] = filepath.Join(filepath.Dir(d), fastDir+n)
		}
	}
	return out, nil
}

// Open implements remotesnapshot.FileSystem.
func (r *fakeLazy) Open(src remotesnapshot.Source, restore bool) (remotesnapshot.Layer, error) {
	if err := r.f.call("fs.Open"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	l := r.layers[src.Digest]
	if l == nil || !restore && !r.resolved[src.Digest] {
		return nil, fmt.Errorf("layer %s: %w", src.Digest, cerrdefs.ErrUnavailable)
	}
	r.opened[src.Digest]++
	return &fakeHold{r: r, layer: l, src: src}, nil
}

// fakeHold is one open hold on a layer.
type fakeHold struct {
	r     *fakeLazy
	layer *layer
	src   remotesnapshot.Source
	once  sync.Once
}

func (h *fakeHold) Dir(n int, x remotesnapshot.Xattrs) (string, error) {
	if err := h.r.f.call("fs.Dir"); err != nil {
		return "", err
	}
	h.r.mu.Lock()
	defer h.r.mu.Unlock()
	if !h.r.resolved[h.layer.desc.Digest] {
		return "", fmt.Errorf("pending: %w", cerrdefs.ErrUnavailable)
	}
	dir := ""
	for _, kind := range []string{exactDir, fastDir} {
		d := filepath.Join(h.r.root, h.layer.desc.Digest.Encoded()[:12], fmt.Sprint(kind, n))
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
		if err := writeOnce(filepath.Join(d, h.layer.name), []byte(h.layer.name)); err != nil {
			return "", err
		}
		if (kind == fastDir) == (x == remotesnapshot.FastXattrs) {
			dir = d
		}
	}
	return dir, nil
}

func (h *fakeHold) Resolve(ctx context.Context) error { return h.r.resolve(ctx, h.src) }

func (h *fakeHold) Close() error {
	h.once.Do(func() {
		h.r.mu.Lock()
		defer h.r.mu.Unlock()
		h.r.opened[h.layer.desc.Digest]--
	})
	return nil
}

// registryProvider is the provider of a handler: it reads a blob by itself.
type registryProvider struct {
	reg   *fakeLazy
	layer *layer
}

func (p *registryProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if err := p.reg.f.call("provider.ReaderAt"); err != nil {
		return nil, err
	}
	p.reg.note("provide %s", p.layer.name)
	if err := p.reg.pass(ctx, "provide "+p.layer.name); err != nil {
		return nil, err
	}
	p.reg.mu.Lock()
	defer p.reg.mu.Unlock()
	return &blobReader{Reader: bytes.NewReader(p.layer.data)}, nil
}

type blobReader struct{ *bytes.Reader }

func (*blobReader) Close() error { return nil }

// writeOnce writes a file that may be there, and be read, already.
func writeOnce(path string, data []byte) error {
	if _, err := os.Lstat(path); err == nil {
		return nil
	}
	tmp, err := os.CreateTemp(filepath.Dir(filepath.Dir(path)), "new-")
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Chmod(tmp.Name(), 0o644)
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	return err
}

package lazyfs

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/fuse"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// FS serves lazily readable layers. Safe for concurrent use.
type FS struct {
	opts      Options
	tocDir    string
	blobs     *blob.Store
	server    *fuse.Server
	pool      *layer.Pool
	compiling *layer.Compiling
	// profiles is nil when they are turned off.
	profiles *profile.Store

	building chan struct{} // a place for who makes an image

	expected atomic.Int64 // layers, see Expect

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	calls  *calls
	wg     sync.WaitGroup // expiries, resolving ahead, profiles, evictions

	mu struct {
		sync.Mutex
		closed  bool
		entries map[key]*entry
		ahead   map[digest.Digest]time.Time // blobs whose TOC is on its way (zero), or is kept until then
		pins    map[digest.Digest]int       // holds of a layer; see Evict
		reasons reasons
	}
}

var (
	_ remotesnapshot.FileSystem = (*FS)(nil)
	_ remotesnapshot.Lazy       = (*FS)(nil)
)

// New mounts the file systems and opens the store. It cleans up what an earlier
// process left: mounts, and TOCs half written. ctx bounds the start only.
func New(ctx context.Context, opts Options) (_ *FS, err error) {
	opts, err = opts.withDefaults()
	if err != nil {
		return nil, err
	}
	fs := &FS{opts: opts, tocDir: filepath.Join(opts.Root, "toc"), pool: layer.NewPool(opts.Layer), compiling: layer.NewCompiling(), building: make(chan struct{}, 1)}
	if err := layer.MakeTOCDir(fs.tocDir); err != nil {
		return nil, fmt.Errorf("lazyfs: %w", err)
	}
	if !opts.NoProfiles {
		if fs.profiles, err = profile.Open(opts.ProfileDir); err != nil {
			return nil, fmt.Errorf("lazyfs: %w", err)
		}
	}
	opts.Blob.Root = filepath.Join(opts.Root, "blobs")
	if fs.blobs, err = blob.NewStore(opts.Blob); err != nil {
		return nil, fmt.Errorf("lazyfs: %w", err)
	}
	fs.server, err = fuse.NewServer(ctx, fuse.Options{
		Root: opts.MountRoot, Images: !opts.NoImages, UserXattr: opts.UserXattr, Debug: opts.Debug,
	})
	if err != nil {
		_ = fs.blobs.Close() // it has done nothing yet
		return nil, fmt.Errorf("lazyfs: %w", err)
	}
	// The file system's own life: it outlasts the start that ctx bounds.
	fs.ctx, fs.cancel = context.WithCancel(context.WithoutCancel(ctx))
	fs.calls = newCalls(fs.ctx)
	fs.mu.entries = make(map[key]*entry)
	fs.mu.ahead = make(map[digest.Digest]time.Time)
	fs.mu.pins = make(map[digest.Digest]int)
	if opts.MaxBytes > 0 {
		fs.wg.Go(fs.keepLimit)
	}
	return fs, nil
}

// Close ends all reads and layers, unmounts and waits for all work. Holds that
// are still out are void afterwards.
func (fs *FS) Close() error {
	entries := fs.shut()
	fs.cancel()
	fs.calls.close()
	var closing sync.WaitGroup
	for _, e := range entries {
		closing.Go(e.close)
	}
	closing.Wait()
	err := fs.server.Close()
	fs.wg.Wait()
	if e := fs.blobs.Close(); err == nil {
		err = e
	}
	fs.pool.Close()
	return err
}

// shut refuses new holds and returns the entries that are to be closed.
func (fs *FS) shut() (entries []*entry) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.mu.closed = true
	for k, e := range fs.mu.entries {
		delete(fs.mu.entries, k)
		entries = append(entries, e)
		fs.stopExpiryLocked(e)
	}
	return entries
}

// Open implements remotesnapshot.FileSystem.
func (fs *FS) Open(src remotesnapshot.Source, restore bool) (remotesnapshot.Layer, error) {
	r, err := newRequest(src)
	if err != nil {
		return nil, named("open", src, err)
	}
	e, err := fs.hold(r)
	if err != nil {
		return nil, named("open", src, err)
	}
	h := &handle{fs: fs, entry: e, request: r}
	if e.content.layer.Load() != nil {
		return h, nil
	}
	if err := fs.openKept(e, r); err != nil && !restore {
		fs.release(e)
		return nil, named("open", src, fmt.Errorf("%w: %w", cerrdefs.ErrUnavailable, err))
	}
	return h, nil
}

// hold returns the entry of a layer, made if absent, with one more hold.
func (fs *FS) hold(r request) (*entry, error) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed {
		return nil, ErrClosed
	}
	e := fs.mu.entries[r.key()]
	if e == nil {
		e = &entry{key: r.key(), content: content{digest: r.Digest}}
		fs.mu.entries[e.key] = e
		if !fs.mu.ahead[e.key.blob].IsZero() {
			delete(fs.mu.ahead, e.key.blob) // the entry keeps it from now on
		}
	}
	e.reference = r.Reference
	fs.retainLocked(e)
	return e, nil
}

// retain takes one more hold; the caller has one.
func (fs *FS) retain(e *entry) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.retainLocked(e)
}

// retainOpen takes a hold unless the entry has expired.
func (fs *FS) retainOpen(e *entry) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed || fs.mu.entries[e.key] != e {
		return false
	}
	fs.retainLocked(e)
	return true
}

func (fs *FS) retainLocked(e *entry) {
	e.holds++
	fs.stopExpiryLocked(e)
}

func (fs *FS) stopExpiryLocked(e *entry) {
	if e.expiry != nil && e.expiry.Stop() {
		fs.wg.Done()
	}
	e.expiry = nil
}

// release ends a hold. After the last one the entry stays for the TTL.
func (fs *FS) release(e *entry) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	e.holds--
	if e.holds < 0 {
		panic("lazyfs: layer released twice")
	}
	if e.holds > 0 || fs.mu.closed {
		return
	}
	fs.wg.Add(1)
	e.expiry = time.AfterFunc(max(fs.opts.TTL, 0), func() {
		defer fs.wg.Done()
		fs.expire(e)
	})
}

// expire closes an entry that nobody came back for.
func (fs *FS) expire(e *entry) {
	if !fs.idle(e, false) {
		return
	}
	// Only the order in which Collect frees depends on it.
	_ = fs.markUsed(e.key)
	if fs.idle(e, true) {
		e.close()
	}
}

// idle says whether nobody holds an entry that is open, and drops it on demand.
func (fs *FS) idle(e *entry, drop bool) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	idle := e.holds == 0 && fs.mu.entries[e.key] == e
	if idle && drop {
		delete(fs.mu.entries, e.key)
	}
	return idle
}

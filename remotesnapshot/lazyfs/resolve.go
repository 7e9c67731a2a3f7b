package lazyfs

import (
	"context"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// Resolve implements remotesnapshot.Lazy. See IsFinal for the errors.
func (fs *FS) Resolve(ctx context.Context, srcs ...remotesnapshot.Source) []error {
	errs := make([]error, len(srcs))
	var wg sync.WaitGroup
	for i, src := range srcs {
		wg.Go(func() {
			r, err := newRequest(src)
			if err == nil {
				err = fs.resolve(ctx, r)
			} else {
				fs.note(src, err)
			}
			errs[i] = notLazy(src, err)
		})
	}
	fs.resolveAhead(srcs)
	fs.expectSteps(srcs)
	wg.Wait()
	return errs
}

// resolve makes a layer readable.
func (fs *FS) resolve(ctx context.Context, r request) error {
	e, err := fs.hold(r)
	if err != nil {
		return err
	}
	defer fs.release(e)
	return fs.resolveEntry(ctx, e, r)
}

// resolveEntry makes the layer of an entry that the caller holds readable.
func (fs *FS) resolveEntry(ctx context.Context, e *entry, r request) error {
	if e.content.layer.Load() != nil {
		fs.makeImage(e)
		return fs.refresh(r)
	}
	// Who joins brings another place to ask: the first one's may be dead.
	b, err := fs.openBlob(r.Digest, r.Reference)
	if err != nil {
		return err
	}
	defer closeQuietly(b)
	return fs.calls.do(ctx, e.key, func(ctx context.Context) error {
		// The caller may leave before the work ends.
		fs.retain(e)
		defer fs.release(e)
		err := fs.find(ctx, e, r)
		fs.note(r.Source, err)
		if err == nil {
			fs.makeImage(e)
		}
		return err
	})
}

// find resolves and opens a layer over the network.
func (fs *FS) find(ctx context.Context, e *entry, r request) error {
	b, err := fs.openBlob(r.Digest, r.Reference)
	if err != nil {
		return err
	}
	f := fs.finder()
	f.External = func(ctx context.Context) ([]byte, error) { return fs.externalTOC(ctx, r) }
	toc, err := f.Resolve(ctx, b, r.hints)
	if err != nil {
		closeQuietly(b)
		return err
	}
	fs.adopt(e, b, toc)
	return nil
}

// openKept opens a layer from what is on disk.
func (fs *FS) openKept(e *entry, r request) error {
	b, err := fs.openBlob(r.Digest, r.Reference)
	if err != nil {
		return err
	}
	toc, err := fs.finder().OpenTOC(b, r.hints)
	if err != nil {
		closeQuietly(b)
		return err
	}
	fs.adopt(e, b, toc)
	return nil
}

// adopt makes blob and TOC the layer of e, unless another one was faster.
func (fs *FS) adopt(e *entry, b layerBlob, toc *estargz.TOC) {
	l := layer.Open(fs.pool, b, toc)
	l.SetImage(func() []*layer.Layer { return fs.siblings(e) })
	if !e.content.layer.CompareAndSwap(nil, l) {
		l.Close()
	}
}

func (fs *FS) finder() layer.Finder {
	return layer.Finder{TOCDir: fs.tocDir, Limits: fs.opts.TOC, Compiling: fs.compiling}
}

func (fs *FS) openBlob(dgst digest.Digest, reference string) (layerBlob, error) {
	b, err := fs.blobs.Open(dgst, blob.Origin{Reference: reference, Hosts: fs.opts.Hosts(reference)})
	return layerBlob{b}, err
}

// closeQuietly closes a blob after an error that says more than this one could.
func closeQuietly(b layerBlob) { _ = b.Close() }

// refresh tells a layer that is open of one more image to ask for its blob.
func (fs *FS) refresh(r request) error {
	b, err := fs.openBlob(r.Digest, r.Reference)
	if err != nil {
		return err
	}
	return b.Close()
}

// maxAhead bounds the neighbours that are resolved ahead at the same time.
const maxAhead = 16

// aheadKept is how long Collect spares what was fetched ahead. A garbage collection
// may come between two layers of an image, and its next layer is asked for soon.
const aheadKept = time.Minute

// resolveAhead fetches, behind the caller's back, footers and TOCs of the layers
// that lie above those of srcs: they will be asked for next. Only for images
// that say that they are lazy; their verification waits for the manifest's digest.
func (fs *FS) resolveAhead(srcs []remotesnapshot.Source) {
	for _, src := range srcs {
		r, err := newRequest(src)
		if err != nil || r.hints.TOCDigest == "" {
			continue
		}
		for _, dgst := range src.Neighbours {
			asked := slices.ContainsFunc(srcs, func(s remotesnapshot.Source) bool { return s.Digest == dgst })
			if !asked && fs.beginAhead(dgst) {
				go fs.fetchAhead(dgst, src.Reference)
			}
		}
	}
}

const (
	// expectTime bounds what Expect does.
	expectTime = 30 * time.Second
	// maxExpected is how many layers may be expected at the same time.
	maxExpected = 256
)

// Expect begins to resolve layers of one image that will probably be asked for soon, and lets the
// reads authenticate through s as long as that takes, or until ctx ends. It does not block. Those
// that are open stay what they are. Errors are left to the Resolve that will meet them, and too many
// layers to the one that will need them.
func (fs *FS) Expect(ctx context.Context, srcs []remotesnapshot.Source, s remotesnapshot.Sessions) {
	srcs = slices.DeleteFunc(slices.Clone(srcs), func(src remotesnapshot.Source) bool {
		_, err := newRequest(src)
		return err != nil || fs.isOpen(src.Digest)
	})
	n := int64(len(srcs))
	if n == 0 {
		return
	}
	if fs.expected.Add(n) > maxExpected {
		fs.expected.Add(-n)
		return
	}
	started := fs.inBackground(func() {
		defer fs.expected.Add(-n)
		ctx, cancel := context.WithTimeout(ctx, expectTime)
		defer cancel()
		defer context.AfterFunc(fs.ctx, cancel)()
		for _, src := range srcs {
			defer fs.Hold(src, s)()
		}
		_ = fs.Resolve(ctx, srcs...)
	})
	if !started {
		fs.expected.Add(-n)
	}
}

// firstReads is how many requests a step begins with of which nothing is known.
const firstReads = 16

// expectSteps has connections made, while layers are resolved, for the step that reads the
// most of an image of theirs, as far as profiles know it: it may be the next one.
func (fs *FS) expectSteps(srcs []remotesnapshot.Source) {
	images := map[string][]digest.Digest{}
	for _, src := range srcs {
		images[src.Reference] = append(append(images[src.Reference], src.Digest), src.Neighbours...)
	}
	for reference, layers := range images {
		slices.Sort(layers)
		layers = slices.Compact(layers)
		if slices.ContainsFunc(layers, fs.isOpen) {
			continue // what is known of it was fetched before, mostly
		}
		fs.inBackground(func() {
			n := firstReads
			if fs.profiles != nil {
				n = max(n, fs.profiles.Requests(layers...))
			}
			b, err := fs.openBlob(layers[0], reference)
			if err != nil {
				return // Resolve meets it
			}
			defer closeQuietly(b)
			b.Expect(fs.ctx, n)
		})
	}
}

// isOpen says whether a layer is readable already.
func (fs *FS) isOpen(dgst digest.Digest) bool {
	return slices.ContainsFunc(fs.entriesOf(dgst), func(e *entry) bool { return e.content.layer.Load() != nil })
}

// beginAhead says whether a blob is to be fetched ahead; Close waits for that.
func (fs *FS) beginAhead(dgst digest.Digest) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed || fs.aheadLocked() >= maxAhead || dgst.Validate() != nil {
		return false
	}
	if _, ok := fs.mu.ahead[dgst]; ok {
		return false
	}
	for k := range fs.mu.entries {
		if k.blob == dgst {
			return false
		}
	}
	fs.mu.ahead[dgst] = time.Time{}
	fs.wg.Add(1)
	return true
}

// aheadLocked is how many blobs are being fetched ahead. It forgets those that
// need not be kept any more.
func (fs *FS) aheadLocked() (n int) {
	now := time.Now()
	for d, until := range fs.mu.ahead {
		switch {
		case until.IsZero():
			n++
		case until.Before(now):
			delete(fs.mu.ahead, d)
		}
	}
	return n
}

// fetchAhead leaves errors to the Resolve that will meet them again.
func (fs *FS) fetchAhead(dgst digest.Digest, reference string) {
	defer fs.wg.Done()
	defer func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		fs.mu.ahead[dgst] = time.Now().Add(aheadKept)
	}()
	b, err := fs.openBlob(dgst, reference)
	if err != nil {
		return
	}
	defer closeQuietly(b)
	_ = layer.Ahead(fs.ctx, b)
}

package lazyfs

import (
	"context"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// evictEvery is how often the limit is looked at.
const evictEvery = 5 * time.Second

// pin keeps a layer's bytes from being evicted until release is called: a mount
// needs it.
func (fs *FS) pin(dgst digest.Digest) (release func()) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.mu.pins[dgst]++
	return sync.OnceFunc(func() {
		fs.mu.Lock()
		defer fs.mu.Unlock()
		if fs.mu.pins[dgst]--; fs.mu.pins[dgst] == 0 {
			delete(fs.mu.pins, dgst)
		}
	})
}

// keepLimit evicts now and then, until the file system is closed.
func (fs *FS) keepLimit() {
	t := time.NewTicker(evictEvery)
	defer t.Stop()
	for {
		select {
		case <-fs.ctx.Done():
			return
		case <-t.C:
		}
		if _, err := fs.Evict(fs.ctx); err != nil && fs.ctx.Err() == nil {
			fs.opts.OnError(err)
		}
	}
}

// Evict frees the bytes of blobs that no mount needs, those first that were not used
// for longest, until all blobs together have nine tenths of MaxBytes, when they have
// more than that. It says how much it freed. Layers stay as they are: what is read
// of them afterwards is fetched again. Blobs that the content store has as well do
// not count, and are not touched.
func (fs *FS) Evict(ctx context.Context) (freed int64, err error) {
	if fs.opts.MaxBytes <= 0 {
		return 0, nil
	}
	list, err := fs.unusedBlobs(nil)
	if err != nil {
		return 0, err
	}
	var total int64
	for _, k := range list {
		total += k.size
	}
	if total <= fs.opts.MaxBytes {
		return 0, nil
	}
	slices.SortFunc(list, func(a, b kept) int { return a.used.Compare(b.used) })
	for _, k := range list {
		if total-freed <= fs.opts.MaxBytes/10*9 {
			break
		}
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		if fs.pinned(k.blob) {
			continue
		}
		n, err := fs.blobs.Evict(k.blob)
		if err != nil {
			return freed, err
		}
		freed += n
	}
	return freed, nil
}

func (fs *FS) pinned(dgst digest.Digest) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.mu.pins[dgst] > 0
}

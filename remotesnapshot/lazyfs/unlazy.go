package lazyfs

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// Unlazy makes an open layer local: what is missing of its blob is fetched, and
// the whole is verified. The path is of the file with the blob's bytes, which
// never change from then on; it stays while the layer is open, so a caller who
// wants to keep the file links it at once. errdefs.ErrNotFound when no layer of
// the blob is open.
func (fs *FS) Unlazy(ctx context.Context, dgst digest.Digest) (path string, err error) {
	e, reference := fs.holdAny(dgst)
	if e == nil {
		return "", fmt.Errorf("unlazy layer %s: %w", dgst, cerrdefs.ErrNotFound)
	}
	defer fs.release(e)
	b, err := fs.openBlob(dgst, reference)
	if err != nil {
		return "", fmt.Errorf("unlazy layer %s: %w", dgst, err)
	}
	defer closeQuietly(b)
	// Nobody's read waits for it, so it gives way to those that do.
	if err := b.Blob.Complete(ctx, blob.Prefetch); err != nil {
		return "", fmt.Errorf("unlazy layer %s: %w", dgst, err)
	}
	return b.Path(), nil
}

// Fetched is how many bytes of an open layer's blob are on disk, and its size;
// zeros when no layer of the blob is open and resolved.
func (fs *FS) Fetched(dgst digest.Digest) (fetched, size int64) {
	info, ok := fs.Info(dgst)
	if !ok {
		return 0, 0
	}
	return info.Fetched, info.Size
}

// SourceOf is where an open layer of a blob comes from, as the image that asked
// last has it, sessions left out. False when no layer of the blob is open.
func (fs *FS) SourceOf(dgst digest.Digest) (remotesnapshot.Source, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for k, e := range fs.mu.entries {
		if k.blob == dgst {
			return e.source, true
		}
	}
	return remotesnapshot.Source{}, false
}

// holdAny takes a hold on one of the blob's layers that are open, pending ones
// included: to have a blob whole takes no TOC. nil when there is none.
func (fs *FS) holdAny(dgst digest.Digest) (e *entry, reference string) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed {
		return nil, ""
	}
	for k, e := range fs.mu.entries {
		if k.blob == dgst {
			fs.retainLocked(e)
			return e, e.source.Reference
		}
	}
	return nil, ""
}

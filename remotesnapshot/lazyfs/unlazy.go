package lazyfs

import (
	"context"
	"fmt"
	"sync"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// Unlazy implements remotesnapshot.Lazy. The open blob keeps Collect and Remove
// away until release.
func (fs *FS) Unlazy(ctx context.Context, src remotesnapshot.Source) (path string, release func(), err error) {
	defer func() { err = failed(ctx, "unlazy", src, err) }()
	if err := src.Digest.Validate(); err != nil {
		return "", nil, fmt.Errorf("%w: %w", cerrdefs.ErrInvalidArgument, err)
	}
	b, err := fs.openBlob(src.Digest, src.Reference)
	if err != nil {
		return "", nil, err
	}
	// Nobody's read waits for it, so it gives way to those that do.
	if err := b.Blob.Complete(ctx, blob.Prefetch); err != nil {
		closeQuietly(b)
		return "", nil, err
	}
	return b.Path(), sync.OnceFunc(func() { closeQuietly(b) }), nil
}

// Fetched is how many bytes of an open layer's blob are on disk, and its size;
// zeros when no layer of the blob is open and resolved.
func (fs *FS) Fetched(dgst digest.Digest) (fetched, size int64) {
	info := fs.Info(dgst)
	if !info.Open {
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

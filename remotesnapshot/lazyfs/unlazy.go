package lazyfs

import (
	"context"
	"fmt"
	"sync"

	cerrdefs "github.com/containerd/errdefs"

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

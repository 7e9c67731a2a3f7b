package worker

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// foreign is the lazy ability of a stargz snapshotter in another process, of which
// only the labels of a Prepare are known: it makes a remote snapshot, or it
// does not. It has credentials of its own, and its blobs can't be had.
type foreign struct{}

var _ remotesnapshot.Lazy = foreign{}

// Resolve leaves it to Prepare to find out.
func (foreign) Resolve(_ context.Context, srcs ...remotesnapshot.Source) []error {
	return make([]error, len(srcs))
}

// Hold has nobody to tell of sessions.
func (foreign) Hold(remotesnapshot.Source, remotesnapshot.Sessions) func() { return func() {} }

// Vouch has nobody to tell of rights.
func (foreign) Vouch(remotesnapshot.Source, remotesnapshot.Sessions) {}

// Authorize can't ask anybody.
func (foreign) Authorize(_ context.Context, src remotesnapshot.Source, _ remotesnapshot.Sessions) error {
	return fmt.Errorf("layer %s of %s is served by another process: %w", src.Digest, src.Reference, cerrdefs.ErrUnavailable)
}

// Unlazy can't reach the blob.
func (foreign) Unlazy(_ context.Context, src remotesnapshot.Source) (string, func(), error) {
	return "", nil, fmt.Errorf("layer %s of %s is served by another process: %w", src.Digest, src.Reference, cerrdefs.ErrUnavailable)
}

// Stream can't reach the blob.
func (f foreign) Stream(ctx context.Context, src remotesnapshot.Source) (remotesnapshot.BlobReader, error) {
	_, _, err := f.Unlazy(ctx, src)
	return nil, err
}

// Info knows nothing.
func (foreign) Info(digest.Digest) remotesnapshot.LayerInfo { return remotesnapshot.LayerInfo{} }

// Usage is what the other process has to say, not us.
func (foreign) Usage(digest.Digest) (int64, error) { return 0, nil }

// Fast has no other directories.
func (foreign) Fast(dirs []string) ([]string, error) { return dirs, nil }

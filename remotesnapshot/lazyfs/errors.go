package lazyfs

import (
	"context"
	"errors"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// ErrClosed is returned once an FS is closed.
var ErrClosed = errors.New("lazyfs is closed")

// IsFinal says whether an error of Resolve will stay: the layer has no table of
// contents, or a wrong one. Others are temporary and wrap errdefs.ErrUnavailable
// (or are the caller's own context's). The layer has to be pulled whole in
// either case.
func IsFinal(err error) bool {
	return errors.Is(err, estargz.ErrNotLazy) || errors.Is(err, estargz.ErrCorrupt)
}

// classify names the layer and gives temporary errors their class.
func classify(dgst digest.Digest, err error) error {
	switch {
	case err == nil:
		return nil
	case IsFinal(err), cerrdefs.IsUnavailable(err),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("resolve %s: %w", dgst, err)
	}
	return fmt.Errorf("resolve %s: %w: %w", dgst, cerrdefs.ErrUnavailable, err)
}

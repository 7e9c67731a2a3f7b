package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot"
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

// named says what was tried with which layer of which image.
func named(what string, src remotesnapshot.Source, err error) error {
	if src.Reference == "" {
		return fmt.Errorf("%s layer %s: %w", what, src.Digest, err)
	}
	return fmt.Errorf("%s layer %s of %s: %w", what, src.Digest, src.Reference, err)
}

// notLazy is an error of Resolve. What isn't final is unavailable, whatever the
// registry says: the layer has to be pulled whole, and may be lazy another day.
func notLazy(src remotesnapshot.Source, err error) error {
	if err == nil {
		return nil
	}
	if !IsFinal(err) && !isContext(err) && !cerrdefs.IsUnavailable(err) {
		err = fmt.Errorf("%w: %w", cerrdefs.ErrUnavailable, err)
	}
	return named("resolve", src, err)
}

// classes are those that callers tell apart.
var classes = []error{
	cerrdefs.ErrUnavailable, cerrdefs.ErrUnauthenticated, cerrdefs.ErrPermissionDenied, cerrdefs.ErrNotFound,
	cerrdefs.ErrDataLoss, cerrdefs.ErrInvalidArgument,
}

// failed is an error of the other calls: it keeps its class, and one that has
// none is unavailable.
func failed(ctx context.Context, what string, src remotesnapshot.Source, err error) error {
	if err == nil {
		return nil
	}
	hasClass := slices.ContainsFunc(classes, func(class error) bool { return errors.Is(err, class) })
	if ctx.Err() == nil && !isContext(err) && !hasClass {
		err = fmt.Errorf("%w: %w", cerrdefs.ErrUnavailable, err)
	}
	return named(what, src, err)
}

func isContext(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

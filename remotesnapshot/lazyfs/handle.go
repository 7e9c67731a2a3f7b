package lazyfs

import (
	"context"
	"fmt"
	"sync"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// handle is a hold on an entry, as the snapshotter has it.
type handle struct {
	fs      *FS
	entry   *entry
	request request
	once    sync.Once
}

var _ remotesnapshot.Layer = (*handle)(nil)

// Dir implements remotesnapshot.Layer: errdefs.ErrUnavailable for a layer that is
// not resolved. What is to be prefetched of the layer is fetched from now on.
func (h *handle) Dir(n int, x remotesnapshot.Xattrs) (string, error) {
	l := h.entry.content.layer.Load()
	if l == nil {
		return "", fmt.Errorf("layer %s is not resolved: %w", h.request.Digest, cerrdefs.ErrUnavailable)
	}
	dir, err := h.fs.dir(h.entry, n, x)
	if err != nil {
		return "", err
	}
	l.Prefetch()
	return dir, nil
}

// Resolve implements remotesnapshot.Layer. See IsFinal for the errors.
func (h *handle) Resolve(ctx context.Context) error {
	if h.entry.content.layer.Load() != nil {
		return nil
	}
	return notLazy(h.request.Source, h.fs.resolveEntry(ctx, h.entry, h.request))
}

// Close implements remotesnapshot.Layer. It may be called more than once.
func (h *handle) Close() error {
	h.once.Do(func() { h.fs.release(h.entry) })
	return nil
}

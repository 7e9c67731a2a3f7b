package lazyfs

import (
	"context"
	"fmt"
	"sync/atomic"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// content is a layer as the FUSE server wants it. It has no layer while its entry
// is pending, and no directory either.
type content struct {
	digest digest.Digest
	layer  atomic.Pointer[layer.Layer]
}

var (
	_ fuse.Content = (*content)(nil)
	_ fuse.Whole   = (*content)(nil)
)

func (c *content) Acquire() (*estargz.TOC, error) {
	l := c.layer.Load()
	if l == nil {
		return nil, fmt.Errorf("layer %s is not resolved yet: %w", c.digest, cerrdefs.ErrUnavailable)
	}
	return l.Acquire()
}

// Release ends a hold. The layer never changes once it is set.
func (c *content) Release() { c.layer.Load().Release() }

func (c *content) ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (int, error) {
	return c.layer.Load().ReadAt(ctx, inode, dst, off)
}

// Whole returns a chunk that was read in part.
func (c *content) Whole(inode uint32, off, least, margin int64) (fuse.Piece, bool) {
	w, ok := c.layer.Load().Whole(inode, off, least, margin)
	return fuse.Piece{Off: w.Off, Data: w.Data, Again: w.Again, Release: w.Release}, ok
}

func (c *content) Status() fuse.Status {
	i, ok := c.info()
	if !ok {
		return fuse.Status{Digest: c.digest}
	}
	s := fuse.Status{Digest: c.digest, Size: i.Size, FetchedSize: i.Fetched, Error: i.LastError}
	if i.Size > 0 {
		s.FetchedPercent = float64(i.Fetched) / float64(i.Size) * 100
	}
	return s
}

// info is false while the layer is pending and after it was closed.
func (c *content) info() (layer.Info, bool) {
	l := c.layer.Load()
	if l == nil {
		return layer.Info{}, false
	}
	if _, err := l.Acquire(); err != nil {
		return layer.Info{}, false
	}
	defer l.Release()
	return l.Info(), true
}

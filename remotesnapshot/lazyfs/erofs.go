package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/containerd/log"

	"github.com/lazykit/lazykit/fuse"
	"github.com/lazykit/lazykit/fuse/erofs"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// madeImage is a layer's EROFS image, made once while its entry is open.
type madeImage struct {
	begun atomic.Bool // see makeImage
	once  sync.Once
	img   *erofs.Image // nil: there is none
}

// close ends the hold, and lets none be made any more.
func (m *madeImage) close() {
	m.once.Do(func() {})
	if m.img != nil {
		m.img.Release()
	}
}

// makeImage makes the image of a layer that was resolved, behind its caller's back: the
// snapshot that needs it is about to be mounted. The caller holds the entry.
func (fs *FS) makeImage(e *entry) {
	if fs.opts.NoImages || !fs.server.Images() || !e.image.begun.CompareAndSwap(false, true) {
		return
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed {
		return
	}
	fs.retainLocked(e)
	fs.wg.Go(func() {
		defer fs.release(e)
		fs.imageOf(e)
	})
}

// imageOf returns a layer's image, made at the first call; nil for a layer that has none.
func (fs *FS) imageOf(e *entry) *erofs.Image {
	if fs.opts.NoImages || !fs.server.Images() {
		return nil
	}
	e.image.once.Do(func() {
		img, err := fs.buildImage(e)
		switch {
		case err == nil:
			e.image.img = img
		case errors.Is(err, context.Canceled):
		case errors.Is(err, erofs.ErrUnsupported):
			log.G(fs.ctx).WithError(err).Infof("layer %s is served by FUSE alone", e.key.blob)
		default:
			log.G(fs.ctx).WithError(err).Warnf("layer %s is served by FUSE alone", e.key.blob)
		}
	})
	return e.image.img
}

// buildImage makes one at a time, since each needs memory for its inodes.
func (fs *FS) buildImage(e *entry) (*erofs.Image, error) {
	select {
	case fs.building <- struct{}{}:
		defer func() { <-fs.building }()
	case <-fs.ctx.Done():
		return nil, fs.ctx.Err()
	}
	toc, err := e.content.Acquire()
	if err != nil {
		return nil, err
	}
	defer e.content.Release()
	return erofs.Build(fs.ctx, toc, erofs.Options{Dir: fs.tocDir, Opaque: fuse.Opaque(fs.opts.UserXattr)})
}

// shown returns where the n-th copy of an image is mounted.
func (fs *FS) shown(e *entry, n int, img *erofs.Image) (string, error) {
	e.dirs.Lock()
	defer e.dirs.Unlock()
	if e.dirs.closed {
		return "", fmt.Errorf("layer %s: %w", e.key.blob, ErrClosed)
	}
	for len(e.dirs.images) <= n {
		d, err := fs.server.AddImage(&e.content, img)
		if err != nil {
			return "", err
		}
		e.dirs.images = append(e.dirs.images, d)
		fs.give(e)
	}
	return e.dirs.images[n].Path(), nil
}

// give has a layer's scans read from the page cache of its image, where there is one
// image: of several nobody knows which one is read.
func (fs *FS) give(e *entry) {
	l := e.content.layer.Load()
	if len(e.dirs.images) != 1 {
		l.SetTaker(nil)
		return
	}
	d := e.dirs.images[0]
	l.SetTaker(func(given []layer.Given) bool {
		parts := make([]fuse.Part, len(given))
		for i, g := range given {
			parts[i] = fuse.Part{Inode: g.Inode, Off: g.Off, Data: g.Data}
		}
		return d.StoreAhead(parts)
	})
}

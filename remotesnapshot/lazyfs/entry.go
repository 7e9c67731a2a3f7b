package lazyfs

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/containerd/log"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
	"github.com/lazykit/lazykit/remotesnapshot"
)

// key names a layer: the same blob under another TOC is another layer, since an
// external TOC is no part of the blob.
type key struct {
	blob digest.Digest
	toc  digest.Digest // "" when the manifest names none
}

// request is a Source with its annotations understood.
type request struct {
	remotesnapshot.Source
	hints estargz.Hints
}

func newRequest(src remotesnapshot.Source) (request, error) {
	if err := src.Digest.Validate(); err != nil {
		return request{}, fmt.Errorf("digest: %w", err)
	}
	hints, err := estargz.ParseHints(src.Annotations)
	if err != nil {
		return request{}, fmt.Errorf("annotations: %w", err)
	}
	hints.BlobSize = src.Size
	return request{Source: src, hints: hints}, nil
}

func (r request) key() key { return key{blob: r.Digest, toc: r.hints.TOCDigest} }

// maxCopies is how often one layer may occur in a chain: overlayfs takes no more
// than 500 lower directories.
const maxCopies = 500

// entry is one layer while it is open. Counted by FS.retain and FS.release.
type entry struct {
	key     key
	content content

	// Guarded by FS.mu.
	holds     int
	expiry    *time.Timer // set while nobody holds the entry
	reference string      // of the image that asked last
	place     int         // above those with lower ones; 0: not known

	dirs struct {
		sync.Mutex
		closed bool
		fast   []*fuse.Dir // by copy
		exact  []*fuse.Dir // by copy
		images []*fuse.Dir // by copy; instead of both where the kernel shows images
	}
	image madeImage
}

// dir returns the n-th copy's directory, made at its first use.
func (fs *FS) dir(e *entry, n int, x remotesnapshot.Xattrs) (string, error) {
	if n < 0 || n >= maxCopies {
		return "", fmt.Errorf("layer %s: copy %d of %d", e.key.blob, n, maxCopies)
	}
	if img := fs.imageOf(e); img != nil {
		dir, err := fs.shown(e, n, img)
		if err == nil {
			return dir, nil
		}
		// FUSE does without what an image needs: an own mount, space on the disk.
		if !errors.Is(err, fuse.ErrNoImages) && !errors.Is(err, ErrClosed) {
			log.G(fs.ctx).WithError(err).Warnf("layer %s is served by FUSE alone", e.key.blob)
		}
	}
	s := fs.server
	e.dirs.Lock()
	defer e.dirs.Unlock()
	if e.dirs.closed {
		return "", fmt.Errorf("layer %s: %w", e.key.blob, ErrClosed)
	}
	list, add := &e.dirs.fast, s.Add
	if x == remotesnapshot.ExactXattrs {
		list, add = &e.dirs.exact, s.AddExact
	}
	for len(*list) <= n {
		d, err := add(&e.content)
		if err != nil {
			return "", fmt.Errorf("layer %s: %w", e.key.blob, err)
		}
		*list = append(*list, d)
	}
	return (*list)[n].Path(), nil
}

// close ends the directories, then the layer. Nobody holds the entry any more.
func (e *entry) close() {
	e.dirs.Lock()
	e.dirs.closed = true
	dirs := slices.Concat(e.dirs.fast, e.dirs.exact, e.dirs.images)
	e.dirs.fast, e.dirs.exact, e.dirs.images = nil, nil, nil
	e.dirs.Unlock()
	for _, d := range dirs {
		d.Remove()
	}
	e.image.close()
	if l := e.content.layer.Load(); l != nil {
		l.Close()
	}
}

// referenceOf is the image that asked last for an entry, to name it in errors.
func (fs *FS) referenceOf(e *entry) string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if e.reference == "" {
		return "the base"
	}
	return e.reference
}

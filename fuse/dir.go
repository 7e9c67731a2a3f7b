package fuse

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse/erofs"
)

// Dir is a layer's directory in the server.
type Dir struct {
	m      *mount
	image  *erofs.Image           // of AddImage: held until Remove; else nil
	shown  atomic.Pointer[string] // where it is mounted
	number uint32
	ctx    context.Context // ends with Remove (errRemoved) and with the server (errServer)
	end    context.CancelCauseFunc

	// content is nil once the directory is removed. root is its root directory
	// in the kernel's terms, so that LOOKUP in the mount's root never waits; nil
	// until the TOC was there once.
	content atomic.Pointer[heldContent]
	root    atomic.Pointer[estargz.Inode]

	ownInos uint64                 // three inode numbers: the root, the state directory, its file
	inodes  atomic.Pointer[inodes] // those of the TOC, once it was there

	state  stateFile
	logged failureLog
}

type heldContent struct{ Content }

// inodes is where a layer's range of inode numbers lies.
type inodes struct {
	base  uint64
	count uint32
}

// ownInoCount is how many inode numbers a layer has beside those of its TOC.
const ownInoCount = 3

// Path is absolute and usable as an overlay lower directory.
func (d *Dir) Path() string {
	if shown := d.shown.Load(); shown != nil {
		return *shown
	}
	return filepath.Join(d.m.path, d.name())
}

// name is short, as a chain's lower directories share one page of mount options.
func (d *Dir) name() string { return strconv.FormatUint(uint64(d.number), 36) }

// removeWait bounds how long Remove waits for the kernel to drop its caches. It
// takes longer only when a page of the layer is under read and Content does not
// end when it should.
const removeWait = time.Second

// Remove makes the directory answer ESTALE from now on and forgets the content
// when the requests under way have ended. Blocked reads end at once. It may be
// called more than once and after Server.Close.
func (d *Dir) Remove() {
	if !d.m.remove(d) {
		return
	}
	d.content.Store(nil)
	d.end(errRemoved)
	if d.image != nil {
		d.hide()
		d.image.Release()
	}
	// The kernel would keep the tree's entries and pages for ever: tell it.
	dropped := make(chan struct{})
	if !d.m.owned.start(func() {
		defer close(dropped)
		d.m.server.EntryNotify(gofuse.FUSE_ROOT_ID, d.name())
	}) {
		return
	}
	t := time.NewTimer(removeWait)
	defer t.Stop()
	select {
	case <-dropped:
	case <-t.C:
	}
}

// hold is a layer's content for the time of one request.
type hold struct {
	content Content
	toc     *estargz.TOC
	inodes  inodes
}

// acquire takes a hold; the caller defers hold.content.Release.
func (d *Dir) acquire(r *request) (hold, error) {
	c := d.content.Load()
	if c == nil {
		return hold{}, errRemoved
	}
	pending := d.inodes.Load() == nil
	if pending {
		if w, ok := c.Content.(Waiter); ok {
			if err := w.Wait(r); err != nil {
				return hold{}, d.failure(r, err)
			}
		}
	}
	toc, err := c.Acquire()
	if err != nil {
		if pending {
			return hold{}, d.failure(r, fmt.Errorf("table of contents: %w", err))
		}
		return hold{}, fmt.Errorf("%w: %w", errClosed, err)
	}
	in := d.inodes.Load()
	if in == nil {
		if in, err = d.settle(toc); err != nil {
			c.Release()
			return hold{}, err
		}
	}
	if in.count != toc.Len() {
		c.Release()
		return hold{}, fmt.Errorf("table of contents changed from %d inodes to %d: %w", in.count, toc.Len(), estargz.ErrCorrupt)
	}
	return hold{c.Content, toc, *in}, nil
}

// failure prefers the reason why the request ended to what Content made of it.
func (d *Dir) failure(r *request, err error) error {
	if err == nil {
		return nil
	}
	if cause := r.cause(); cause != nil && !errors.Is(cause, context.Canceled) {
		return fmt.Errorf("%w: %w", cause, err)
	}
	return err
}

// settle gives the layer its inode numbers, now that their count is known.
func (d *Dir) settle(toc *estargz.TOC) (*inodes, error) {
	var root estargz.Inode
	if err := toc.Inode(estargz.Root, &root); err != nil {
		return nil, fmt.Errorf("root directory: %w", err)
	}
	if root.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, fmt.Errorf("root is not a directory: %w", estargz.ErrCorrupt)
	}
	if toc.Len() >= maxInodes {
		return nil, fmt.Errorf("%d inodes are too many", toc.Len())
	}
	in, err := d.m.settle(d, toc.Len())
	if err != nil {
		return nil, err
	}
	d.root.Store(&root)
	return in, nil
}

// ino is the inode number of index.
func (d *Dir) ino(in inodes, index uint32) uint64 {
	switch index {
	case estargz.Root:
		return d.ownInos
	case stateDirIndex:
		return d.ownInos + 1
	case stateFileIndex:
		return d.ownInos + 2
	}
	return in.base + uint64(index)
}

// fail turns an error into the answer, and into a log line when something broke.
func (d *Dir) fail(what string, index uint32, err error) gofuse.Status {
	if reportable(err) {
		if n, ok := d.logged.allow(time.Now()); ok {
			l := d.m.log.WithError(err).WithField("inode", index)
			if c := d.content.Load(); c != nil {
				l = l.WithField("layer", c.Status().Digest)
			}
			if n > 0 {
				l = l.WithField("unlogged", n)
			}
			l.Errorf("%s failed", what)
		}
	}
	return errno(err)
}

// failureLog lets one line a second through: a dead registry fails thousands of
// reads with one cause.
type failureLog struct {
	mu struct {
		sync.Mutex
		last    time.Time
		skipped int
	}
}

func (f *failureLog) allow(now time.Time) (skipped int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if now.Sub(f.mu.last) < time.Second {
		f.mu.skipped++
		return 0, false
	}
	skipped, f.mu.skipped, f.mu.last = f.mu.skipped, 0, now
	return skipped, true
}

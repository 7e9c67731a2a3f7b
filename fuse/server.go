package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/log"

	"github.com/lazykit/lazykit/fuse/erofs"
)

// Options of a Server. Zero values are the documented defaults.
type Options struct {
	Root          string // directory that gets the mount points; required, made if absent
	Images        bool   // show layers as EROFS images too, where the kernel does it; see AddImage
	UserXattr     bool   // opaque directories say user.overlay.opaque instead of trusted.overlay.opaque
	MaxBackground int    // reads under way per mount before the kernel queues more, each with a buffer of 128 KiB; 0: 1024
	Debug         bool   // log every FUSE message
}

// Server serves layers from two mounts, Root/p (plain: no value of an xattr is
// ever asked for) and Root/x (with xattrs), one directory per layer in one of them; and
// the bytes of those that are EROFS images, mounted below Root/e, from a third one,
// Root/d. Its methods are safe for concurrent use.
type Server struct {
	plain, xattr *mount
	data         *mount // nil without images
	images       images

	ctx   context.Context // parent of the layers' contexts
	end   context.CancelCauseFunc
	owned *tasks // goroutines started for a Dir

	mu struct {
		sync.Mutex
		closing chan struct{} // non-nil once Close has begun, closed when it is done
		err     error         // of Close
	}
}

// NewServer detaches mounts that an earlier process left under Root, mounts and
// returns when both mounts answer. ctx gives the logger; it does not end the
// server.
func NewServer(ctx context.Context, opts Options) (*Server, error) {
	if opts.Root == "" {
		return nil, errors.New("fuse server: no root directory")
	}
	root, err := filepath.Abs(opts.Root)
	if err != nil {
		return nil, fmt.Errorf("fuse server: %w", err)
	}
	opaque := Opaque(opts.UserXattr)
	l := log.G(ctx)
	s := &Server{owned: new(tasks)}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	s.plain = newMount(filepath.Join(root, "p"), true, opaque, l, s.owned)
	s.xattr = newMount(filepath.Join(root, "x"), false, opaque, l, s.owned)
	data := newMount(filepath.Join(root, "d"), true, opaque, l, s.owned)
	data.readAhead = noReadAhead
	s.images.root = filepath.Join(root, "e")
	// Images lie upon the data: they go first, and they do where none are wanted now.
	n, err := sweepBelow(s.images.root)
	if err != nil {
		return nil, fmt.Errorf("fuse server: %w", err)
	}
	if n > 0 {
		l.Infof("detached %d images of an earlier process", n)
	}
	for _, m := range []*mount{s.plain, s.xattr, data} {
		if err := m.sweep(); err != nil {
			return nil, fmt.Errorf("fuse server: %w", err)
		}
	}
	if opts.Images && os.Getpagesize() == erofs.BlockSize {
		s.data = data
	}
	for i, m := range s.mounts() {
		if err := m.mount(opts); err != nil {
			for _, m := range s.mounts()[:i] {
				m.unmount()
				<-m.served
			}
			return nil, fmt.Errorf("fuse server: %w", err)
		}
	}
	return s, nil
}

func (s *Server) mounts() []*mount {
	if s.data == nil {
		return []*mount{s.plain, s.xattr}
	}
	return []*mount{s.plain, s.xattr, s.data}
}

// Add gives a layer a directory of its own, with node ids that are never used
// again. The plain mount is chosen when the TOC has no xattr. The server does
// not own c: it stops using it at Dir.Remove. The same content may be added more
// than once: each directory has its own node ids and inode numbers, so that a
// layer can occur twice in one overlay.
func (s *Server) Add(c Content) (*Dir, error) { return s.addResolved(c, false) }

// AddExact is Add in the mount with xattrs, also for a layer that has none: there
// a missing attribute is ENODATA and not EOPNOTSUPP, at the price of a message
// for each time that one is asked for.
func (s *Server) AddExact(c Content) (*Dir, error) { return s.addResolved(c, true) }

func (s *Server) addResolved(c Content, exact bool) (*Dir, error) {
	toc, err := c.Acquire()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, err)
	}
	defer c.Release()
	m := s.plain
	if exact || toc.HasXattrs() {
		m = s.xattr
	}
	d, err := s.add(m, c)
	if err != nil {
		return nil, err
	}
	if _, err := d.settle(toc); err != nil {
		d.Remove()
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, err)
	}
	return d, nil
}

// AddPending is Add for a layer whose TOC may not be there yet: nothing is asked
// of c before the first request inside the layer, which waits for it (see Waiter)
// or fails with it. The directory is in the mount with xattrs, as nothing is
// known of them.
func (s *Server) AddPending(c Content) (*Dir, error) { return s.add(s.xattr, c) }

func (s *Server) add(m *mount, c Content) (*Dir, error) { return s.addDir(&Dir{m: m}, c) }

// addDir makes d, which has a mount, a directory of it.
func (s *Server) addDir(d *Dir, c Content) (*Dir, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closing != nil {
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, errServer)
	}
	d.content.Store(&heldContent{c})
	d.ctx, d.end = context.WithCancelCause(s.ctx)
	if err := d.m.add(d); err != nil {
		d.end(err)
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, err)
	}
	return d, nil
}

// Requests counts the FUSE messages answered since the start, by operation name
// (LOOKUP, READ, ...; OTHER for those that a read-only file system refuses).
func (s *Server) Requests() map[string]uint64 {
	sum := make(map[string]uint64)
	for _, m := range s.mounts() {
		m.counts.addTo(sum)
	}
	return sum
}

// closeWait bounds how long Close waits for requests under way. Their reads were
// cancelled: one that takes longer is a Content that does not listen. Tests
// change it.
var closeWait = 5 * time.Second

// Close detaches all mounts and aborts the connections, so that it returns
// soon even where requests wait for a dead registry and overlays pin the mount.
// When it returns nil, no request uses a Content any more. It may be called more
// than once; each call returns when the server is closed.
func (s *Server) Close() error {
	s.mu.Lock()
	done := s.mu.closing
	first := done == nil
	if first {
		done = make(chan struct{})
		s.mu.closing = done
	}
	s.mu.Unlock()
	if !first {
		<-done
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.mu.err
	}
	err := s.close()
	s.mu.Lock()
	s.mu.err = err
	s.mu.Unlock()
	close(done)
	return err
}

func (s *Server) close() error {
	s.end(errServer)
	var errs []error
	if s.data != nil {
		// The images' owners may not have removed them.
		for _, d := range *s.data.layers.Load() {
			d.hide()
		}
	}
	for _, m := range s.mounts() {
		if err := m.unmount(); err != nil {
			errs = append(errs, err)
		}
	}
	idle := make(chan struct{})
	go func() { // ends with the last request
		defer close(idle)
		s.owned.wait()
		for _, m := range s.mounts() {
			<-m.served
		}
	}()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-idle:
	case <-t.C:
		errs = append(errs, fmt.Errorf("requests under way did not end in %s", closeWait))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("fuse server: %w", err)
	}
	return nil
}

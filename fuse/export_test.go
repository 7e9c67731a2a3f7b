package fuse

import (
	"context"
	"testing"
	"time"

	"github.com/containerd/log"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse/erofs"
)

// Unmounted is a server without mounts, for tests of single requests.
func Unmounted() (s *Server, plain, xattr gofuse.RawFileSystem) {
	s = &Server{owned: new(tasks)}
	s.ctx, s.end = context.WithCancelCause(context.Background())
	s.plain = newMount("/p", true, trustedOpaque, log.L, s.owned)
	s.xattr = newMount("/x", false, trustedOpaque, log.L, s.owned)
	s.owned.wait() // no kernel to tell of removals
	return s, s.plain, s.xattr
}

// UnmountedData is the mount of images' data of a server without mounts, and AddImage
// without a kernel that shows them.
func UnmountedData(s *Server) (gofuse.RawFileSystem, func(Content, *erofs.Image) (*Dir, error)) {
	s.data = newMount("/d", true, trustedOpaque, log.L, s.owned)
	return s.data, func(c Content, img *erofs.Image) (*Dir, error) {
		img.Hold()
		d, err := s.addDir(&Dir{m: s.data, image: img}, c)
		if err != nil {
			return nil, err
		}
		toc, err := c.Acquire()
		if err != nil {
			return nil, err
		}
		defer c.Release()
		_, err = d.settle(toc)
		return d, err
	}
}

// End is Close for a server without mounts.
func (s *Server) End() { s.end(errServer) }

// NodeID of inode index in d.
func (d *Dir) NodeID(index uint32) uint64 { return nodeID(d.number, index) }

// Plain says in which mount d is.
func (d *Dir) Plain() bool { return d.m.plain }

const (
	StateDirIndex  = stateDirIndex
	StateFileIndex = stateFileIndex
	StateSize      = stateSize
	LastLayer      = maxLayer
)

// SkipLayers makes n the last layer number given away.
func (s *Server) SkipLayers(n uint32) { s.plain.mu.last, s.xattr.mu.last = n, n }

// InoSpace is inoSpace.
type InoSpace = inoSpace

func (s *inoSpace) Take(n uint64) (uint64, bool) { return s.take(n) }
func (s *inoSpace) Give(start uint64)            { s.give(start) }

var (
	PendingKill  = pendingKill
	RenderStatus = renderStatus
)

// SetCloseWait changes how long Close waits, for one test.
func SetCloseWait(t testing.TB, d time.Duration) {
	old := closeWait
	closeWait = d
	t.Cleanup(func() { closeWait = old })
}

// ClearsTails, IsSince and WholePages are of store.go.
var (
	ClearsTails = clearsTails
	IsSince     = isSince
	WholePages  = wholePages
)

// Abort ends the connections. What is used stays mounted.
func (s *Server) Abort() {
	s.end(errServer)
	for _, m := range s.mounts() {
		m.closing.Store(true)
		unix.Unmount(m.path, unix.MNT_FORCE)
		<-m.served
	}
}

package fuse

import (
	"context"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// Content is one layer as the server needs it: its verified TOC and its bytes.
type Content interface {
	// Acquire holds the content for the time of one request: the TOC stays
	// mapped until Release. It fails (ESTALE to the kernel) once the content
	// is closed.
	Acquire() (*estargz.TOC, error)
	Release()

	// ReadAt fills dst from byte off of regular file inode, up to the end of
	// the file (n < len(dst) only there, with a nil error). It blocks until the
	// bytes are there and verified, ctx ends, or reading them has failed for
	// good. Called between Acquire and Release, from many goroutines.
	ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (n int, err error)

	// Status is what the layer's state file shows. Never blocks.
	Status() Status
}

// Status of a layer, as its state file shows it (JSON, stargz-snapshotter's keys).
type Status struct {
	Digest         digest.Digest `json:"digest"`
	Size           int64         `json:"size"`
	FetchedSize    int64         `json:"fetchedSize"`
	FetchedPercent float64       `json:"fetchedPercent"`
	Error          string        `json:"error,omitempty"` // the last one of a read
}

// Options of a Server. Zero values are the documented defaults.
type Options struct {
	Root          string // directory that gets the mount points; required, made if absent
	UserXattr     bool   // opaque directories say user.overlay.opaque instead of trusted.overlay.opaque
	MaxBackground int    // requests that may wait in the kernel's background queue; 0: 1024
	Debug         bool   // log every FUSE message
}

// Server serves layers from two mounts, Root/p (plain: no xattr call is ever
// answered) and Root/x (with xattrs); one directory per layer in one of them.
type Server struct{ _ int }

// NewServer detaches mounts that an earlier process left under Root, mounts and
// returns when both mounts answer.
func NewServer(ctx context.Context, opts Options) (*Server, error) { panic("skeleton") }

// Add gives a layer a directory of its own, with node ids that are never used
// again. The plain mount is chosen when the TOC has no xattr. The server does
// not own c: it stops using it at Dir.Remove.
func (s *Server) Add(c Content) (*Dir, error) { panic("skeleton") }

// Requests counts the FUSE messages answered, by operation name.
func (s *Server) Requests() map[string]uint64 { panic("skeleton") }

// Close detaches both mounts and aborts the connections, so that it returns
// soon even where requests wait for a dead registry and overlays pin the mount.
func (s *Server) Close() error { panic("skeleton") }

// Dir is a layer's directory in the server.
type Dir struct{ _ int }

// Path is absolute and usable as an overlay lower directory.
func (d *Dir) Path() string { panic("skeleton") }

// Remove makes the directory answer ESTALE from now on and forgets the content
// when the requests under way have ended.
func (d *Dir) Remove() { panic("skeleton") }

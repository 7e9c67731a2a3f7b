package fuse

import (
	"errors"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/lazykit/lazykit/estargz"
)

var (
	errRemoved = errors.New("layer was removed")
	errClosed  = errors.New("content is closed")
	errKilled  = errors.New("calling process is being killed")
	errServer  = errors.New("server is closed")
	errNoNode  = errors.New("no such inode in the layer")
	errNotDir  = errors.New("not a directory")
	errIsDir   = errors.New("is a directory")
	errNotFile = errors.New("not of the right type")
	errNoAttr  = errors.New("no such attribute")
	errRange   = errors.New("buffer is too small")
)

// errno is the one place where an error becomes a number. Numbers that happen to
// be in the chain of a network or disk error are not passed on: "connection
// refused" from cat would mislead.
func errno(err error) gofuse.Status {
	switch {
	case err == nil:
		return gofuse.OK
	case errors.Is(err, errKilled):
		return gofuse.EINTR
	case errors.Is(err, errRemoved), errors.Is(err, errClosed), errors.Is(err, errNoNode):
		return gofuse.Status(syscall.ESTALE)
	case errors.Is(err, errNoAttr):
		return gofuse.ENODATA
	case errors.Is(err, estargz.ErrNotExist):
		return gofuse.ENOENT
	case errors.Is(err, errNotDir):
		return gofuse.ENOTDIR
	case errors.Is(err, errIsDir):
		return gofuse.Status(syscall.EISDIR)
	case errors.Is(err, errNotFile):
		return gofuse.EINVAL
	case errors.Is(err, errRange):
		return gofuse.ERANGE
	}
	return gofuse.EIO
}

// reportable says whether an error is worth a line in the log: something broke,
// rather than a question with a negative answer.
func reportable(err error) bool { return errno(err) == gofuse.EIO && !errors.Is(err, errServer) }

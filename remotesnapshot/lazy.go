package remotesnapshot

import (
	"context"
	"io"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Sessions lists the ids of the BuildKit sessions that a caller has at this
// moment. It is called again at each need, since they may become more, from any
// goroutine, and returns at once. nil is none.
type Sessions func() []string

// Lazy is the ability that a worker and its cache manager use beside the
// snapshotter, keyed by digest, since containerd's metadata layer hides it. Safe
// for concurrent use.
//
// Errors name the layer and the image. Their classes are errdefs'.
type Lazy interface {
	// Resolve does all that needs the network for the layers of srcs, in
	// parallel and without any lock: it finds, fetches and verifies their TOCs.
	// Result i is nil when Open will succeed for srcs[i], which is so for some
	// time afterwards; otherwise it says why the layer can't be lazy. An error
	// that may be another one tomorrow is of class unavailable, and of the class
	// of the registry's answer as well.
	Resolve(ctx context.Context, srcs ...Source) []error

	// Hold lets reads of src's repository authenticate through the sessions of s
	// from now on, until release is called; calling it again does no harm. It is
	// kept in memory and waits for no session and no network. Sessions that s
	// names need not be connected yet. Each hold is its caller's own: reads use
	// the sessions of all that there are. A request that is under way when its
	// hold is released may still end with that hold's credentials.
	Hold(src Source, s Sessions) (release func())

	// Authorize makes sure that one of the sessions of s may read src's layer. It
	// is nil without a request when one of them has shown that before, for any
	// layer of the repository, or was vouched for, and is still connected.
	// Otherwise the registry is asked as each of them alone until one may; as
	// nobody when none is connected. A yes to a session is remembered while it
	// lives and is not refused; a no, and a yes to nobody, are not.
	//
	// An error of class unauthenticated, permission denied or not found says
	// that none may. One of class unavailable says that this is not known: the
	// registry could not be asked, or a session was not there to speak for
	// itself. Other errors are ctx's.
	Authorize(ctx context.Context, src Source, s Sessions) error

	// Vouch notes what a caller knows already: that the sessions of s have just
	// read the image's manifest from src's repository, each by itself. Authorize
	// needs no request for them. Sessions that are not connected are left out.
	Vouch(src Source, s Sessions)

	// Unlazy makes src's blob local: it fetches what is missing and verifies the
	// whole. path is of a file with the blob's bytes, which never change; it is
	// valid until release is called, and a link to it lasts. The layer need not be
	// open; src is asked first, then the other images that an open layer is known
	// of. Callers share the work, which ends early when the last of them leaves. An
	// error of class data loss says that the registry has other bytes; one that no
	// answer explains is of class unavailable. release is nil with an error.
	Unlazy(ctx context.Context, src Source) (path string, release func(), err error)

	// Stream reads src's blob while it is fetched, for a reader that goes from one
	// end to the other: reads wait for bytes that have not arrived. Bytes are given
	// out before the whole is verified, but the last one only afterwards: who copies
	// the blob somewhere must not count it as complete without that one. Errors are
	// those of Unlazy. The reader ends with ctx, and is closed by the caller.
	Stream(ctx context.Context, src Source) (BlobReader, error)

	// Info tells of a blob, open or not, without the network.
	Info(dgst digest.Digest) LayerInfo

	// Usage is the disk space, in bytes, that only the file system holds for the
	// blob: allocated blocks of its sparse file and of its TOC; 0 for an unknown
	// one. The bytes of a file that is linked into another store are left out:
	// that store counts them.
	Usage(dgst digest.Digest) (int64, error)

	// Fast returns dirs with each directory that answers exactly for xattrs
	// replaced by the one that shows the same copy of the same layer with fast
	// answers (see [Xattrs]). Other directories are returned as they are.
	Fast(dirs []string) ([]string, error)
}

// BlobReader reads a blob.
type BlobReader interface {
	io.ReaderAt
	io.Closer
	Size() int64
}

// LayerInfo is what a lazy file system has of a blob at one moment.
type LayerInfo struct {
	Size    int64 // of the blob, in bytes; 0: not known
	Fetched int64 // bytes of it on disk
	Local   bool  // whole and verified

	// The rest is of this process' life.
	Open       bool      // a layer of it is open and readable
	Prefetched int64     // bytes fetched that nobody waited for
	LastRead   time.Time // zero: never
	LastError  string    // of a read, or else of the last Resolve; "" when it went well
	LastFailed time.Time // when a read failed last; zero: none did
}

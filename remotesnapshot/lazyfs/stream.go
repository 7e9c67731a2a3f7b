package lazyfs

import (
	"context"
	"fmt"
	"io"
	"sync"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// lastPart is how much of a blob's end is given out only after the whole of it was
// verified.
const lastPart = 1

// Stream implements remotesnapshot.Lazy.
func (fs *FS) Stream(ctx context.Context, src remotesnapshot.Source) (_ remotesnapshot.BlobReader, err error) {
	defer func() { err = failed(ctx, "read", src, err) }()
	if err := src.Digest.Validate(); err != nil {
		return nil, fmt.Errorf("%w: %w", cerrdefs.ErrInvalidArgument, err)
	}
	b, err := fs.openBlob(src.Digest, src.Reference)
	if err != nil {
		return nil, err
	}
	size := b.Size()
	if size == 0 {
		// A request tells the size; its bytes are needed anyway.
		if err := b.Blob.Fetch(ctx, blob.Prefetch, 0, lastPart); err != nil {
			closeQuietly(b)
			return nil, err
		}
		size = b.Size()
	}
	s := &stream{blob: b, src: src, size: size, wrong: b.Blob.Wrong(), whole: make(chan struct{})}
	s.ctx, s.cancel = context.WithCancel(ctx)
	go func() {
		defer close(s.whole)
		s.err = b.Blob.Complete(s.ctx, blob.Prefetch)
	}()
	return s, nil
}

// stream reads a blob while it is fetched.
type stream struct {
	blob   layerBlob
	src    remotesnapshot.Source
	size   int64
	wrong  int64           // the blob's count before a byte was read
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	whole  chan struct{} // closed when the blob is local, or err says why not
	err    error
	once   sync.Once
}

// Size implements remotesnapshot.BlobReader.
func (s *stream) Size() int64 { return s.size }

// ReadAt implements io.ReaderAt. It waits for the bytes to arrive.
func (s *stream) ReadAt(p []byte, off int64) (int, error) {
	n, err := s.readAt(p, off)
	if err != nil && err != io.EOF {
		return n, failed(s.ctx, "read", s.src, err)
	}
	return n, err
}

func (s *stream) readAt(p []byte, off int64) (int, error) {
	if off+int64(len(p)) > s.size-lastPart {
		select {
		case <-s.whole:
		case <-s.ctx.Done():
			return 0, context.Cause(s.ctx)
		}
		if s.err != nil {
			return 0, s.err
		}
	}
	// As urgent as the fetch of the whole: to be read from one end to the other
	// is to be fetched in that order.
	n, err := s.blob.Blob.ReadAt(s.ctx, blob.Prefetch, p, off)
	if s.blob.Blob.Wrong() != s.wrong {
		return 0, errWasWrong{}
	}
	return n, err
}

// errWasWrong says that bytes that were given out have proved wrong since, and are
// fetched again. It is a temporary network error (net.Error): pushes are tried again
// after one.
type errWasWrong struct{}

func (errWasWrong) Error() string {
	return "bytes were wrong that the registry had sent, and are fetched again: try again"
}
func (errWasWrong) Temporary() bool { return true }
func (errWasWrong) Timeout() bool   { return false }

// Close ends the fetch, unless others need it.
func (s *stream) Close() error {
	s.once.Do(func() {
		s.cancel()
		<-s.whole
		closeQuietly(s.blob)
	})
	return nil
}

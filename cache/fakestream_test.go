package cache

import (
	"context"
	"os"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// fakeStream is a blob that has been made local.
type fakeStream struct {
	*os.File
	size    int64
	release func()
}

func (s *fakeStream) Size() int64 { return s.size }

func (s *fakeStream) Close() error {
	s.release()
	return s.File.Close()
}

// Stream implements remotesnapshot.Lazy.
func (r *fakeLazy) Stream(ctx context.Context, src remotesnapshot.Source) (remotesnapshot.BlobReader, error) {
	path, release, err := r.Unlazy(ctx, src)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		release()
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		release()
		return nil, err
	}
	return &fakeStream{f, fi.Size(), release}, nil
}

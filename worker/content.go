package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// unlazier is the part of the lazy file system that makes a layer local.
type unlazier interface {
	// Unlazy is that of remotesnapshot.Lazy.
	Unlazy(ctx context.Context, src remotesnapshot.Source) (path string, release func(), err error)
	// Fetched is the number of bytes of the blob that are on disk, and its
	// size; zeros when unknown.
	Fetched(dgst digest.Digest) (fetched, size int64)
	// SourceOf says where the blob's layer comes from; false when the file
	// system has no layer of it open.
	SourceOf(dgst digest.Digest) (remotesnapshot.Source, bool)
}

// adoptingStore is a content store into which blobs of lazy layers come without
// being fetched again.
//
// BuildKit unlazies a layer by opening a Writer for its digest and copying the
// blob out of the registry. Part of a lazy layer's blob lies on disk already, as
// the very bytes that the writer is to get. So Writer makes the layer local
// first, which fetches only what is missing, and hard-links the file to where
// the local store keeps blobs. containerd's metadata layer then finds the digest
// in its backend, hands out a writer that is complete, and the caller commits
// without reading a byte: that is its shared-content policy (core/metadata/content.go).
//
// Between the link and that look the garbage collector may remove the file,
// which no namespace refers to yet. Then the writer comes back empty and is
// filled from the lazy file, so that the caller never goes to the registry.
type adoptingStore struct {
	content.Store
	lazy  unlazier
	blobs string // the local store's directory of blobs: <root>/content/blobs

	starting *starting
}

// starting is true while BuildKit's cache manager loads its records. It drops
// each record that needs a lazy blob, and all that stand on it, because nobody
// can provide the blob at that time: with the base image every cached step would
// be lost at each start. So until it is done, lazy layers look like others: their
// blobs count as contents, and their snapshots are not remote. Afterwards
// Worker.LoadRef provides the blobs.
type starting struct{ atomic.Bool }

// Info tells of what is in the store.
func (s *adoptingStore) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	info, err := s.Store.Info(ctx, dgst)
	if errdefs.IsNotFound(err) && s.starting.Load() {
		if _, ok := s.lazy.SourceOf(dgst); ok {
			_, size := s.lazy.Fetched(dgst)
			return content.Info{Digest: dgst, Size: size}, nil
		}
	}
	return info, err
}

func (s *adoptingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	dgst := o.Desc.Digest
	if dgst == "" || dgst.Validate() != nil || !isLayer(o.Desc.MediaType) {
		return s.Store.Writer(ctx, opts...)
	}
	src, ok := s.lazy.SourceOf(dgst)
	if !ok {
		return s.Store.Writer(ctx, opts...)
	}
	path, release, err := s.unlazy(ctx, src)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// BuildKit's own provider may know a way that we don't, with the
		// credentials of the session that asks.
		bklog.G(ctx).WithError(err).Warnf("layer %s can't be completed, pulling it whole", dgst)
		return s.Store.Writer(ctx, opts...)
	}
	defer release()
	if err := s.link(path, dgst); err != nil {
		// Nothing is lost: the writer is filled from the file below.
		bklog.G(ctx).WithError(err).Warn("copying a layer into the content store")
	}
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	if err := fill(w, path); err != nil {
		return nil, errors.Join(fmt.Errorf("store layer %s: %w", dgst, err), w.Close())
	}
	return w, nil
}

// isLayer is false for what is certainly no layer, so that manifests and
// configs don't ask the file system; BuildKit leaves the type out at times.
func isLayer(mediaType string) bool {
	switch mediaType {
	case ocispecs.MediaTypeImageManifest, ocispecs.MediaTypeImageIndex, ocispecs.MediaTypeImageConfig:
		return false
	}
	return true
}

// unlazy reports on the build's progress while bytes come in.
func (s *adoptingStore) unlazy(ctx context.Context, src remotesnapshot.Source) (path string, release func(), err error) {
	if fetched, size := s.lazy.Fetched(src.Digest); fetched < size || size == 0 {
		stop := s.report(ctx, src.Digest)
		defer stop()
	}
	return s.lazy.Unlazy(ctx, src)
}

// report sends what has been fetched to the vertex's progress, twice a second,
// until the function that it returns is called.
func (s *adoptingStore) report(ctx context.Context, dgst digest.Digest) (stop func()) {
	pw, _, _ := progress.NewFromContext(ctx)
	started := time.Now()
	write := func(done bool) {
		fetched, size := s.lazy.Fetched(dgst)
		st := progress.Status{Action: "downloading", Current: int(fetched), Total: int(size), Started: &started}
		if done {
			now := time.Now()
			st.Action, st.Completed = "done", &now
		}
		pw.Write(dgst.String(), st)
	}
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(500 * time.Millisecond)
		defer t.Stop()
		for {
			write(false)
			select {
			case <-t.C:
			case <-quit:
				write(true)
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-ended
		pw.Close()
	}
}

// link puts the file where the local content store looks for the blob.
func (s *adoptingStore) link(path string, dgst digest.Digest) error {
	dst := filepath.Join(s.blobs, dgst.Algorithm().String(), dgst.Encoded())
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return fmt.Errorf("content directory of %s: %w", dgst, err)
	}
	if err := os.Link(path, dst); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link layer %s into the content store: %w", dgst, err)
	}
	return nil
}

// fill completes a writer that does not have the blob's bytes yet.
func fill(w content.Writer, path string) error {
	st, err := w.Status()
	if err != nil {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	if st.Offset >= fi.Size() {
		return nil
	}
	_, err = io.Copy(w, io.NewSectionReader(f, st.Offset, fi.Size()-st.Offset))
	return err
}

package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/remotes"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// adopter brings whole blobs of lazy layers into the content store without a copy.
//
// The blob's file is hard-linked to where the local store keeps blobs. Then a
// writer for the digest is opened: containerd's metadata layer finds the bytes in
// its backend and hands out one that is complete, which is committed as it is (the
// shared-content policy, core/metadata/content.go). Between the link and that look
// the garbage collector may remove the link, to which no namespace refers yet. Then
// the writer is empty, and is filled from the file.
type adopter struct {
	store content.Store
	blobs string // the local store's directory of blobs
}

// adopt is cache.Options.Adopt. The bytes are on the disk before the store knows of
// them, as with the local store's own writers: nobody verifies them again.
func (a adopter) adopt(ctx context.Context, desc ocispecs.Descriptor, path string) (rerr error) {
	if err := syncFile(path); err != nil {
		return fmt.Errorf("store layer %s: %w", desc.Digest, err)
	}
	if err := a.link(path, desc.Digest); err != nil {
		// Nothing is lost: the writer is filled from the file below.
		bklog.G(ctx).WithError(err).Warn("a layer is copied into the content store")
	}
	w, err := content.OpenWriter(ctx, a.store, content.WithRef(remotes.MakeRefKey(ctx, desc)), content.WithDescriptor(desc))
	if cerrdefs.IsAlreadyExists(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("store layer %s: %w", desc.Digest, err)
	}
	defer func() { rerr = errors.Join(rerr, w.Close()) }()
	size, err := fill(ctx, w, path)
	if err != nil {
		return fmt.Errorf("store layer %s: %w", desc.Digest, err)
	}
	if err := w.Commit(ctx, size, desc.Digest); err != nil && !cerrdefs.IsAlreadyExists(err) {
		return fmt.Errorf("store layer %s: %w", desc.Digest, err)
	}
	return nil
}

// link puts the file where the local content store looks for the blob.
func (a adopter) link(path string, dgst digest.Digest) error {
	dst := filepath.Join(a.blobs, dgst.Algorithm().String(), dgst.Encoded())
	if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
		return fmt.Errorf("content directory of %s: %w", dgst, err)
	}
	if err := os.Link(path, dst); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("link layer %s into the content store: %w", dgst, err)
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// fill completes a writer that does not have all of the file's bytes yet, and
// returns the file's size.
func fill(ctx context.Context, w content.Writer, path string) (size int64, rerr error) {
	st, err := w.Status()
	if err != nil {
		return 0, err
	}
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { rerr = errors.Join(rerr, f.Close()) }()
	fi, err := f.Stat()
	if err != nil || st.Offset >= fi.Size() {
		return st.Offset, err
	}
	rest := io.NewSectionReader(f, st.Offset, fi.Size()-st.Offset)
	_, err = io.Copy(w, &cancellable{ctx: ctx, r: rest})
	return fi.Size(), err
}

// cancellable ends a copy when its context does.
type cancellable struct {
	ctx context.Context
	r   io.Reader
}

func (c *cancellable) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

package worker

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// fakeLazy holds one blob as a file.
type fakeLazy struct {
	path   string
	dgst   digest.Digest
	size   int64
	before func()
	err    error
	calls  int // of Unlazy

	released int // files that Unlazy returned
}

func (f *fakeLazy) Unlazy(_ context.Context, src remotesnapshot.Source) (string, func(), error) {
	f.calls++
	if f.before != nil {
		f.before()
	}
	if f.err != nil {
		return "", nil, f.err
	}
	if src.Digest != f.dgst {
		return "", nil, fmt.Errorf("blob %s: %w", src.Digest, errdefs.ErrNotFound)
	}
	return f.path, func() { f.released++ }, nil
}

func (f *fakeLazy) Fetched(dgst digest.Digest) (int64, int64) {
	if dgst != f.dgst {
		return 0, 0
	}
	return 0, f.size
}

func (f *fakeLazy) SourceOf(dgst digest.Digest) (remotesnapshot.Source, bool) {
	return remotesnapshot.Source{Reference: "example.com/app:1", Digest: f.dgst}, dgst == f.dgst
}

type adoptEnv struct {
	ctx   context.Context
	mdb   *metadata.DB
	cs    content.Store
	lazy  *fakeLazy
	desc  ocispecs.Descriptor
	blobs string
}

func newAdoptEnv(t *testing.T) *adoptEnv {
	t.Helper()
	root := t.TempDir()
	store, err := local.NewStore(filepath.Join(root, "content"))
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
	require.NoError(t, err)
	t.Cleanup(func() { db.Close() })
	mdb := metadata.NewDB(db, store, nil)
	require.NoError(t, mdb.Init(t.Context()))

	data := make([]byte, 300_000)
	_, err = rand.Read(data)
	require.NoError(t, err)
	file := filepath.Join(root, "lazy")
	require.NoError(t, os.WriteFile(file, data, 0o600))
	dgst := digest.FromBytes(data)
	lazy := &fakeLazy{path: file, dgst: dgst, size: int64(len(data))}
	blobs := filepath.Join(root, "content", "blobs")
	return &adoptEnv{
		ctx:   namespaces.WithNamespace(t.Context(), "buildkit"),
		mdb:   mdb,
		cs:    &adoptingStore{Store: mdb.ContentStore(), lazy: lazy, blobs: blobs, starting: &starting{}},
		lazy:  lazy,
		desc:  ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: dgst, Size: int64(len(data))},
		blobs: blobs,
	}
}

func inode(t *testing.T, path string) uint64 {
	t.Helper()
	fi, err := os.Stat(path)
	require.NoError(t, err)
	return fi.Sys().(*syscall.Stat_t).Ino
}

func (e *adoptEnv) blob(d digest.Digest) string {
	return filepath.Join(e.blobs, d.Algorithm().String(), d.Encoded())
}

func TestLazyBlobIsAdoptedWithoutCopy(t *testing.T) {
	e := newAdoptEnv(t)
	w, err := e.cs.Writer(e.ctx, content.WithRef("layer"), content.WithDescriptor(e.desc))
	require.NoError(t, err)
	st, err := w.Status()
	require.NoError(t, err)
	require.Equal(t, e.desc.Size, st.Offset, "the writer is complete")
	require.NoError(t, w.Commit(e.ctx, e.desc.Size, e.desc.Digest))
	require.NoError(t, w.Close())

	got, err := content.ReadBlob(e.ctx, e.cs, e.desc)
	require.NoError(t, err)
	require.Equal(t, e.desc.Digest, digest.FromBytes(got))
	require.Equal(t, inode(t, e.lazy.path), inode(t, e.blob(e.desc.Digest)), "the same file, not a copy")

	_, err = e.cs.Writer(e.ctx, content.WithRef("again"), content.WithDescriptor(e.desc))
	require.True(t, errdefs.IsAlreadyExists(err), "got %v", err)
	require.Equal(t, e.lazy.calls, e.lazy.released, "each file is released")
}

// collectingStore loses the linked file before the metadata layer looks, as a
// garbage collection at the worst moment does.
type collectingStore struct {
	content.Store
	remove string
}

func (s *collectingStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if err := os.Remove(s.remove); err != nil {
		return nil, err
	}
	return s.Store.Writer(ctx, opts...)
}

func TestCollectedBetweenLinkAndWriter(t *testing.T) {
	e := newAdoptEnv(t)
	cs := &adoptingStore{
		Store: &collectingStore{Store: e.mdb.ContentStore(), remove: e.blob(e.desc.Digest)},
		lazy:  e.lazy,
		blobs: e.blobs,

		starting: &starting{},
	}
	w, err := cs.Writer(e.ctx, content.WithRef("layer"), content.WithDescriptor(e.desc))
	require.NoError(t, err)
	require.NoError(t, w.Commit(e.ctx, e.desc.Size, e.desc.Digest))
	got, err := content.ReadBlob(e.ctx, e.cs, e.desc)
	require.NoError(t, err)
	require.Equal(t, e.desc.Digest, digest.FromBytes(got))
}

func TestUnknownBlobsAndManifestsPassThrough(t *testing.T) {
	e := newAdoptEnv(t)
	other := []byte("something else")
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayer, Digest: digest.FromBytes(other), Size: int64(len(other))}
	w, err := e.cs.Writer(e.ctx, content.WithRef("other"), content.WithDescriptor(desc))
	require.NoError(t, err)
	st, err := w.Status()
	require.NoError(t, err)
	require.Zero(t, st.Offset)
	_, err = w.Write(other)
	require.NoError(t, err)
	require.NoError(t, w.Commit(e.ctx, desc.Size, desc.Digest))

	m := e.desc
	m.MediaType = ocispecs.MediaTypeImageManifest
	w, err = e.cs.Writer(e.ctx, content.WithRef("manifest"), content.WithDescriptor(m))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Zero(t, e.lazy.calls)
}

func TestUnlazyFailureLeavesTheOrdinaryPull(t *testing.T) {
	e := newAdoptEnv(t)
	e.lazy.err = fmt.Errorf("registry example.com: %w", errdefs.ErrUnavailable)
	w, err := e.cs.Writer(e.ctx, content.WithRef("layer"), content.WithDescriptor(e.desc))
	require.NoError(t, err)
	st, err := w.Status()
	require.NoError(t, err)
	require.Zero(t, st.Offset, "the caller has to fetch")
	require.NoError(t, w.Close())

	ctx, cancel := context.WithCancel(e.ctx)
	e.lazy.before = cancel
	_, err = e.cs.Writer(ctx, content.WithRef("cancelled"), content.WithDescriptor(e.desc))
	require.ErrorIs(t, err, context.Canceled)
}

func TestLazyBlobsCountAsContentsWhileRecordsLoad(t *testing.T) {
	e := newAdoptEnv(t)
	s := e.cs.(*adoptingStore)
	_, err := s.Info(e.ctx, e.desc.Digest)
	require.True(t, errdefs.IsNotFound(err), "got %v", err)
	s.starting.Store(true)
	info, err := s.Info(e.ctx, e.desc.Digest)
	require.NoError(t, err)
	require.Equal(t, content.Info{Digest: e.desc.Digest, Size: e.desc.Size}, info)
	_, err = s.Info(e.ctx, digest.FromString("unknown"))
	require.True(t, errdefs.IsNotFound(err), "got %v", err)
	s.starting.Store(false)
	_, err = s.Info(e.ctx, e.desc.Digest)
	require.True(t, errdefs.IsNotFound(err), "got %v", err)
}

func TestAdoptedBlobIsCollectedLikeAnyOther(t *testing.T) {
	e := newAdoptEnv(t)
	lm := metadata.NewLeaseManager(e.mdb)
	l, err := lm.Create(e.ctx, leases.WithID("hold"))
	require.NoError(t, err)
	ctx := leases.WithLease(e.ctx, l.ID)
	w, err := e.cs.Writer(ctx, content.WithRef("layer"), content.WithDescriptor(e.desc))
	require.NoError(t, err)
	require.NoError(t, w.Commit(ctx, e.desc.Size, e.desc.Digest))
	_, err = e.mdb.GarbageCollect(e.ctx)
	require.NoError(t, err)
	require.FileExists(t, e.blob(e.desc.Digest))
	require.NoError(t, lm.Delete(e.ctx, l))
	_, err = e.mdb.GarbageCollect(e.ctx)
	require.NoError(t, err)
	require.NoFileExists(t, e.blob(e.desc.Digest))
	require.FileExists(t, e.lazy.path, "the lazy file is the file system's own")
}

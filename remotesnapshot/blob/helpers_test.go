package blob_test

import (
	"bytes"
	"context"
	"io"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

// randomBytes are the same for the same n.
func randomBytes(n int) []byte {
	b := make([]byte, n)
	rnd := rand.NewChaCha8([32]byte{byte(n), byte(n >> 8), byte(n >> 16)})
	rnd.Read(b)
	return b
}

// rig is a registry with one blob, and a store that can be restarted.
type rig struct {
	*testing.T
	reg   *blobtest.Registry
	data  []byte
	dgst  digest.Digest
	opts  blob.Options
	store *blob.Store
}

func newRig(t *testing.T, size int) *rig {
	t.Helper()
	r := &rig{T: t, reg: blobtest.New(t), data: randomBytes(size)}
	r.dgst = r.reg.AddBlob(r.data)
	r.opts = blob.Options{
		Root:       t.TempDir(),
		BackoffMin: time.Millisecond,
		BackoffMax: 20 * time.Millisecond,
		GiveUp:     5 * time.Second,
		OnError:    func(err error) { t.Logf("store: %v", err) },
	}
	t.Cleanup(func() {
		if r.store != nil {
			require.NoError(t, r.store.Close())
		}
	})
	return r
}

// open opens the blob in the store, which is made with the rig's options first.
func (r *rig) open() *blob.Blob {
	r.Helper()
	if r.store == nil {
		s, err := blob.NewStore(r.opts)
		require.NoError(r, err)
		r.store = s
	}
	b, err := r.store.Open(r.dgst, r.reg.Origin("repo:tag"))
	require.NoError(r, err)
	r.Cleanup(func() { b.Close() })
	return b
}

// restart closes the store and forgets the requests so far.
func (r *rig) restart() {
	r.Helper()
	require.NoError(r, r.store.Close())
	r.store = nil
	r.reg.Reset()
}

// reads checks that a range of the blob can be read and is right.
func (r *rig) reads(b *blob.Blob, p blob.Priority, off, n int) {
	r.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r.readsCtx(ctx, b, p, off, n)
}

func (r *rig) readsCtx(ctx context.Context, b *blob.Blob, p blob.Priority, off, n int) {
	r.Helper()
	dst := make([]byte, n)
	got, err := b.ReadAt(ctx, p, dst, int64(off))
	want := r.data[min(off, len(r.data)):min(off+n, len(r.data))]
	if len(want) < n {
		require.ErrorIs(r, err, io.EOF)
	} else {
		require.NoError(r, err)
	}
	require.Equal(r, len(want), got)
	require.True(r, bytes.Equal(want, dst[:got]), "bytes at %d+%d differ", off, n)
}

// fileIsRight checks the file of a local blob.
func (r *rig) fileIsRight(b *blob.Blob) {
	r.Helper()
	require.True(r, b.Local())
	got, err := os.ReadFile(b.Path())
	require.NoError(r, err)
	require.True(r, bytes.Equal(r.data, got), "the file differs from the blob")
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 10*time.Second, time.Millisecond, what)
}

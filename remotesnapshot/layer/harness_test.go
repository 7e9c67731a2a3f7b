package layer

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazykit/lazykit/estargz"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// opened is a layer under test with its blob.
type opened struct {
	*Layer
	t    testing.TB
	pool *Pool
	blob *fakeBlob
}

// resolve makes a layer of b, resolved and with no bytes present but the TOC.
func (b built) open(t testing.TB, opts Options) *opened {
	t.Helper()
	fake := newFakeBlob(b.blob)
	toc, err := Finder{TOCDir: t.TempDir()}.Resolve(t.Context(), fake, b.hints)
	require.NoError(t, err)
	if !fake.Local() { // the tail that was fetched may hold all of a small blob
		fake.Drop(0, int64(len(b.blob)))
	}
	fake.forget()
	pool := NewPool(opts)
	l := Open(pool, fake, toc)
	t.Cleanup(func() {
		l.Close()
		// Another layer of its image may hold it for a moment.
		eventually(t, "the blob is closed", func() bool { return fake.closes() > 0 })
		require.Equal(t, 1, fake.closes(), "the blob is closed once")
		require.Zero(t, pool.cache.bytes(), "the cache forgets a closed layer")
		pool.Close()
		require.Zero(t, pool.Memory(), "chunk memory is given back")
	})
	return &opened{l, t, pool, fake}
}

// inode finds a file by its path.
func (o *opened) inode(path string) uint32 {
	o.t.Helper()
	i := estargz.Root
	for name := range strings.SplitSeq(path, "/") {
		var err error
		i, err = o.toc.Lookup(i, []byte(name))
		require.NoError(o.t, err, path)
	}
	return i
}

// read reads part of a file through Acquire and Release.
func (o *opened) read(ctx context.Context, path string, off int64, n int) ([]byte, error) {
	if _, err := o.Acquire(); err != nil {
		return nil, err
	}
	defer o.Release()
	dst := make([]byte, n)
	n, err := o.ReadAt(ctx, o.inode(path), dst, off)
	return dst[:n], err
}

// member is the range of the blob that holds byte off of a file.
func (o *opened) member(path string, off int64) estargz.Member {
	o.t.Helper()
	c, err := o.toc.FindChunk(o.inode(path), off)
	require.NoError(o.t, err)
	var chunk estargz.Chunk
	require.NoError(o.t, o.toc.Chunk(c, &chunk))
	m, err := o.toc.Member(chunk.Member)
	require.NoError(o.t, err)
	return m
}

// eventually waits for a condition without guessing how long it takes.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, time.Millisecond, what)
}

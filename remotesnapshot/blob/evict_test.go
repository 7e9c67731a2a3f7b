package blob_test

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// evict evicts the rig's blob.
func (r *rig) evict() int64 {
	r.Helper()
	freed, err := r.store.Evict(r.dgst)
	require.NoError(r, err)
	return freed
}

func TestEvictFreesWhatIsFetchedAgain(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, mib)
	require.GreaterOrEqual(t, r.evict(), int64(mib))
	usage, err := r.store.Usage(r.dgst)
	require.NoError(t, err)
	require.LessOrEqual(t, usage, int64(4096), "the list of ranges")
	require.Zero(t, b.Fetched())
	before := r.reg.Requests()
	r.reads(b, blob.Blocked, 0, mib)
	require.Greater(t, r.reg.Requests(), before)
	require.NoError(t, b.Complete(t.Context(), blob.Blocked))
	r.fileIsRight(b)

	t.Run("also of a blob that nobody has open", func(t *testing.T) {
		r := newRig(t, mib)
		b := r.open()
		r.reads(b, blob.Blocked, 0, mib/2)
		require.NoError(t, b.Close())
		require.GreaterOrEqual(t, r.evict(), int64(mib/2))
		r.restart()
		b = r.open()
		require.Zero(t, b.Fetched(), "after a restart")
		require.EqualValues(t, mib, b.Size(), "what is known without its bytes stays known")
	})
}

func TestEvictSparesWhatIsInUse(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	require.NoError(t, b.Complete(t.Context(), blob.Blocked))
	require.Zero(t, r.evict(), "a local blob, which may be linked at any moment")
	r.fileIsRight(b)

	r = newRig(t, 4*mib)
	b = r.open()
	r.reads(b, blob.Blocked, 0, mib)
	other := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.Link(b.Path(), other))
	require.Zero(t, r.evict(), "a blob that is linked")
	require.NoError(t, os.Remove(other))

	release := make(chan struct{})
	r.reg.Fault(blobtest.Fault{Match: func(blobtest.Request) bool { <-release; return false }})
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	reading.Go(func() { r.readsCtx(ctx, b, blob.Blocked, 2*mib, mib) })
	eventually(t, "the read has begun", func() bool { return blob.Waiting(b) > 0 })
	require.Zero(t, r.evict(), "a blob that is being fetched")
	close(release)
	reading.Wait()
	cancel()
	eventually(t, "nothing is fetched", func() bool { return blob.Flights(b) == 0 })
	require.Positive(t, r.evict())
}

// Readers never see anything but the blob's bytes, whenever it is evicted.
func TestEvictUnderReaders(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	var readers sync.WaitGroup
	for seed := range uint64(4) {
		readers.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for ctx.Err() == nil {
				off, n := rnd.IntN(3*mib), 1+rnd.IntN(200*kib)
				dst := make([]byte, n)
				if _, err := b.ReadAt(t.Context(), blob.Blocked, dst, int64(off)); err != nil {
					t.Errorf("read: %v", err)
				} else if !bytes.Equal(dst, r.data[off:off+n]) {
					t.Errorf("wrong bytes at %d+%d", off, n)
				}
			}
		})
	}
	evicted := 0
	for ctx.Err() == nil {
		if r.evict() > 0 {
			evicted++
		}
		time.Sleep(time.Millisecond)
	}
	readers.Wait()
	require.Positive(t, evicted)
}

// Of a blob that was local, nothing is trusted that was written to its file since.
func TestLocalBlobWrittenBehindOurBack(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"a byte":             func(path string) error { return overwrite(path, 12345, []byte{0xff, 0xfe, 0xfd}) },
		"cut and made whole": func(path string) error { return errors.Join(os.Truncate(path, 1000), os.Truncate(path, mib)) },
		"cut":                func(path string) error { return os.Truncate(path, 1000) },
		"another blob":       func(path string) error { return os.WriteFile(path, randomBytes(mib + 1)[1:], 0o600) },
	} {
		t.Run(what, func(t *testing.T) {
			r := newRig(t, mib)
			b := r.open()
			require.NoError(t, b.Complete(t.Context(), blob.Blocked))
			r.restart()
			b = r.open()
			require.True(t, b.Local(), "after a restart")
			r.restart()
			require.NoError(t, spoil(b.Path()))
			b = r.open()
			require.False(t, b.Local())
			require.NoError(t, b.Complete(t.Context(), blob.Blocked))
			r.fileIsRight(b)
			require.Positive(t, r.reg.Requests())
		})
	}
}

// A process that ends between the link of a blob's file into another store and the
// note that it was verified leaves a file that looks unfinished. It is not written to.
func TestFileOfAnotherStoreIsNotWritten(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	require.NoError(t, b.Complete(t.Context(), blob.Blocked))
	other := filepath.Join(t.TempDir(), "elsewhere")
	require.NoError(t, os.Link(b.Path(), other))
	r.restart()
	require.NoError(t, os.Remove(b.Path()+".ranges"))
	b = r.open()
	require.True(t, b.Local(), "its bytes are right")
	require.Zero(t, r.reg.Requests())
	r.restart()
	r.open()
	r.restart()
	require.True(t, r.open().Local(), "and it is noted again")

	r.restart()
	require.NoError(t, overwrite(other, 500_000, make([]byte, 1000)))
	b = r.open()
	require.False(t, b.Local())
	r.reads(b, blob.Blocked, 400_000, 200_000)
	got, err := os.ReadFile(other)
	require.NoError(t, err)
	require.False(t, bytes.Equal(got, r.data), "the other store's file is its own affair")
	linked, err := r.store.Linked(r.dgst)
	require.NoError(t, err)
	require.False(t, linked)
}

func TestStartRemovesWhatNothingExplains(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 100*kib)
	fetched := b.Fetched()
	r.restart()
	dir := filepath.Dir(b.Path())
	orphans := []string{
		filepath.Base(b.Path()) + ".ranges.tmp123", filepath.Base(b.Path()) + ".new",
		"rubbish", randomDigest(1) + ".ranges", // a list without its blob
	}
	for _, name := range orphans {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, randomDigest(2)), nil, 0o600)) // a blob without a list
	require.Equal(t, fetched, r.open().Fetched())
	for _, name := range orphans {
		require.NoFileExists(t, filepath.Join(dir, name))
	}
	require.FileExists(t, filepath.Join(dir, randomDigest(2)))
}

func randomDigest(i int) string {
	return string(bytes.Repeat([]byte{"0123456789abcdef"[i]}, 64))
}

func overwrite(path string, off int64, p []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(p, off)
	return errors.Join(err, f.Close())
}

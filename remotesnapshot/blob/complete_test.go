package blob_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

func TestCompleteFetchesTheRest(t *testing.T) {
	for _, start := range []string{"nothing", "tail", "pieces"} {
		t.Run(start, func(t *testing.T) {
			r := newRig(t, 6*mib+123)
			r.opts.RequestSize = mib
			b := r.open()
			ctx := context.Background()
			switch start {
			case "tail":
				_, _, err := b.Tail(ctx, 100_000)
				require.NoError(t, err)
			case "pieces":
				r.reads(b, blob.Blocked, 10, 100_000)
				r.reads(b, blob.Blocked, 3*mib, 200_000)
			}
			require.False(t, b.Local())
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { require.NoError(t, b.Complete(ctx, blob.Background)) })
			}
			wg.Wait()
			r.fileIsRight(b)
			require.EqualValues(t, len(r.data), r.reg.Bytes(), "nothing twice")
			n := r.reg.Requests()
			require.NoError(t, b.Complete(ctx, blob.Blocked))
			require.Equal(t, n, r.reg.Requests())
		})
	}
}

func TestCompleteRepairsWrongBytes(t *testing.T) {
	r := newRig(t, 3*mib)
	flip := r.reg.Fault(blobtest.Fault{Flip: true, At: mib, Times: 3})
	b := r.open()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	require.Equal(t, 3, flip.Hits())
	r.fileIsRight(b)
	require.EqualValues(t, 12*mib, r.reg.Bytes())
	require.EqualValues(t, 3, b.Wrong())
}

func TestCompleteRefusesALyingRegistry(t *testing.T) {
	r := newRig(t, mib)
	r.reg.AddBlobAs(r.dgst, randomBytes(mib-5))
	b := r.open()
	err := b.Complete(context.Background(), blob.Background)
	require.ErrorIs(t, err, errdefs.ErrDataLoss)
	require.ErrorContains(t, err, "contents from "+r.reg.Host()+" do not match")
	require.ErrorContains(t, err, r.dgst.String())
	require.EqualValues(t, 4*(mib-5), r.reg.Bytes(), "asked for a few times")
	require.False(t, b.Local())
	require.Zero(t, b.Fetched())
	// Another registry has the true one, of another size.
	r.reg.AddBlobAs(r.dgst, r.data)
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	r.fileIsRight(b)
}

func TestCompleteStopsWithItsLastCaller(t *testing.T) {
	r := newRig(t, 4*mib)
	stall := r.reg.Fault(blobtest.Fault{Stall: true})
	b := r.open()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- b.Complete(ctx, blob.Background) }()
	eventually(t, "stall", func() bool { return stall.Hits() > 0 })
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	eventually(t, "no flight is left", func() bool { return blob.Flights(b) == 0 })
	stall.Clear()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	r.fileIsRight(b)
}

func TestDropOfALocalBlob(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	ctx := context.Background()
	require.NoError(t, b.Complete(ctx, blob.Background))
	r.reg.Reset()
	b.Drop(0, 100) // the blob is right: the caller's digests are wrong
	require.True(t, b.Local())
	r.reads(b, blob.Blocked, 0, 100)
	require.Zero(t, r.reg.Requests())
}

func TestDropOfADamagedLocalBlob(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	link := filepath.Join(t.TempDir(), "linked") // as the content store holds it
	require.NoError(t, os.Link(b.Path(), link))
	f, err := os.OpenFile(b.Path(), os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 100), 5000)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	damaged, err := os.ReadFile(link)
	require.NoError(t, err)

	b.Drop(5000, 100)
	require.False(t, b.Local())
	r.reads(b, blob.Blocked, 0, mib)
	after, err := os.ReadFile(link)
	require.NoError(t, err)
	require.True(t, bytes.Equal(damaged, after), "a linked file is never written again")
}

func TestRestartReusesRanges(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 100_000, 50_000)
	_, _, err := b.Tail(context.Background(), 1000)
	require.NoError(t, err)
	r.restart()
	b = r.open()
	require.EqualValues(t, 4*mib, b.Size())
	require.EqualValues(t, 51_000, b.Fetched())
	r.reads(b, blob.Blocked, 100_000, 50_000)
	require.Zero(t, r.reg.Requests())
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	require.EqualValues(t, 4*mib-51_000, r.reg.Bytes())
	r.restart()
	b = r.open()
	r.fileIsRight(b)
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	require.Zero(t, r.reg.Requests())
}

func TestRangesAreWrittenWithoutClose(t *testing.T) {
	r := newRig(t, mib)
	r.opts.FlushInterval = 10 * time.Millisecond
	b := r.open()
	r.reads(b, blob.Blocked, 0, 100_000)
	eventually(t, "the list is on disk", func() bool {
		_, err := os.Stat(b.Path() + ".ranges")
		return err == nil
	})
	// A second store on a copy of the directory stands for the start after a kill.
	dir := t.TempDir()
	require.NoError(t, os.CopyFS(dir, os.DirFS(r.opts.Root)))
	r.reg.Reset()
	s, err := blob.NewStore(blob.Options{Root: dir})
	require.NoError(t, err)
	defer s.Close()
	b2, err := s.Open(r.dgst, r.reg.Origin("repo"))
	require.NoError(t, err)
	require.NotZero(t, b2.Fetched())
	r.reads(b2, blob.Blocked, 0, int(b2.Fetched()))
	require.Zero(t, r.reg.Requests())
}

func TestDamageOnDisk(t *testing.T) {
	for _, tc := range []struct {
		name    string
		damage  func(t *testing.T, path string)
		fetched int64
		local   bool
	}{
		{"nothing", func(*testing.T, string) {}, 2 * mib, true},
		{"list is gone", func(t *testing.T, p string) { require.NoError(t, os.Remove(p+".ranges")) }, 0, false},
		{"list is flipped", func(t *testing.T, p string) {
			b, err := os.ReadFile(p + ".ranges")
			require.NoError(t, err)
			b[10] ^= 1
			require.NoError(t, os.WriteFile(p+".ranges", b, 0o600))
		}, 0, false},
		{"list is empty", func(t *testing.T, p string) { require.NoError(t, os.Truncate(p+".ranges", 0)) }, 0, false},
		{"file is shorter", func(t *testing.T, p string) { require.NoError(t, os.Truncate(p, mib)) }, mib, false},
		{"file is gone", func(t *testing.T, p string) { require.NoError(t, os.Remove(p)) }, 0, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, 2*mib)
			b := r.open()
			require.NoError(t, b.Complete(context.Background(), blob.Background))
			path := b.Path()
			r.restart()
			tc.damage(t, path)
			b = r.open()
			require.Equal(t, tc.fetched, b.Fetched())
			require.Equal(t, tc.local, b.Local())
			require.NoError(t, b.Complete(context.Background(), blob.Background))
			r.fileIsRight(b)
			require.EqualValues(t, 2*mib-tc.fetched, r.reg.Bytes())
		})
	}
}

// A power loss may keep the list and lose the bytes: what is a hole is not there.
func TestHolesAreAbsent(t *testing.T) {
	r := newRig(t, 2*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, mib)
	path := b.Path()
	r.restart()
	require.NoError(t, os.Truncate(path, 0))
	require.NoError(t, os.Truncate(path, 2*mib))
	b = r.open()
	require.Zero(t, b.Fetched())
	r.reads(b, blob.Blocked, 0, mib)
}

func TestUsageAndRemove(t *testing.T) {
	r := newRig(t, 8*mib)
	b := r.open()
	u, err := r.store.Usage(r.dgst)
	require.NoError(t, err)
	require.Zero(t, u)
	_, _, err = b.Tail(context.Background(), 100_000) // makes the file 8 MiB long
	require.NoError(t, err)
	u, err = r.store.Usage(r.dgst)
	require.NoError(t, err)
	require.Greater(t, u, int64(90_000))
	require.Less(t, u, int64(mib), "holes are not counted")
	all, err := r.store.Digests()
	require.NoError(t, err)
	require.Equal(t, []digest.Digest{r.dgst}, all)
	require.NoError(t, b.Close())
	all, err = r.store.Digests()
	require.NoError(t, err)
	require.Equal(t, []digest.Digest{r.dgst}, all, "the list is no blob")
	require.NoError(t, r.store.Remove(r.dgst))
	require.NoError(t, r.store.Remove(r.dgst))
	u, err = r.store.Usage(r.dgst)
	require.NoError(t, err)
	require.Zero(t, u)
	left, err := filepath.Glob(filepath.Join(r.opts.Root, "*", "*"))
	require.NoError(t, err)
	require.Empty(t, left)
	b = r.open()
	require.Zero(t, b.Size())
}

func TestFullDisk(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	blob.BreakDisk(t, b)
	r.reads(b, blob.Blocked, 5000, 100_000)
	r.reads(b, blob.Blocked, mib-100, 200)
	tail, size, err := b.Tail(context.Background(), 1000)
	require.NoError(t, err)
	require.EqualValues(t, mib, size)
	require.Equal(t, r.data[mib-1000:], tail)
	require.NotZero(t, r.store.Stats().Disk)
	err = b.Complete(context.Background(), blob.Background)
	require.Error(t, err)
	require.False(t, b.Local())
}

func TestOrphanedListsAreSwept(t *testing.T) {
	r := newRig(t, 10)
	b := r.open()
	orphan := b.Path() + ".ranges.tmp123"
	require.NoError(t, os.WriteFile(orphan, nil, 0o600))
	r.restart()
	r.open()
	_, err := os.Stat(orphan)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestFetchErrorNamesAll(t *testing.T) {
	r := newRig(t, mib)
	r.opts.GiveUp = 200 * time.Millisecond
	r.reg.Fault(blobtest.Fault{Status: 503})
	b := r.open()
	_, err := b.ReadAt(context.Background(), blob.Blocked, make([]byte, 100), 1000)
	require.ErrorIs(t, err, errdefs.ErrUnavailable)
	for _, part := range []string{r.dgst.String(), "bytes=1000-1099", r.reg.Host(), "503", "a fault"} {
		require.True(t, strings.Contains(err.Error(), part), "%q lacks %q", err, part)
	}
	require.NotContains(t, err.Error(), " 1 attempts", "all are counted")
}

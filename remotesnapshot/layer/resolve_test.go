package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// resolve resolves b and closes the TOC.
func resolve(t *testing.T, f Finder, b *fakeBlob, hints estargz.Hints) error {
	t.Helper()
	toc, err := f.Resolve(t.Context(), b, hints)
	if err != nil {
		require.Nil(t, toc)
		return err
	}
	return toc.Close()
}

func TestResolveCostsOneRequest(t *testing.T) {
	for _, format := range []estargz.Format{estargz.FormatEStargz, estargz.FormatZstdChunked} {
		t.Run(format.String(), func(t *testing.T) {
			b := build(t, format, []file{{"a", noise(1, 700_000)}})
			fake := newFakeBlob(b.blob)
			require.NoError(t, resolve(t, Finder{TOCDir: t.TempDir()}, fake, b.hints))
			require.LessOrEqual(t, len(fake.requests()), 2, fmt.Sprint(fake.requests()))
			require.Less(t, fake.Fetched(), int64(350_000))
			require.False(t, fake.Local())
		})
	}
}

// manyFiles is a layer whose TOC is longer than what is asked for at first.
func manyFiles() (files []file) {
	for i := range 5_000 {
		files = append(files, file{fmt.Sprintf("%x", noise(uint64(i), 100)), nil})
	}
	return files
}

func TestLongTOCCostsTwoRequests(t *testing.T) {
	b := build(t, estargz.FormatEStargz, manyFiles())
	fake := newFakeBlob(b.blob)
	require.NoError(t, resolve(t, Finder{TOCDir: t.TempDir()}, fake, b.hints))
	require.Len(t, fake.requests(), 2)
	t.Run("which can be sent ahead", func(t *testing.T) {
		fake := newFakeBlob(b.blob)
		require.NoError(t, Ahead(t.Context(), fake))
		fake.forget()
		require.NoError(t, resolve(t, Finder{TOCDir: t.TempDir()}, fake, b.hints))
		require.Empty(t, fake.requests())
	})
}

func TestKnownLayerOpensWithoutRequests(t *testing.T) {
	for _, format := range formats {
		t.Run(format.String(), func(t *testing.T) {
			b := build(t, format, someFiles())
			f := Finder{TOCDir: t.TempDir()}
			first := newFakeBlob(b.blob)
			_, err := f.OpenTOC(first, b.hints)
			require.ErrorIs(t, err, ErrNotResolved)
			require.NoError(t, resolve(t, f, first, b.hints))

			second := newFakeBlob(b.blob)
			if format == estargz.FormatStargz {
				_, err := f.OpenTOC(second, b.hints)
				require.ErrorIs(t, err, ErrNotResolved, "nothing vouches for the bytes that will be read")
				second = first
				second.forget()
			}
			stop(t, second)
			toc, err := f.OpenTOC(second, b.hints)
			require.NoError(t, err)
			require.NoError(t, toc.Close())
			require.NoError(t, resolve(t, f, second, b.hints))
			require.Empty(t, second.requests())
		})
	}
}

func TestDamagedFileIsMadeAnew(t *testing.T) {
	b := build(t, estargz.FormatEStargz, someFiles())
	f := Finder{TOCDir: t.TempDir()}
	require.NoError(t, resolve(t, f, newFakeBlob(b.blob), b.hints))
	path := TOCPath(f.TOCDir, digest.FromBytes(b.blob), b.hints)
	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, damaged := range map[string][]byte{
		"empty": {}, "cut": whole[:len(whole)/2], "flipped": append([]byte{whole[0] ^ 1}, whole[1:]...),
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.Remove(path))
			require.NoError(t, os.WriteFile(path, damaged, 0o600))
			fake := newFakeBlob(b.blob)
			_, err := f.OpenTOC(fake, b.hints)
			require.ErrorIs(t, err, ErrNotResolved)
			require.NoError(t, resolve(t, f, fake, b.hints))
			toc, err := f.OpenTOC(fake, b.hints)
			require.NoError(t, err)
			require.NoError(t, toc.Close())
		})
	}
}

func TestFileOfABlobOfAnotherSizeIsNotUsed(t *testing.T) {
	b := build(t, estargz.FormatEStargz, someFiles())
	f := Finder{TOCDir: t.TempDir()}
	require.NoError(t, resolve(t, f, newFakeBlob(b.blob), b.hints))
	_, err := f.OpenTOC(newFakeBlob(append(b.blob, 0)).known(), b.hints)
	require.ErrorIs(t, err, ErrNotResolved)
}

func TestWrongTOCIsFetchedAgain(t *testing.T) {
	b := build(t, estargz.FormatEStargz, someFiles())
	size := int64(len(b.blob))
	for name, at := range map[string]int64{"in the TOC": size - 200, "in the footer": size - 20} {
		t.Run(name, func(t *testing.T) {
			fake := newFakeBlob(b.blob)
			fake.damage(at, wrongTOCs-1)
			require.NoError(t, resolve(t, Finder{TOCDir: t.TempDir()}, fake, b.hints))
			require.Len(t, fake.requests(), wrongTOCs)

			fake = newFakeBlob(b.blob)
			fake.damage(at, 1000)
			f := Finder{TOCDir: t.TempDir()}
			err := resolve(t, f, fake, b.hints)
			require.True(t, errors.Is(err, estargz.ErrCorrupt) || errors.Is(err, estargz.ErrNotLazy), err)
			require.ErrorContains(t, err, fake.Digest().String())
			require.ErrorContains(t, err, "from fake.example")
			require.LessOrEqual(t, len(fake.requests()), 2*wrongTOCs)
			left, err := os.ReadDir(f.TOCDir)
			require.NoError(t, err)
			require.Empty(t, left, "nothing unverified is kept")
		})
	}
}

func TestTOCOfAnotherDigestIsRefused(t *testing.T) {
	b := build(t, estargz.FormatEStargz, someFiles())
	b.hints.TOCDigest = digest.FromString("what the manifest says")
	require.ErrorIs(t, resolve(t, Finder{TOCDir: t.TempDir()}, newFakeBlob(b.blob), b.hints), estargz.ErrCorrupt)
}

func TestLayerWithoutTOCDigestIsVerifiedWhole(t *testing.T) {
	for _, format := range formats {
		t.Run(format.String(), func(t *testing.T) {
			b := build(t, format, someFiles())
			f := Finder{TOCDir: t.TempDir()}
			fake := newFakeBlob(b.blob)
			require.NoError(t, resolve(t, f, fake, estargz.Hints{}))
			require.True(t, fake.Local())
			_, err := os.Stat(TOCPath(f.TOCDir, fake.Digest(), estargz.Hints{}))
			require.NoError(t, err)
		})
	}
}

func TestOrdinaryLayerIsNotLazyAfterOneRequest(t *testing.T) {
	fake := newFakeBlob(noise(1, 1<<20))
	require.ErrorIs(t, resolve(t, Finder{TOCDir: t.TempDir()}, fake, estargz.Hints{}), estargz.ErrNotLazy)
	require.Len(t, fake.requests(), 1)
	require.ErrorIs(t, Ahead(t.Context(), newFakeBlob(noise(1, 1<<20))), estargz.ErrNotLazy)
}

func TestResolvePassesOnWhatTheNetworkSays(t *testing.T) {
	b := build(t, estargz.FormatEStargz, someFiles())
	broken := errors.New("no route")
	fake := newFakeBlob(b.blob)
	fake.serveBy(func(context.Context, fakeRequest) error { return broken })
	err := resolve(t, Finder{TOCDir: t.TempDir()}, fake, b.hints)
	require.ErrorIs(t, err, broken)
	require.NotErrorIs(t, err, estargz.ErrCorrupt)
	require.Len(t, fake.requests(), 1)
}

func TestHintsThatPointNowhere(t *testing.T) {
	b := build(t, estargz.FormatZstdChunked, someFiles())
	for name, toc := range map[string]estargz.Location{
		"behind the end": {Format: estargz.FormatZstdChunked, Offset: int64(len(b.blob)) + 5, Size: 100},
		"elsewhere":      {Format: estargz.FormatZstdChunked, Offset: 10, Size: 100},
		"absurd":         {Format: estargz.FormatZstdChunked, Offset: 10, Size: 1 << 50},
		"overflowing":    {Format: estargz.FormatZstdChunked, Offset: 1<<63 - 10, Size: 100},
	} {
		t.Run(name, func(t *testing.T) {
			hints := b.hints
			hints.TOC = toc
			require.Error(t, resolve(t, Finder{TOCDir: t.TempDir()}, newFakeBlob(b.blob).known(), hints))
			require.Error(t, resolve(t, Finder{TOCDir: t.TempDir()}, newFakeBlob(b.blob), hints))
		})
	}
}

func TestTOCDirIsSwept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "toc")
	require.NoError(t, MakeTOCDir(dir))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "sha256-00.toc"), nil, 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, ".sha256-00.toc.123"), nil, 0o600))
	require.NoError(t, MakeTOCDir(dir))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1)
	require.Equal(t, "sha256-00.toc", left[0].Name())
}

// TestCompiling: a place is waited for until the context ends, and large TOCs and
// small ones never wait for each other.
func TestCompiling(t *testing.T) {
	c := NewCompiling()
	var ends []func()
	take := func(size int64, n int) {
		for range n {
			end, err := c.begin(t.Context(), size)
			require.NoError(t, err)
			ends = append(ends, end)
		}
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		cancel(gone)
		_, err := c.begin(ctx, size)
		require.ErrorIs(t, err, gone)
	}
	take(largeTOC+1, 1)
	take(largeTOC, min(runtime.GOMAXPROCS(0), compileAtOnce))
	for _, end := range ends {
		end()
	}
	take(largeTOC+1, 1)
}

// waitingBlob is a blob whose TOC does not come.
type waitingBlob struct {
	*fakeBlob
	asked chan struct{}
}

func (w waitingBlob) Fetch(ctx context.Context, p Priority, off, size int64) error {
	select {
	case w.asked <- struct{}{}:
	case <-ctx.Done():
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (w waitingBlob) ReadAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	return 0, w.Fetch(ctx, p, off, int64(len(dst)))
}

// TestNetworkTakesNoPlace: TOCs that a registry keeps back leave the others theirs.
func TestNetworkTakesNoPlace(t *testing.T) {
	b := build(t, estargz.FormatEStargz, manyFiles())
	c := NewCompiling()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	asked := make(chan struct{})
	for range compileAtOnce + 1 {
		wg.Go(func() {
			f := Finder{TOCDir: t.TempDir(), Compiling: c}
			_, _ = f.Resolve(ctx, waitingBlob{newFakeBlob(b.blob).known(), asked}, b.hints)
		})
		<-asked
	}
	require.NoError(t, resolve(t, Finder{TOCDir: t.TempDir(), Compiling: c}, newFakeBlob(b.blob), b.hints))
	cancel()
	wg.Wait()
}

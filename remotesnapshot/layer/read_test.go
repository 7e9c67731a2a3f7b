package layer

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// checkFiles reads all files at random places from many goroutines.
func checkFiles(t *testing.T, o *opened, files []file, readers, reads int) {
	t.Helper()
	var wg sync.WaitGroup
	for n := range readers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(n), 7))
			for range reads {
				f := files[r.IntN(len(files))]
				off := r.IntN(len(f.data) + 10)
				size := r.IntN(200_000)
				want := f.data[min(off, len(f.data)):min(off+size, len(f.data))]
				got, err := o.read(t.Context(), f.name, int64(off), size)
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("%s: %d bytes at %d: %d bytes, err %v; want %d bytes", f.name, size, off, len(got), err, len(want))
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestReadsEqualTheTar(t *testing.T) {
	files := someFiles()
	for _, format := range formats {
		for name, opts := range map[string]Options{
			"defaults":      {},
			"no room":       {CacheBytes: 1, DecodeBytes: 1, Window: -1},
			"a little room": {CacheBytes: 200_000, DecodeBytes: 300_000},
		} {
			t.Run(fmt.Sprint(format, "/", name), func(t *testing.T) {
				checkFiles(t, build(t, format, files).open(t, opts), files, 8, 40)
			})
		}
	}
	t.Run("as containers/storage writes", func(t *testing.T) {
		o := buildAs(t, estargztest.Options{Format: estargz.FormatZstdChunked, Storage: true}, files).open(t, Options{})
		checkFiles(t, o, files, 8, 40)
	})
	t.Run("many chunks in one member", func(t *testing.T) {
		o := buildAs(t, estargztest.Options{Format: estargz.FormatEStargz, MinChunkSize: 150_000}, files).open(t, Options{CacheBytes: 100_000})
		checkFiles(t, o, files, 8, 40)
	})
}

func TestReadersShareOneRequestAndOneDecompression(t *testing.T) {
	files := []file{{"a", noise(1, 50_000)}}
	o := build(t, estargz.FormatEStargz, files).open(t, Options{})
	g := stop(t, o.blob)
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			got, err := o.read(t.Context(), "a", 0, 50_000)
			require.NoError(t, err)
			require.Equal(t, files[0].data, got)
		})
	}
	<-g.arrived
	eventually(t, "all wait for one flight", func() bool {
		o.flights.Lock()
		defer o.flights.Unlock()
		for _, f := range o.flights.of {
			return f.waiters == 20
		}
		return false
	})
	close(g.open)
	wg.Wait()
	require.Len(t, o.blob.requests(), 1)
	require.EqualValues(t, 1, o.Info().Loads)
}

func TestMemoryStaysBounded(t *testing.T) {
	var files []file
	for i := range 30 {
		files = append(files, file{fmt.Sprintf("f%02d", i), noise(uint64(i), 120_000)})
	}
	opts := Options{CacheBytes: 500_000, DecodeBytes: 400_000}
	o := build(t, estargz.FormatEStargz, files).open(t, opts)
	done := make(chan struct{})
	var most int64
	var watch sync.WaitGroup
	watch.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				most = max(most, o.pool.mem.used())
			}
		}
	})
	checkFiles(t, o, files, 8, 60)
	close(done)
	watch.Wait()
	require.LessOrEqual(t, o.pool.cache.bytes(), opts.CacheBytes)
	require.Positive(t, most)
	// Besides the budget and the cache, each reader may still copy from a chunk, and
	// give one back.
	require.LessOrEqual(t, most, opts.CacheBytes+opts.DecodeBytes+2*8*(64<<10))
}

func TestLargeChunkLeavesSmallOnesInTheCache(t *testing.T) {
	files := []file{{"small", noise(1, 10_000)}, {"large", noise(2, 900_000)}, {"larger", noise(3, 950_000)}}
	o := buildAs(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 1 << 20}, files).open(t, Options{CacheBytes: 400_000})
	for _, f := range files {
		got, err := o.read(t.Context(), f.name, 5, 100)
		require.NoError(t, err)
		require.Equal(t, f.data[5:105], got)
	}
	loads := o.Info().Loads
	for _, name := range []string{"small", "larger"} {
		_, err := o.read(t.Context(), name, 700, 100)
		require.NoError(t, err)
	}
	require.Equal(t, loads, o.Info().Loads, "the small chunk and the last large one are still there")
}

func TestMemoryOfAnIdlePoolIsGivenBack(t *testing.T) {
	files := someFiles()
	o := build(t, estargz.FormatEStargz, files).open(t, Options{})
	for range 2 {
		checkFiles(t, o, files, 2, 20)
		require.Positive(t, o.pool.cache.bytes())
		eventually(t, "all memory is given back", func() bool { return o.pool.Memory() == 0 && o.pool.cache.bytes() == 0 })
	}
}

func TestChunksInUseStayInTheCache(t *testing.T) {
	c := newCache(1000)
	var m memory
	for n := range uint32(3) {
		b, err := m.alloc(100)
		require.NoError(t, err)
		c.put(chunkKey{1, n}, b)
		b.release()
	}
	later := time.Now()
	c.get(chunkKey{1, 1}).release()
	require.True(t, c.expire(later))
	require.Nil(t, c.get(chunkKey{1, 0}))
	c.get(chunkKey{1, 1}).release()
	require.False(t, c.expire(time.Now().Add(time.Hour)))
	require.Zero(t, c.bytes())
}

func TestWrongBytesAreFetchedAgain(t *testing.T) {
	files := []file{{"good", noise(1, 3000)}, {"bad", noise(2, 5000)}}
	b := build(t, estargz.FormatEStargz, files)
	for _, times := range []int{1, wrongTries - 1} {
		t.Run(fmt.Sprintf("wrong %d times", times), func(t *testing.T) {
			o := b.open(t, Options{})
			m := o.member("bad", 0)
			o.blob.damage(m.Offset+m.Size/2, times)
			got, err := o.read(t.Context(), "bad", 0, 5000)
			require.NoError(t, err)
			require.Equal(t, files[1].data, got)
			require.Len(t, o.blob.requests(), 1+times)
			require.Empty(t, o.Info().LastError)
		})
	}
	t.Run("wrong for good", func(t *testing.T) {
		o := b.open(t, Options{})
		m := o.member("bad", 0)
		o.blob.damage(m.Offset+m.Size/2, 1000)
		got, err := o.read(t.Context(), "bad", 0, 5000)
		require.ErrorIs(t, err, estargz.ErrCorrupt)
		require.Empty(t, got, "not one wrong byte")
		require.ErrorContains(t, err, o.blob.Digest().String())
		require.ErrorContains(t, err, "chunk")
		require.ErrorContains(t, err, fmt.Sprintf("bytes=%d-%d from fake.example are wrong", m.Offset, m.Offset+m.Size-1))
		require.Len(t, o.blob.requests(), wrongTries, "and no more")
		require.Equal(t, err.Error(), o.Info().LastError)
		got, err = o.read(t.Context(), "good", 0, 3000)
		require.NoError(t, err, "other chunks are not concerned")
		require.Equal(t, files[0].data, got)
	})
}

func TestNetworkErrorIsTheReadsError(t *testing.T) {
	o := build(t, estargz.FormatEStargz, someFiles()).open(t, Options{})
	broken := fmt.Errorf("no route to the registry: %w", cerrdefs.ErrUnavailable)
	o.blob.serveBy(func(context.Context, fakeRequest) error { return broken })
	_, err := o.read(t.Context(), "dir/f04", 0, 10)
	require.ErrorIs(t, err, broken)
	require.ErrorContains(t, err, o.blob.Digest().String())
	o.blob.serveBy(nil)
	_, err = o.read(t.Context(), "dir/f04", 0, 10)
	require.NoError(t, err, "the next read asks again")
}

func TestWaitersComeAndGo(t *testing.T) {
	files := []file{{"a", noise(1, 5000)}}
	b := build(t, estargz.FormatEStargz, files)
	t.Run("work goes on while one waits", func(t *testing.T) {
		o := b.open(t, Options{})
		g := stop(t, o.blob)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { _, err := o.read(ctx, "a", 0, 10); first <- err }()
		<-g.arrived
		go func() { _, err := o.read(t.Context(), "a", 0, 10); second <- err }()
		eventually(t, "both wait", func() bool { return o.stats.active.Load() == 2 && waiting(o) == 2 })
		cancel()
		require.ErrorIs(t, <-first, context.Canceled)
		close(g.open)
		require.NoError(t, <-second)
		require.Len(t, o.blob.requests(), 1)
	})
	t.Run("work ends with the last", func(t *testing.T) {
		o := b.open(t, Options{})
		ended := make(chan error, 1)
		arrived := make(chan struct{})
		o.blob.serveBy(func(ctx context.Context, r fakeRequest) error {
			close(arrived)
			<-ctx.Done()
			ended <- ctx.Err()
			return ctx.Err()
		})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { <-arrived; cancel() }()
		_, err := o.read(ctx, "a", 0, 10)
		require.ErrorIs(t, err, context.Canceled)
		require.Error(t, <-ended)
		require.Empty(t, o.Info().LastError, "leaving is no failure")
		o.blob.serveBy(nil)
		_, err = o.read(t.Context(), "a", 0, 10)
		require.NoError(t, err)
	})
	t.Run("deadline", func(t *testing.T) {
		o := b.open(t, Options{ReadTimeout: 20 * time.Millisecond})
		stop(t, o.blob)
		_, err := o.read(t.Context(), "a", 0, 10)
		require.ErrorIs(t, err, ErrReadTimeout)
		require.ErrorContains(t, err, o.blob.Digest().String())
	})
}

func waiting(o *opened) (n int) {
	o.flights.Lock()
	defer o.flights.Unlock()
	for _, f := range o.flights.of {
		n += f.waiters
	}
	return n
}

func TestCloseEndsBlockedReads(t *testing.T) {
	o := build(t, estargz.FormatEStargz, someFiles()).open(t, Options{ReadTimeout: -1})
	g := stop(t, o.blob)
	const readers = 50
	errs := make(chan error, readers)
	for i := range readers {
		go func() { _, err := o.read(t.Context(), "dir/f06", int64(i*6000), 10); errs <- err }()
	}
	<-g.arrived
	eventually(t, "all wait", func() bool { return waiting(o) == readers })
	o.Close()
	for range readers {
		require.ErrorIs(t, <-errs, ErrClosed)
	}
	_, err := o.Acquire()
	require.ErrorIs(t, err, ErrClosed)
}

func TestTOCStaysMappedWhileHeld(t *testing.T) {
	o := build(t, estargz.FormatEStargz, someFiles()).open(t, Options{})
	toc, err := o.Acquire()
	require.NoError(t, err)
	o.Close()
	require.Zero(t, o.blob.closes())
	var node estargz.Inode
	require.NoError(t, toc.Inode(estargz.Root, &node), "the mapping is still there")
	o.Release()
	require.Equal(t, 1, o.blob.closes())
}

func TestReadsThatMakeNoSense(t *testing.T) {
	o := build(t, estargz.FormatEStargz, someFiles()).open(t, Options{})
	buf := make([]byte, 10)
	_, err := o.ReadAt(t.Context(), estargz.Root, buf, 0)
	require.Error(t, err, "a directory")
	_, err = o.ReadAt(t.Context(), o.inode("dir/f03"), buf, -1)
	require.Error(t, err, "a negative offset")
	_, err = o.ReadAt(t.Context(), 1<<30, buf, 0)
	require.Error(t, err, "an inode that is not there")
	n, err := o.ReadAt(t.Context(), o.inode("dir/f03"), buf, 1<<40)
	require.NoError(t, err)
	require.Zero(t, n, "beyond the end")
}

func TestLegacyLayerIsReadOnlyFromAVerifiedBlob(t *testing.T) {
	files := someFiles()
	o := build(t, estargz.FormatStargz, files).open(t, Options{})
	require.True(t, o.blob.Local(), "resolving it has fetched all of it")
	o.blob.Drop(0, 100) // somebody else has found damage
	completes := o.blob.mu.completes
	got, err := o.read(t.Context(), "dir/f06", 0, 1000)
	require.NoError(t, err)
	require.Equal(t, files[6].data[:1000], got)
	require.Equal(t, completes+1, o.blob.mu.completes, "verified as a whole again")
}

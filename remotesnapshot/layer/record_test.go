package layer

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// rangeOf is the part of the blob that holds a file of one member.
func (o *opened) rangeOf(path string) Range {
	m := o.member(path, 0)
	return Range{m.Offset, m.Size}
}

func smallFiles(n int) []file {
	var files []file
	for i := range n {
		files = append(files, file{fmt.Sprintf("f%02d", i), noise(uint64(i), 10_000)})
	}
	return files
}

func TestRecordNotesMembersInTheOrderOfReads(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(6)).open(t, Options{Window: -1})
	before := o.Record()
	for _, name := range []string{"f05", "f01", "f05", "f02"} {
		_, err := o.read(t.Context(), name, 0, 10_000)
		require.NoError(t, err)
	}
	later := o.Record()
	for _, name := range []string{"f00", "f01"} { // f01 is in the cache of chunks
		_, err := o.read(t.Context(), name, 0, 100)
		require.NoError(t, err)
	}
	got, whole := before.Stop()
	require.True(t, whole)
	joined := o.rangeOf("f01")
	joined.Size += o.rangeOf("f02").Size
	require.Equal(t, []Range{o.rangeOf("f05"), joined, o.rangeOf("f00")}, got, "once each; neighbours read one after the other are one")
	got, whole = later.Stop()
	require.False(t, whole, "something was read before it began")
	joined = o.rangeOf("f00")
	joined.Size += o.rangeOf("f01").Size
	require.Equal(t, []Range{joined}, got)

	_, err := o.read(t.Context(), "f04", 0, 100)
	require.NoError(t, err)
	again, _ := later.Stop()
	require.Equal(t, got, again, "it has ended")
}

func TestRecordOfReadsAtTheSameTime(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(40)).open(t, Options{})
	r := o.Record()
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			if _, err := o.read(t.Context(), fmt.Sprintf("f%02d", i), 0, 1); err != nil {
				t.Error(err)
			}
			o.Record().Stop()
		})
	}
	wg.Wait()
	got, _ := r.Stop()
	var sum, want int64
	for _, r := range got {
		sum += r.Size
	}
	for i := range 40 {
		want += o.rangeOf(fmt.Sprintf("f%02d", i)).Size
	}
	require.Equal(t, want, sum)
}

func TestReplay(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(6)).open(t, Options{})
	ranges := []Range{o.rangeOf("f04"), o.rangeOf("f01")}
	o.Replay(t.Context(), append([]Range{{-5, 3}, {1 << 40, 5}, {3, 0}}, ranges...), nil)
	eventually(t, "fetched", func() bool { return o.Has(ranges[0].Off, ranges[0].Size) && o.Has(ranges[1].Off, ranges[1].Size) })
	require.Equal(t, []fakeRequest{{Prefetch, ranges[0].Off, ranges[0].Size}, {Prefetch, ranges[1].Off, ranges[1].Size}}, o.blob.requests())
	o.blob.forget()
	for _, name := range []string{"f04", "f01"} {
		_, err := o.read(t.Context(), name, 0, 10_000)
		require.NoError(t, err)
	}
	o.Replay(t.Context(), ranges, nil)
	o.Close()
	require.Empty(t, o.blob.requests(), "what is there is not asked for")
}

// What was absent is decompressed as it comes, in its order, as far as there is room
// for what nobody has read.
func TestReplayUnpacks(t *testing.T) {
	const size = 60_000
	var files []file
	var ranges []Range
	for i := range 350 {
		files = append(files, file{fmt.Sprintf("f%d", i), noise(uint64(i), size)})
	}
	o := build(t, estargz.FormatEStargz, files).open(t, Options{})
	for i := range files {
		ranges = append(ranges, o.rangeOf(fmt.Sprintf("f%d", i)))
	}
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, ranges[0].Off, ranges[0].Size))
	o.Replay(t.Context(), ranges, ranges)
	eventually(t, "decompressed", func() bool { return o.pool.cache.bytes() > replayAhead })
	require.LessOrEqual(t, o.pool.cache.bytes(), int64((replayAhead/size+2)<<16), "memory comes in pieces of 64 KiB")
	loads := o.stats.loads.Load()
	read := func(i int) {
		got, err := o.read(t.Context(), files[i].name, 0, size)
		require.NoError(t, err)
		require.Equal(t, files[i].data, got)
	}
	c, err := o.toc.FindChunk(o.inode("f0"), 0)
	require.NoError(t, err)
	require.Nil(t, o.pool.cache.get(chunkKey{o.id, c}), "it was there before: the kernel may know it")
	first, err := o.toc.FindChunk(o.inode("f1"), 0)
	require.NoError(t, err)
	o.pool.cache.get(chunkKey{o.id, first}).release()
	for i := 1; i < len(files); i++ {
		read(i)
	}
	require.Greater(t, o.stats.loads.Load(), loads)
	eventually(t, "ended", func() bool { return o.replaying.Load() == nil })
}

// A read that needs what a replay brings asks for that, and for no neighbours: what
// else is needed is known. Whether it joins the request is the blob's to choose.
func TestReadsBesideAReplay(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(6)).open(t, Options{})
	asked, answer := make(chan struct{}), make(chan struct{})
	t.Cleanup(sync.OnceFunc(func() { close(answer) }))
	o.blob.serveBy(func(ctx context.Context, r fakeRequest) error {
		if r.prio == Prefetch {
			close(asked)
			<-answer
		}
		return nil
	})
	o.Replay(t.Context(), []Range{o.rangeOf("f03")}, nil)
	<-asked
	_, err := o.read(t.Context(), "f03", 0, 10)
	require.NoError(t, err)
	for _, r := range o.blob.requests() {
		require.Equal(t, o.rangeOf("f03"), Range{r.off, r.size})
	}
}

func TestReplayEndsWithItsStep(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(6)).open(t, Options{})
	ended := make(chan struct{})
	o.blob.serveBy(func(ctx context.Context, r fakeRequest) error {
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	})
	ctx, cancel := context.WithCancel(t.Context())
	ranges := []Range{o.rangeOf("f03")}
	o.Replay(ctx, ranges, nil)
	cancel()
	<-ended

	o.blob.serveBy(nil)
	o.Close()
	o.Replay(t.Context(), ranges, nil) // nothing happens
	require.Zero(t, o.Info().Prefetched)
}

// Names that end where one expects more of them.
func TestFollowOddNames(t *testing.T) {
	var files []file
	for _, name := range []string{"usr/include/x.", "usr/include/y.h", "usr/include/..h", "usr/lib/z.so.", "a.py", "b.go"} {
		files = append(files, file{name, []byte("#include <x.>\nimport .\nimport \"\"\n")})
	}
	o := build(t, estargz.FormatEStargz, files).open(t, Options{})
	for _, f := range files {
		got, err := o.read(t.Context(), f.name, 0, len(f.data))
		require.NoError(t, err)
		require.Equal(t, f.data, got)
	}
}

func TestRecordOfReadsThatFail(t *testing.T) {
	o := build(t, estargz.FormatEStargz, smallFiles(4)).open(t, Options{Window: -1})
	rec := o.Record()
	defer rec.Stop()
	told := 0
	rec.WhenFailed(func() { told++ })
	away := errors.New("the registry is away")
	o.blob.serveBy(func(context.Context, fakeRequest) error { return fmt.Errorf("%w: %w", away, cerrdefs.ErrUnavailable) })
	for _, name := range []string{"f02", "f01"} {
		_, err := o.read(t.Context(), name, 0, 10_000)
		require.ErrorIs(t, err, away)
	}
	n, err := rec.Failed()
	require.Equal(t, 2, n)
	require.ErrorIs(t, err, away)
	require.ErrorContains(t, err, o.blob.Digest().String())
	require.Equal(t, 1, told)

	// Of two nobody knows whose read it was.
	other := o.Record()
	other.WhenFailed(func() { t.Error("it may have been the other's read") })
	_, err = o.read(t.Context(), "f00", 0, 10_000)
	require.ErrorIs(t, err, away)
	failed, _ := other.Failed()
	require.Equal(t, 1, failed)
	other.Stop()
	o.blob.serveBy(nil)
	_, err = o.read(t.Context(), "f00", 0, 10_000)
	require.NoError(t, err)

	// A reader that leaves has met no error.
	gone, cancel := context.WithCancel(t.Context())
	o.blob.serveBy(func(ctx context.Context, _ fakeRequest) error { cancel(); <-ctx.Done(); return ctx.Err() })
	_, err = o.read(gone, "f03", 0, 10_000)
	require.ErrorIs(t, err, context.Canceled)
	n, _ = rec.Failed()
	require.Equal(t, 2, n)

	// What can be read in the end has not failed: a reader may have asked again.
	o.blob.serveBy(nil)
	for i, name := range []string{"f02", "f01"} {
		_, err := o.read(t.Context(), name, 0, 10_000)
		require.NoError(t, err)
		n, err = rec.Failed()
		require.Equal(t, 1-i, n)
		require.Equal(t, n > 0, err != nil)
	}
}

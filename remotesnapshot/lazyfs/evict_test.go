package lazyfs

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// Above the limit, the bytes go that no mount needs, those first that were not used
// for longest. Layers stay readable.
func TestEvictionKeepsTheLimit(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{MaxBytes: 1200 << 10}, reg)
	var srcs []remotesnapshot.Source
	var dirs []string
	for i := range 3 {
		src := push(reg, "app:latest", layerOf(t, uint64(i)*10, "a"))
		dir, _ := w.resolved(src)
		srcs, dirs = append(srcs, src), append(dirs, dir)
	}
	usage := func(i int) int64 {
		n, err := w.blobs.Usage(srcs[i].Digest)
		require.NoError(t, err)
		return n
	}
	evict := func() int64 {
		freed, err := w.Evict(t.Context())
		require.NoError(t, err)
		return freed
	}
	read := func(i int) { check(t, dirs[i], "a", contents(uint64(i)*10, 0)) }
	for _, i := range []int{1, 0, 2} { // the second is the oldest, then the first
		read(i)
		require.Greater(t, usage(i), int64(400<<10))
		time.Sleep(20 * time.Millisecond) // more than a file system's clock tick
	}
	release := w.Hold(srcs[1], func() []string { return nil })
	require.Positive(t, evict())
	require.Less(t, usage(0), int64(10<<10), "of those that no mount needs the oldest")
	require.Greater(t, usage(1), int64(400<<10), "a mount needs it")
	require.Greater(t, usage(2), int64(400<<10), "it is newer, and there is room now")
	require.Zero(t, evict(), "there is room")
	release()
	release()

	w.opts.MaxBytes = 1
	w.FS.opts.MaxBytes = 1
	require.Positive(t, evict())
	for i := range 3 {
		require.Less(t, usage(i), int64(10<<10))
		files, err := filepath.Glob(filepath.Join(dirs[i], "*"))
		require.NoError(t, err)
		require.NotEmpty(t, files, "the layer is still there")
		b, err := os.ReadFile(filepath.Join(dirs[i], "zz-padding"))
		require.NoError(t, err, "and what was not read yet is fetched")
		require.Len(t, b, 400_000)
	}
}

// The limit is kept without being asked for.
func TestEvictionRunsByItself(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{MaxBytes: 1}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, _ := w.resolved(src)
	check(t, dir, "a", contents(1, 0))
	eventually(t, "evicted", func() bool {
		n, err := w.blobs.Usage(src.Digest)
		require.NoError(t, err)
		return n < 10<<10
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	require.NoError(t, w.Resolve(ctx, src)[0])
}

// A compact TOC that is cut or overwritten while its layer is open changes nothing,
// and is made again when the layer is opened the next time.
func TestTOCDamagedWhileItIsMapped(t *testing.T) {
	for what, spoil := range map[string]func(path string) error{
		"cut":         func(path string) error { return os.Truncate(path, 0) },
		"overwritten": func(path string) error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
		"removed":     os.Remove,
	} {
		t.Run(what, func(t *testing.T) {
			reg := blobtest.New(t)
			w := start(t, Options{}, reg)
			src := push(reg, "app:latest", layerOf(t, 1, "a", "b"))
			dir, _ := w.resolved(src)
			tocs, err := filepath.Glob(filepath.Join(w.opts.Root, "toc", "*.toc"))
			require.NoError(t, err)
			require.Len(t, tocs, 1)
			require.NoError(t, spoil(tocs[0]))
			check(t, dir, "a", contents(1, 0))
			files, err := os.ReadDir(dir)
			require.NoError(t, err)
			require.Len(t, files, 4)

			w = w.restart()
			reg.Reset()
			dir, _ = w.resolved(src)
			check(t, dir, "b", contents(1, 1))
			check(t, dir, "d/small", []byte("a few bytes"))
			again, err := os.Stat(tocs[0])
			require.NoError(t, err)
			require.Positive(t, again.Size(), "it is made again")
		})
	}
}

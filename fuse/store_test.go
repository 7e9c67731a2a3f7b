package fuse_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// wholeFiles is a content that has all of a file in memory once something of it was
// read.
type wholeFiles struct {
	fuse.Content
	held   atomic.Int64 // pieces that were not released
	given  sync.Map     // of inodes
	before func(inode uint32, off int64)
}

func (w *wholeFiles) ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (int, error) {
	if w.before != nil {
		w.before(inode, off)
	}
	return w.Content.ReadAt(ctx, inode, dst, off)
}

func (w *wholeFiles) Whole(inode uint32, off, least, margin int64) (fuse.Piece, bool) {
	toc, err := w.Acquire()
	if err != nil {
		return fuse.Piece{}, false
	}
	defer w.Release()
	var node estargz.Inode
	if toc.Inode(inode, &node) != nil || node.Size < least {
		return fuse.Piece{}, false
	}
	_, again := w.given.LoadOrStore(inode, true)
	data := make([]byte, node.Size)
	if n, err := w.Content.ReadAt(context.Background(), inode, data, 0); err != nil || n != len(data) {
		return fuse.Piece{}, false
	}
	w.held.Add(1)
	return fuse.Piece{Data: data, Again: again, Release: func() { w.held.Add(-1) }}, true
}

// readPages is readRandom, which has to succeed.
func readPages(t *testing.T, path string, off int64, n int) {
	t.Helper()
	require.NoError(t, readRandom(path, off, n))
}

// TestRestIsStored: of a file of which a page was read no other page is asked for, and
// what the kernel has is the file.
func TestRestIsStored(t *testing.T) {
	const size = 1<<20 + 1234
	body := pattern(size)
	s := newServer(t, fuse.Options{})
	c := &wholeFiles{Content: ft.Layer(t, ft.Tar(t, ft.File("large", 0o644, body), ft.File("small", 0o644, body[:100_000])))}
	dir := add(t, s, c).Path()
	stores := func() uint64 { return s.Requests()["STORE"] }

	large, small := filepath.Join(dir, "large"), filepath.Join(dir, "small")
	readPages(t, small, 0, 4096)
	readPages(t, large, 300<<10, 4096)
	eventually(t, "the rest is stored", func() bool { return stores() == 1 })
	eventually(t, "the piece is given back", func() bool { return c.held.Load() == 0 })
	sent := messages(s, func() {
		out, err := child("mmap", large).CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte(body))), string(out))
		out, err = child("tail", large).CombinedOutput()
		require.NoError(t, err, string(out))
	})
	if fuse.ClearsTails() {
		require.Zero(t, sent["READ"], "all of it was there")
	} else {
		require.EqualValues(t, 1, sent["READ"], "this kernel would show what was behind the end")
	}
	readPages(t, small, 8192, 4096)
	require.EqualValues(t, 1, stores(), "a small file comes with a READ")
}

// TestStoreWaitsForNobodyElse: a store that meets a page under read waits in the kernel;
// other files are stored meanwhile, and the server closes all the same.
func TestStoreWaitsForNobodyElse(t *testing.T) {
	const size, files = 1 << 20, 4
	var entries []ft.Entry
	for i := range files {
		entries = append(entries, ft.File(fmt.Sprintf("f%d", i), 0o644, pattern(size)))
	}
	s := newServer(t, fuse.Options{})
	closing, asked := make(chan struct{}), make(chan struct{})
	c := &wholeFiles{Content: ft.Layer(t, ft.Tar(t, entries...))}
	toc, err := c.Acquire()
	require.NoError(t, err)
	stuck, err := toc.Lookup(estargz.Root, []byte("f0"))
	c.Release()
	require.NoError(t, err)
	c.before = func(inode uint32, off int64) {
		if inode == stuck && off == 512<<10 {
			close(asked)
			<-closing
		}
	}
	dir := add(t, s, c).Path()
	path := func(i int) string { return filepath.Join(dir, fmt.Sprintf("f%d", i)) }

	reader := child("page", path(0), fmt.Sprint(512<<10))
	require.NoError(t, reader.Start())
	<-asked // the kernel has locked that page
	readPages(t, path(0), 0, 4096)
	eventually(t, "the store is under way", func() bool { return c.held.Load() == 1 })
	for i := 1; i < files; i++ {
		readPages(t, path(i), 0, 4096)
		eventually(t, "another file is stored", func() bool { return s.Requests()["STORE"] == uint64(i) })
	}
	require.EqualValues(t, 1, c.held.Load(), "the first one still waits")

	closed := make(chan error)
	go func() { closed <- s.Close() }()
	eventually(t, "the store ends with the connection", func() bool { return c.held.Load() == 0 })
	close(closing)
	require.NoError(t, <-closed)
	reader.Wait() // fails, unless the store came before it looked
}

func TestWholePages(t *testing.T) {
	page := int64(os.Getpagesize())
	for _, tc := range []struct {
		off, n, size int64
		tails        bool
		lo, hi       int64
	}{
		{0, 3 * page, 3 * page, false, 0, 3 * page},
		{0, 3*page + 1, 3*page + 1, true, 0, 3*page + 1},
		{0, 3*page + 1, 3*page + 1, false, 0, 3 * page},
		{0, 3*page + 1, 5 * page, true, 0, 3 * page},
		{1, 3 * page, 5 * page, true, page, 3 * page},
		{page, page, 5 * page, true, page, 2 * page},
		{1, page, 5 * page, true, 0, 0},
		{1, 10, 11, true, 0, 0},
		{page, 0, 5 * page, true, 0, 0},
	} {
		data := []byte(pattern(int(tc.n)))
		got, at := fuse.WholePages(data, tc.off, tc.size, tc.tails)
		require.EqualValues(t, tc.hi-tc.lo, len(got), "%+v", tc)
		if len(got) > 0 {
			require.Equal(t, tc.lo, at, "%+v", tc)
			require.Equal(t, data[tc.lo-tc.off:tc.hi-tc.off], got, "%+v", tc)
		}
	}
}

func TestSinceWhichKernel(t *testing.T) {
	for release, want := range map[string]bool{
		"6.11.0": true, "6.18.44": true, "7.0": true, "6.10.14": false, "6.1.0-26-amd64": false, "5.15.0-1-generic": false, "": false, "next": false,
	} {
		require.Equal(t, want, fuse.IsSince(release, 6, 11), release)
	}
}

package erofs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse/erofs"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// What the kernel makes of images is tested where they are mounted, in package fuse.

func build(t testing.TB, toc *estargz.TOC) (*erofs.Image, error) {
	t.Helper()
	img, err := erofs.Build(context.Background(), toc, erofs.Options{Dir: t.TempDir(), Opaque: "trusted.overlay.opaque"})
	if err == nil {
		t.Cleanup(img.Release)
	}
	return img, err
}

// checkPlaces looks every file up on the data device, and every block.
func checkPlaces(toc *estargz.TOC, img *erofs.Image) error {
	used := int64(0)
	for i := range toc.Len() {
		var in estargz.Inode
		if err := toc.Inode(i, &in); err != nil {
			return err
		}
		start, ok := img.Start(i)
		if _, n, _ := toc.FileChunks(i); ok != (n > 0) {
			return fmt.Errorf("inode %d of %d chunks: start is %t", i, n, ok)
		}
		if !ok {
			continue
		}
		for _, off := range []int64{0, (in.Size - 1) / 2, in.Size - 1} {
			got, at, next, ok := img.File(start + off)
			if !ok || got != i || at != start || next < start+in.Size || next%erofs.BlockSize != 0 {
				return fmt.Errorf("byte %d of inode %d, at %d: %d, %d, %d, %t", off, i, start, got, at, next, ok)
			}
		}
		used += (in.Size + erofs.BlockSize - 1) / erofs.BlockSize * erofs.BlockSize
	}
	if used != img.DataSize() {
		return fmt.Errorf("files need %d bytes, the device has %d", used, img.DataSize())
	}
	for _, off := range []int64{-1, img.DataSize(), 1 << 62} {
		if _, _, _, ok := img.File(off); ok {
			return fmt.Errorf("a file at %d of %d bytes", off, img.DataSize())
		}
	}
	if _, ok := img.Start(toc.Len()); ok {
		return errors.New("an inode that is not there")
	}
	return nil
}

func TestPlaces(t *testing.T) {
	var tar bytes.Buffer
	require.NoError(t, estargztest.WriteTar(&tar, estargztest.Torture()...))
	for _, opts := range []estargztest.Options{
		{Format: estargz.FormatEStargz, ChunkSize: 64 << 10},
		{Format: estargz.FormatZstdChunked, Storage: true},
	} {
		toc := ft.FromTar(t, tar.Bytes(), opts).TOC()
		img, err := build(t, toc)
		require.NoError(t, err)
		require.NoError(t, checkPlaces(toc, img))
		again, err := build(t, toc)
		require.NoError(t, err)
		one, err := os.ReadFile(img.Path())
		require.NoError(t, err)
		two, err := os.ReadFile(again.Path())
		require.NoError(t, err)
		require.True(t, bytes.Equal(one, two), "the same TOC makes the same image")
	}
}

// Files lie in the order of the blob, so that what a scan comes to lies together.
// TestFullDisk: wherever the disk ends, that is the error, and soon.
func TestFullDisk(t *testing.T) {
	ft.RequireFUSE(t)
	var entries []estargztest.Entry
	for i := range 6000 {
		entries = append(entries, estargztest.File(fmt.Sprintf("d%d/%s%d", i/1000, strings.Repeat("n", i%100), i), []byte("x")))
	}
	var tar bytes.Buffer
	require.NoError(t, estargztest.WriteTar(&tar, entries...))
	toc := ft.FromTar(t, tar.Bytes(), estargztest.Options{Format: estargz.FormatEStargz}).TOC()
	dir := t.TempDir()
	failures := 0
	for pages := 1; ; pages += 13 {
		require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dk", 4*pages)))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		img, err := erofs.Build(ctx, toc, erofs.Options{Dir: dir})
		cancel()
		if err == nil {
			require.NoError(t, checkPlaces(toc, img))
			img.Release()
		}
		require.NoError(t, unix.Unmount(dir, 0))
		if err == nil {
			break
		}
		require.ErrorIs(t, err, unix.ENOSPC)
		failures++
	}
	require.Greater(t, failures, 10)
}

func TestOrder(t *testing.T) {
	toc := ft.Layer(t, ft.Tar(t, ft.File("z", 0o644, "1"), ft.File("a/b/c", 0o644, "2"), ft.File("m", 0o644, "3"))).TOC()
	img, err := build(t, toc)
	require.NoError(t, err)
	var names []string
	for off := int64(0); off < img.DataSize(); off += erofs.BlockSize {
		i, _, _, ok := img.File(off)
		require.True(t, ok)
		name, err := toc.Path(i)
		require.NoError(t, err)
		names = append(names, name)
	}
	require.Equal(t, []string{"/z", "/a/b/c", "/m"}, names)
}

func TestUnsupported(t *testing.T) {
	for name, e := range map[string]ft.Entry{
		"a name space without a number": ft.File("f", 0o644, "").Xattr("system.nfs4_acl", "x"),
		"a large value":                 ft.File("f", 0o644, "").Xattr("user.large", strings.Repeat("x", 1<<16)),
	} {
		toc := ft.Layer(t, ft.Tar(t, e)).TOC()
		_, err := build(t, toc)
		require.ErrorIs(t, err, erofs.ErrUnsupported, name)
	}
	toc := ft.Raw(t, nil, `{"version":1,"entries":[{"name":"huge","type":"reg","size":36028797018963968,"chunkSize":36028797018963968,"chunkType":"zeros"}]}`)
	_, err := build(t, toc.TOC())
	require.ErrorIs(t, err, erofs.ErrUnsupported, "files that no device can hold")
}

func TestEnds(t *testing.T) {
	toc := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "x"))).TOC()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := erofs.Build(ctx, toc, erofs.Options{Dir: t.TempDir()})
	require.ErrorIs(t, err, context.Canceled)
	_, err = erofs.Build(t.Context(), toc, erofs.Options{Dir: "/nowhere"})
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = erofs.Build(t.Context(), toc, erofs.Options{Dir: "/dev/full"})
	require.Error(t, err)

	img, err := erofs.Build(t.Context(), toc, erofs.Options{Dir: t.TempDir(), Opaque: "trusted.overlay.opaque"})
	require.NoError(t, err)
	require.True(t, img.Hold())
	img.Release()
	img.Release()
	require.False(t, img.Hold())
}

// FuzzBuild makes images of the TOCs of any document: one that can be looked into, or an
// error.
func FuzzBuild(f *testing.F) {
	for _, doc := range []string{
		`{"version":1,"entries":[]}`,
		`{"version":1,"entries":[{"name":"a/","type":"dir","mode":493},{"name":"a/f","type":"reg","size":5,"chunkDigest":"sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}]}`,
		`{"version":1,"entries":[{"name":"s","type":"symlink","linkName":"` + strings.Repeat("x/", 2047) + `"},{"name":"h","type":"hardlink","linkName":"s"}]}`,
		`{"version":1,"entries":[{"name":"z","type":"reg","size":99999999,"chunkType":"zeros"},{"name":"d","type":"char","devMajor":4,"devMinor":9}]}`,
		`{"version":1,"entries":[{"name":"x","type":"fifo","xattrs":{"user.a":"","security.b":"QUFB","trusted.c":"x"}},{"name":".wh..wh..opq","type":"reg"}]}`,
	} {
		f.Add([]byte(doc))
	}
	f.Fuzz(func(t *testing.T, doc []byte) {
		layer, err := estargztest.RawLayer([]byte("payload"), doc)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), "toc")
		if layer.Compile(t.Context(), path, estargz.Limits{}) != nil {
			return
		}
		toc, err := estargz.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer toc.Close()
		img, err := build(t, toc)
		if errors.Is(err, erofs.ErrUnsupported) {
			return
		}
		if err == nil {
			err = checkPlaces(toc, img)
		}
		if err != nil {
			t.Fatal(err)
		}
	})
}

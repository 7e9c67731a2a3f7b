package fuse_test

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

func TestFileOver4GiB(t *testing.T) {
	const size = 5<<30 + 123
	s := newServer(t, fuse.Options{})
	c := ft.Raw(t, nil, `{"version":1,"entries":[
		{"name":"big","type":"reg","mode":420,"size":5368709243,"chunkType":"zeros","chunkSize":5368709243,"digest":"sha256:`+strings.Repeat("0", 64)+`"}]}`)
	d := add(t, s, c)
	st := stat(t, d.Path()+"/big")
	require.EqualValues(t, size, st.Size)
	require.EqualValues(t, (size+4095)/4096*8, st.Blocks)
	f, err := os.Open(d.Path() + "/big")
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 1<<20)
	for _, off := range []int64{0, 1<<31 - 10, 1<<32 - 10, size - 100} {
		n, err := f.ReadAt(buf, off)
		if off+int64(len(buf)) > size {
			require.ErrorIs(t, err, io.EOF)
			require.EqualValues(t, size-off, n)
		} else {
			require.NoError(t, err)
		}
	}
	n, err := f.ReadAt(buf, size)
	require.ErrorIs(t, err, io.EOF)
	require.Zero(t, n)
	// No holes are found, as on a file system that has none.
	off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA)
	require.NoError(t, err)
	require.Zero(t, off)
}

func TestReadsInAllWays(t *testing.T) {
	s := newServer(t, fuse.Options{})
	body := pattern(3_000_001)
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, body), ft.File("script", 0o755, "#!/bin/sh\necho ran\n"))))
	path := d.Path() + "/f"
	sum := sha256.Sum256([]byte(body))

	b, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, sum, sha256.Sum256(b))

	mapped, err := child("mmap", path).Output()
	require.NoError(t, err)
	require.Equal(t, fmt.Sprintf("%x", sum), string(mapped))

	direct, err := os.OpenFile(path, os.O_RDONLY|syscall.O_DIRECT, 0)
	require.NoError(t, err)
	defer direct.Close()
	b, err = io.ReadAll(direct)
	require.NoError(t, err)
	require.Equal(t, sum, sha256.Sum256(b))

	// Not by a fork of the server's own process: it would wait for the exec.
	out, err := exec.Command("env", ft.Overlay(t, d.Path())+"/script").Output()
	require.NoError(t, err)
	require.Equal(t, "ran\n", string(out))
}

func TestReadError(t *testing.T) {
	s := newServer(t, fuse.Options{})
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f"), ft.File("g", 0o644, "g")))
	var failing atomic.Bool
	failing.Store(true)
	c.Before = func(context.Context, uint32, int64, int) error {
		if failing.Load() {
			return unix.ECONNREFUSED // a cause's own number does not leak
		}
		return nil
	}
	d := add(t, s, c)
	_, err := os.ReadFile(d.Path() + "/f")
	require.ErrorIs(t, err, unix.EIO)
	failing.Store(false)
	b, err := os.ReadFile(d.Path() + "/f")
	require.NoError(t, err, "an error is not remembered")
	require.Equal(t, "f", string(b))
}

func TestStateFile(t *testing.T) {
	s := newServer(t, fuse.Options{})
	for _, xattrs := range []bool{false, true} {
		c := ft.Layer(t, ft.Tar(t, torture(xattrs)...))
		d := add(t, s, c)
		for where, dir := range map[string]string{"directly": d.Path(), "through overlay": ft.Overlay(t, d.Path())} {
			t.Run(where, func(t *testing.T) { testStateFile(t, dir, c) })
		}
	}
}

func testStateFile(t *testing.T, dir string, c *ft.Content) {
	require.NotContains(t, find(t, dir), ".stargz-snapshotter")
	state := dir + "/.stargz-snapshotter"
	path := state + "/" + c.Status().Digest.String() + ".json"

	st := stat(t, state)
	require.EqualValues(t, unix.S_IFDIR|0o500, st.Mode)
	st = stat(t, path)
	require.EqualValues(t, unix.S_IFREG|0o400, st.Mode)
	require.Zero(t, st.Uid)
	_, err := os.Stat(state + "/other.json")
	require.ErrorIs(t, err, unix.ENOENT)

	read := func() (s fuse.Status) {
		t.Helper()
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NoError(t, json.Unmarshal(b, &s))
		require.EqualValues(t, stat(t, path).Size, len(b))
		return s
	}
	require.Equal(t, c.Status(), read())
	before := stat(t, path)
	require.Equal(t, before.Mtim, stat(t, path).Mtim, "nothing happened")

	c.SetStatus(func(s *fuse.Status) {
		s.FetchedSize, s.FetchedPercent = s.FetchedSize+10, 12.5
		s.Error = "read of \"x\": " + strings.Repeat("no route to host ", 200)
	})
	got := read()
	require.Equal(t, c.Status().FetchedSize, got.FetchedSize)
	require.Equal(t, 12.5, got.FetchedPercent)
	require.True(t, strings.HasPrefix(c.Status().Error, got.Error) && len(got.Error) > 100, "cut to fit")
	after := stat(t, path)
	require.Greater(t, after.Mtim.Nano(), before.Mtim.Nano(), "the time moves with the content")
	c.SetStatus(func(s *fuse.Status) { s.Error = "" })

	letIn(t, dir)
	out, err := as(65534, dir, "stat", "bin/su").CombinedOutput()
	require.NoError(t, err, "%s", out)
	out, err = as(65534, dir, "cat", path).CombinedOutput()
	require.ErrorContains(t, err, "exit status 1", "for root only")
	require.Contains(t, string(out), "Permission denied")
}

// A layer's own entry of that name is not hidden by ours.
func TestStateDirOfTheLayer(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File(".stargz-snapshotter/own", 0o644, "own"))))
	require.Equal(t, []string{".stargz-snapshotter", ".stargz-snapshotter/own"}, find(t, d.Path()))
}

func TestRenderStatus(t *testing.T) {
	for _, text := range []string{"", "short", strings.Repeat("\x00", 5000), strings.Repeat("ü", 5000), "\xff\xfe", strings.Repeat("\"<&>", 2000)} {
		b := fuse.RenderStatus(fuse.Status{Digest: "sha256:1", Size: 7, Error: text})
		require.Len(t, b, fuse.StateSize)
		var s fuse.Status
		require.NoError(t, json.Unmarshal(b, &s), "%s", b)
		require.EqualValues(t, 7, s.Size)
	}
}

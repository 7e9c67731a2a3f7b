package fuse_test

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"testing"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

func header(node uint64) gofuse.InHeader { return gofuse.InHeader{NodeId: node} }

// Requests make no garbage: with thousands a second, that is what keeps the
// daemon small.
func TestNoAllocations(t *testing.T) {
	if raceDetector {
		t.Skip("the race detector makes sync.Pool forget on purpose")
	}
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	d, err := s.Add(instantContent{ft.Layer(t, ft.Tar(t, torture(false)...))})
	require.NoError(t, err)
	never := make(chan struct{})
	h := header(d.NodeID(estargz.Root))
	var entry gofuse.EntryOut
	var attr gofuse.AttrOut
	require.Equal(t, gofuse.OK, fs.Lookup(never, &h, "chunked", &entry))
	file := entry.NodeId
	buf := make([]byte, 128<<10)
	getattr := &gofuse.GetAttrIn{InHeader: header(file)}
	readFile := &gofuse.ReadIn{InHeader: header(file)}
	readRoot := &gofuse.ReadIn{InHeader: h}
	for name, request := range map[string]func(){
		"lookup":  func() { fs.Lookup(never, &h, "chunked", &entry) },
		"miss":    func() { fs.Lookup(never, &h, "nowhere", &entry) },
		"getattr": func() { fs.GetAttr(never, getattr, &attr) },
		"read": func() {
			r, _ := fs.Read(never, readFile, buf)
			r.Done()
		},
	} {
		require.Zero(t, testing.AllocsPerRun(1000, request), name)
	}
	out := gofuse.NewDirEntryList(buf, 0)
	require.Zero(t, testing.AllocsPerRun(100, func() {
		*out = *gofuse.NewDirEntryList(buf, 0)
		fs.ReadDirPlus(never, readRoot, out)
	}), "readdirplus")
}

func BenchmarkLookup(b *testing.B) {
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	d, err := s.Add(manyFiles(b, 30_000))
	require.NoError(b, err)
	h := header(d.NodeID(1))
	var out gofuse.EntryOut
	b.ReportAllocs()
	for b.Loop() {
		fs.Lookup(nil, &h, "014999", &out)
	}
}

func BenchmarkReadDirPlus(b *testing.B) {
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	d, err := s.Add(manyFiles(b, 1000))
	require.NoError(b, err)
	buf := make([]byte, 1<<20)
	in := &gofuse.ReadIn{InHeader: header(d.NodeID(1))}
	b.ReportAllocs()
	for b.Loop() {
		fs.ReadDirPlus(nil, in, gofuse.NewDirEntryList(buf, 0))
	}
}

func TestNodeIDs(t *testing.T) {
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f")))
	stale := gofuse.Status(unix.ESTALE)
	seen := map[uint64]bool{1: true, math.MaxUint64: true}
	getattr := func(id uint64) gofuse.Status {
		return fs.GetAttr(nil, &gofuse.GetAttrIn{InHeader: header(id)}, new(gofuse.AttrOut))
	}
	for range 3 {
		d, err := s.Add(c)
		require.NoError(t, err)
		for _, index := range []uint32{0, 1, fuse.StateDirIndex, fuse.StateFileIndex} {
			id := d.NodeID(index)
			require.False(t, seen[id], "node id %#x was used before", id)
			seen[id] = true
			require.Equal(t, gofuse.OK, getattr(id))
		}
		require.Equal(t, stale, getattr(d.NodeID(2)), "beyond the layer's inodes")
		d.Remove()
		require.Equal(t, stale, getattr(d.NodeID(1)))
	}

	s.SkipLayers(fuse.LastLayer - 1)
	d, err := s.Add(c)
	require.NoError(t, err)
	require.NotEqual(t, uint64(math.MaxUint64), d.NodeID(math.MaxUint32), "^0 is go-fuse's own")
	_, err = s.Add(c)
	require.ErrorContains(t, err, "used up", "numbers do not start over")
}

func TestInoSpace(t *testing.T) {
	var s fuse.InoSpace
	owner := map[uint64]uint64{} // start -> size
	take := func(n uint64) (uint64, bool) {
		start, ok := s.Take(n)
		if ok {
			require.Less(t, start+n-1, uint64(1)<<32-1)
			for o, m := range owner {
				require.True(t, start+n <= o || o+m <= start, "[%d,+%d) overlaps [%d,+%d)", start, n, o, m)
			}
			owner[start] = n
		}
		return start, ok
	}
	give := func(start uint64) { s.Give(start); delete(owner, start) }
	const quarter = 1 << 30
	var starts []uint64
	for range 3 {
		start, ok := take(quarter)
		require.True(t, ok)
		require.Greater(t, start, uint64(1), "1 is the mount's root")
		starts = append(starts, start)
	}
	_, ok := take(quarter + quarter/2)
	require.False(t, ok)
	give(starts[1])
	give(starts[1]) // nothing
	again, ok := take(quarter - 100)
	require.True(t, ok)
	require.NotEqual(t, starts[1], again, "a free range is used again late")
	again, ok = take(quarter)
	require.True(t, ok)
	require.Equal(t, starts[1], again, "but it is")
	for i := range uint64(50) {
		small, ok := take(i%7 + 1)
		if ok && i%3 == 0 {
			give(small)
		}
	}
}

func TestPendingKill(t *testing.T) {
	status := func(mask string) []byte {
		return []byte("Name:\tSigPnd:\nState:\tS\nSigQ:\t0/9\nSigPnd:\t" + mask + "\nShdPnd:\t0000000000000100\n")
	}
	require.True(t, fuse.PendingKill(status("0000000000000100")))
	require.True(t, fuse.PendingKill(status("0000000000400100")))
	require.False(t, fuse.PendingKill(status("0000000000400000")), "SIGURG")
	require.False(t, fuse.PendingKill(status("")))
	require.False(t, fuse.PendingKill(nil))
}

// The answers for stale content and for a damaged TOC.
func TestErrors(t *testing.T) {
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f"), ft.Symlink("l", "f")))
	d, err := s.Add(c)
	require.NoError(t, err)
	h := header(d.NodeID(estargz.Root))
	var f, l gofuse.EntryOut
	require.Equal(t, gofuse.OK, fs.Lookup(nil, &h, "f", &f))
	require.Equal(t, gofuse.OK, fs.Lookup(nil, &h, "l", &l))
	buf := make([]byte, 100)
	read := func(id uint64) gofuse.Status {
		_, st := fs.Read(nil, &gofuse.ReadIn{InHeader: header(id)}, buf)
		return st
	}
	readdir := func(id uint64) gofuse.Status {
		return fs.ReadDir(nil, &gofuse.ReadIn{InHeader: header(id)}, gofuse.NewDirEntryList(buf, 0))
	}
	require.Equal(t, gofuse.OK, read(f.NodeId))
	require.Equal(t, gofuse.Status(unix.EISDIR), read(d.NodeID(0)))
	require.Equal(t, gofuse.EINVAL, read(l.NodeId))
	require.Equal(t, gofuse.ENOTDIR, readdir(f.NodeId))
	hf := header(f.NodeId)
	_, st := fs.Readlink(nil, &hf)
	require.Equal(t, gofuse.EINVAL, st)

	for name, tc := range map[string]struct {
		err  error
		want gofuse.Status
	}{
		"network":   {&testError{unix.ECONNRESET}, gofuse.EIO},
		"cancelled": {context.Canceled, gofuse.EIO},
		"deadline":  {context.DeadlineExceeded, gofuse.EIO},
		"corrupt":   {fmt.Errorf("chunk 1: %w", estargz.ErrCorrupt), gofuse.EIO},
	} {
		c.Before = func(context.Context, uint32, int64, int) error { return tc.err }
		require.Equal(t, tc.want, read(f.NodeId), name)
	}
	// Short reads inside a file would be zeros to the reader.
	require.NoError(t, c.Close())
	require.Equal(t, gofuse.Status(unix.ESTALE), read(f.NodeId))
	var attr gofuse.AttrOut
	require.Equal(t, gofuse.Status(unix.ESTALE), fs.GetAttr(nil, &gofuse.GetAttrIn{InHeader: hf}, &attr))
}

type testError struct{ errno unix.Errno }

func (e *testError) Error() string { return "dial: " + e.errno.Error() }
func (e *testError) Unwrap() error { return e.errno }

// instantContent has any bytes at once.
type instantContent struct{ *ft.Content }

func (instantContent) ReadAt(_ context.Context, _ uint32, dst []byte, _ int64) (int, error) {
	return len(dst), nil
}

// shortContent gives less than a file's size.
type shortContent struct{ *ft.Content }

func (shortContent) ReadAt(context.Context, uint32, []byte, int64) (int, error) { return 1, nil }

func TestShortReadIsAnError(t *testing.T) {
	s, fs, _ := fuse.Unmounted()
	defer s.End()
	d, err := s.Add(shortContent{ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "four")))})
	require.NoError(t, err)
	_, st := fs.Read(nil, &gofuse.ReadIn{InHeader: header(d.NodeID(1))}, make([]byte, 100))
	require.Equal(t, gofuse.EIO, st)
}

// A TOC file that is itself mapped, as where there can't be a copy without a name, and
// that is cut is an error of the requests that need what is gone, not the end of the process.
func TestTruncatedTOC(t *testing.T) {
	s := newServer(t, fuse.Options{})
	var entries []estargztest.Entry
	for i := range 2000 {
		entries = append(entries, estargztest.File(fmt.Sprintf("f%04d", i), nil))
	}
	layer := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz}, entries...)
	path := filepath.Join(t.TempDir(), "toc")
	require.NoError(t, layer.Compile(t.Context(), path, estargz.Limits{}))
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	toc, err := estargz.Open(fmt.Sprintf("/proc/self/fd/%d", file.Fd())) // no file can be made there
	require.NoError(t, err)
	c := ft.NewContent(toc, layer.Blob)
	defer func() { require.NoError(t, c.Close()) }()
	d := add(t, s, c)
	require.NoError(t, os.Truncate(path, 4096))
	_, err = os.Stat(d.Path() + "/f1999")
	require.ErrorIs(t, err, unix.EIO)
	_, err = os.ReadDir(d.Path())
	require.ErrorIs(t, err, unix.EIO)
	require.Zero(t, c.Holders())
}

// FuzzRequests sends any request about any node: nothing panics, nothing is said
// of nodes that are not there, and every hold ends.
func FuzzRequests(f *testing.F) {
	s, plain, xattr := fuse.Unmounted()
	content := ft.Layer(f, ft.Tar(f, torture(true)...))
	var dirs []*fuse.Dir
	for range 3 {
		d, err := s.Add(content)
		require.NoError(f, err)
		dirs = append(dirs, d)
	}
	dirs[1].Remove()
	n := content.TOC().Len()
	data, shown := fuse.UnmountedData(s)
	for range 2 {
		d, err := shown(content, image(f, content, "trusted.overlay.opaque"))
		require.NoError(f, err)
		dirs = append(dirs, d)
	}
	dirs[4].Remove()
	for op := range uint8(12) {
		f.Add(op, dirs[0].NodeID(uint32(op)), uint64(0), uint32(4096), "bin")
		f.Add(op, dirs[1].NodeID(1), uint64(2), uint32(0), ".stargz-snapshotter")
		f.Add(op, dirs[2].NodeID(n-1), uint64(1)<<63, uint32(1), "user.a")
		f.Add(op, dirs[2].NodeID(n), uint64(math.MaxUint64), uint32(1), "")
		f.Add(op, dirs[0].NodeID(fuse.StateDirIndex), uint64(3), uint32(200), content.Status().Digest.String()+".json")
		f.Add(op, dirs[0].NodeID(fuse.StateFileIndex), uint64(1000), uint32(200), "\xff/\x00..")
		f.Add(op|0x40, dirs[3].NodeID(0), uint64(op)<<12, uint32(op)<<13, "1")
		f.Add(op|0x40, dirs[3].NodeID(1), uint64(0), uint32(4096), "bin")
		f.Add(op|0x40, dirs[4].NodeID(0), uint64(0), uint32(4096), "")
		f.Add(op, uint64(1), uint64(0), uint32(64), "1")
		f.Add(op, uint64(0), uint64(0), uint32(64), "1")
		f.Add(op, uint64(math.MaxUint64), uint64(0), uint32(64), "1")
	}
	f.Fuzz(func(t *testing.T, op uint8, node, off uint64, size uint32, name string) {
		fs := xattr
		switch {
		case op&0x80 != 0:
			fs = plain
		case op&0x40 != 0:
			fs = data
		}
		size %= 1 << 17
		st := ask(fs, op&0x3f, node, off, make([]byte, size), name)
		layer, index := uint32(node>>32), uint32(node)
		known := node == 1 || fs == data && layer == 1 && index == 0 || fs == xattr && (layer == 1 || layer == 3) && (index < n || index >= fuse.StateFileIndex && index <= fuse.StateDirIndex)
		if !known && st == gofuse.OK {
			t.Fatalf("op %d on node %#x, which is not there, was answered", op, node)
		}
		if content.Holders() != 0 {
			t.Fatalf("op %d on node %#x left a hold", op, node)
		}
	})
}

// ask makes request op.
func ask(fs gofuse.RawFileSystem, op uint8, node, off uint64, buf []byte, name string) gofuse.Status {
	h := header(node)
	in := &gofuse.ReadIn{InHeader: h, Offset: off, Size: uint32(len(buf))}
	list := gofuse.NewDirEntryList(buf, off)
	switch op % 10 {
	case 0:
		return fs.Lookup(nil, &h, name, new(gofuse.EntryOut))
	case 1:
		return fs.GetAttr(nil, &gofuse.GetAttrIn{InHeader: h}, new(gofuse.AttrOut))
	case 2:
		r, st := fs.Read(nil, in, buf)
		if st == gofuse.OK {
			if b, _ := r.Bytes(nil); len(b) > len(buf) {
				panic("more than asked for")
			}
			r.Done()
		}
		return st
	case 3:
		return fs.ReadDir(nil, in, list)
	case 4:
		return fs.ReadDirPlus(nil, in, list)
	case 5:
		_, st := fs.Readlink(nil, &h)
		return st
	case 6:
		n, st := fs.GetXAttr(nil, &h, name, buf)
		if st == gofuse.OK && len(buf) > 0 && int(n) > len(buf) {
			panic("more than there is room for")
		}
		return st
	case 7:
		n, st := fs.ListXAttr(nil, &h, buf)
		if st == gofuse.OK && len(buf) > 0 && int(n) > len(buf) {
			panic("more than there is room for")
		}
		if st == gofuse.OK && len(buf) > 0 && n > 0 && !bytes.HasSuffix(buf[:n], []byte{0}) {
			panic("list does not end with a zero")
		}
		return st
	case 8:
		fs.Forget(node, off)
		return gofuse.EINVAL
	default:
		return fs.Open(nil, &gofuse.OpenIn{InHeader: h}, new(gofuse.OpenOut))
	}
}

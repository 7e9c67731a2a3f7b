package fuse_test

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"unsafe"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
}

// wide is a layer of 20 directories with 100 files and 2 symlinks each. It is put
// together by hand, all files in one gzip member, as eStargz writers are slow.
func wide(t testing.TB, more string) *ft.Content {
	var toc, payload bytes.Buffer
	gz := gzip.NewWriter(&payload)
	toc.WriteString(`{"version":1,"entries":[` + more)
	for i := range 20 {
		dir := fmt.Sprintf("dir%02d", i)
		fmt.Fprintf(&toc, `{"name":"%[1]s/","type":"dir","mode":493},{"name":"%[1]s/s","type":"symlink","linkName":"f001"},`+
			`{"name":"%[1]s/t","type":"symlink","linkName":"nowhere"},`, dir)
		for j := range 100 {
			body := fmt.Sprintf("%02d%04d\n", i, j)
			gz.Write([]byte(body))
			sum := digest.FromString(body)
			fmt.Fprintf(&toc, `{"name":"%s/f%03d","type":"reg","mode":420,"size":7,"innerOffset":%d,"digest":%q,"chunkDigest":%q},`,
				dir, j, (i*100+j)*7, sum, sum)
		}
	}
	require.NoError(t, gz.Close())
	toc.WriteString(`{"name":"last","type":"dir","mode":493}]}`)
	return ft.Raw(t, payload.Bytes(), toc.String())
}

// The kernel's caches do the work: whatever was seen once is seen again without
// a message.
func TestWarmPassesSendNothing(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, wide(t, ""))
	for where, dir := range map[string]string{"directly": d.Path(), "through overlay": ft.Overlay(t, d.Path())} {
		t.Run(where, func(t *testing.T) {
			pass := func() {
				run(t, "find", dir)
				run(t, "ls", "-lR", dir)
				run(t, "sh", "-c", `cd "$1" && cat dir*/f* >/dev/null && tar cf - . >/dev/null`, "-", dir)
				for i := range 20 {
					_, err := os.Stat(fmt.Sprintf("%s/dir%02d/missing", dir, i))
					require.ErrorIs(t, err, unix.ENOENT)
				}
			}
			t.Logf("cold: %v", messages(s, pass))
			// One silent pass shows it; others may be disturbed by somebody who
			// drops the machine's page cache.
			var warm map[string]uint64
			for range 8 {
				warm = messages(s, pass)
				delete(warm, "STATFS") // which no kernel caches; overlay asks its upper directory
				if len(warm) == 0 {
					break
				}
			}
			require.Empty(t, warm)
		})
	}
}

func TestZeroMessageOpens(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, wide(t, ""))
	sent := messages(s, func() { run(t, "sh", "-c", `cd "$1" && cat dir*/f* >/dev/null && ls -R >/dev/null`, "-", d.Path()) })
	require.LessOrEqual(t, sent["OPEN"], uint64(2), "one per mount, or two that raced")
	require.LessOrEqual(t, sent["OPENDIR"], uint64(2))
	require.LessOrEqual(t, sent["OTHER"], uint64(4), "FLUSH, RELEASE and STATX are not sent either")
	require.InDelta(t, 2000, sent["READ"], 100)
	require.LessOrEqual(t, sent["GETATTR"], uint64(2), "no refresh after reads")
}

// readNames reads a directory with getdents, from an offset on; off is that of
// the last entry.
func readNames(t testing.TB, fd int, from int64, limit int) (names []string, offs []int64) {
	t.Helper()
	_, err := unix.Seek(fd, from, 0)
	require.NoError(t, err)
	buf := make([]byte, 32<<10)
	for len(names) < limit {
		n, err := unix.Getdents(fd, buf)
		require.NoError(t, err)
		if n == 0 {
			break
		}
		for b := buf[:n]; len(b) > 0; {
			de := (*unix.Dirent)(unsafe.Pointer(&b[0]))
			name := b[19:de.Reclen]
			names = append(names, string(name[:bytes.IndexByte(name, 0)]))
			offs = append(offs, de.Off)
			b = b[de.Reclen:]
		}
	}
	return names, offs
}

func TestLargeDirectory(t *testing.T) {
	const count = 100_000
	s := newServer(t, fuse.Options{})
	d := add(t, s, manyFiles(t, count))
	for where, dir := range map[string]string{"directly": d.Path(), "through overlay": ft.Overlay(t, d.Path())} {
		t.Run(where, func(t *testing.T) {
			// Several readers at once, each with its own place in it.
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() {
					entries, err := os.ReadDir(filepath.Join(dir, "d"))
					if err != nil || len(entries) != count {
						t.Errorf("%d entries, %v", len(entries), err)
					}
				})
			}
			wg.Wait()

			fd, err := unix.Open(filepath.Join(dir, "d"), unix.O_RDONLY|unix.O_DIRECTORY, 0)
			require.NoError(t, err)
			defer unix.Close(fd)
			names, offs := readNames(t, fd, 0, count+2)
			require.Len(t, names, count+2)
			require.Equal(t, []string{".", ".."}, names[:2])
			require.True(t, slices.IsSorted(names))
			for _, i := range []int{0, 1, 2, 3, 4095, count / 2, count} {
				rest, _ := readNames(t, fd, offs[i], 1)
				require.Equal(t, names[i+1], rest[0], "seekdir to entry %d", i)
			}
			again, _ := readNames(t, fd, 0, 10) // rewinddir
			require.Equal(t, names[:10], again[:10])
			end, _ := readNames(t, fd, offs[count+1], 1)
			require.Empty(t, end)
		})
	}
}

// manyFiles is a layer with a directory d of n empty files.
func manyFiles(t testing.TB, n int) *ft.Content {
	var toc bytes.Buffer
	toc.WriteString(`{"version":1,"entries":[{"name":"d/","type":"dir","mode":493}`)
	for i := range n {
		fmt.Fprintf(&toc, `,{"name":"d/%06d","type":"reg","mode":420}`, i)
	}
	toc.WriteString(`]}`)
	return ft.Raw(t, nil, toc.String())
}

func TestMountRoot(t *testing.T) {
	s := newServer(t, fuse.Options{})
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f")))
	d := add(t, s, c)
	root := filepath.Dir(d.Path())
	entries, err := os.ReadDir(root)
	require.NoError(t, err)
	require.Empty(t, entries)

	// The next layer's name is asked for before there is one: the miss must not
	// be remembered.
	next := filepath.Join(root, "2")
	_, err = os.Stat(next)
	require.ErrorIs(t, err, unix.ENOENT)
	require.Equal(t, next, add(t, s, c).Path())
	_, err = os.Stat(next)
	require.NoError(t, err)

	for _, name := range []string{"0", "01", "-1", "+1", "A", "zzzzzzz", "zzzzzzzz", " 1"} {
		_, err := os.Stat(filepath.Join(root, name))
		require.ErrorIs(t, err, unix.ENOENT, name)
	}
}

func TestStatfsAndNodeKinds(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, pattern(5000)), ft.File("null", 0o644, ""), ft.Device("dev", 'c', 1, 3))))
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(d.Path(), &st))
	require.EqualValues(t, 255, st.Namelen)
	require.EqualValues(t, 4096, st.Bsize)
	f := stat(t, d.Path()+"/f")
	require.EqualValues(t, 16, f.Blocks, "whole blocks of 4 KiB")
	require.EqualValues(t, 4096, f.Blksize)

	// Devices work, and suid is not taken away: these are lower directories.
	b := make([]byte, 1)
	dev, err := os.OpenFile(d.Path()+"/dev", os.O_RDWR, 0)
	require.NoError(t, err)
	defer dev.Close()
	n, _ := dev.Read(b)
	require.Zero(t, n)
	var vfs unix.Statfs_t
	require.NoError(t, unix.Statfs(d.Path(), &vfs))
	require.Zero(t, vfs.Flags&(unix.ST_NOSUID|unix.ST_NODEV))
	require.NotZero(t, vfs.Flags&unix.ST_RDONLY)
}

// Pages of a removed layer must not show up as those of the next one.
func TestRemove(t *testing.T) {
	s := newServer(t, fuse.Options{})
	old := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "old"), ft.File("unread", 0o644, "u")))
	d := add(t, s, old)
	b, err := os.ReadFile(d.Path() + "/f")
	require.NoError(t, err)
	require.Equal(t, "old", string(b))
	dir, err := os.Open(d.Path())
	require.NoError(t, err)
	defer dir.Close()

	d.Remove()
	d.Remove()
	_, err = os.Stat(d.Path())
	require.ErrorIs(t, err, unix.ESTALE)
	_, err = unix.Openat(int(dir.Fd()), "unread", unix.O_RDONLY, 0)
	require.ErrorIs(t, err, unix.ESTALE)
	require.Zero(t, old.Holders())
	require.NoError(t, old.Close(), "nothing holds the content any more")

	next := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "new"))))
	require.NotEqual(t, d.Path(), next.Path())
	require.NotEqual(t, d.NodeID(1), next.NodeID(1))
	b, err = os.ReadFile(next.Path() + "/f")
	require.NoError(t, err)
	require.Equal(t, "new", string(b))
}

func TestRemoveDropsKernelCaches(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, wide(t, ""))
	run(t, "ls", "-lR", d.Path())
	before := s.Requests()["FORGET"]
	d.Remove()
	eventually(t, "the kernel forgets the inodes", func() bool { return s.Requests()["FORGET"] > before+2000 })
}

// A step that had the connection would keep it alive after the daemon's death,
// and with it every reader that waits.
func TestChildrenDoNotInheritTheConnection(t *testing.T) {
	newServer(t, fuse.Options{})
	out, err := exec.Command("sh", "-c", "ls -l /proc/$$/fd").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.NotContains(t, string(out), "/dev/fuse")
}

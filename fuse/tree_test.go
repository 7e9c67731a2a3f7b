package fuse_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

func TestSameTree(t *testing.T) {
	s := newServer(t, fuse.Options{})
	var ours, theirs bytes.Buffer
	require.NoError(t, estargztest.WriteTar(&ours, estargztest.Torture()...))
	require.NoError(t, estargztest.WriteTar(&theirs, estargztest.Quirks()...))
	layers := map[string][]byte{
		"plain": ft.Tar(t, torture(false)...), "xattrs": ft.Tar(t, torture(true)...),
		"torture": ours.Bytes(), "quirks": theirs.Bytes(),
	}
	formats := map[string]estargztest.Options{
		"eStargz":              {Format: estargz.FormatEStargz, ChunkSize: 64 << 10},
		"shared-members":       {Format: estargz.FormatEStargz, MinChunkSize: 1 << 20},
		"stargz":               {Format: estargz.FormatStargz},
		"zstd-chunked":         {Format: estargz.FormatZstdChunked},
		"zstd-chunked-storage": {Format: estargz.FormatZstdChunked, Storage: true},
	}
	for name, layer := range layers {
		for format, opts := range formats {
			if format != "eStargz" && name != "torture" {
				continue // what formats differ in is in there
			}
			if raceDetector && format != "eStargz" && format != "zstd-chunked-storage" {
				continue // the same code of ours, and writers that are slow under it
			}
			t.Run(name+" as "+format, func(t *testing.T) {
				d := add(t, s, ft.FromTar(t, layer, opts))
				require.Equal(t, name == "plain", d.Plain())
				ft.CompareTree(t, d.Path(), bytes.NewReader(layer), ft.CompareOptions{})
				ft.CompareTree(t, ft.Overlay(t, d.Path()), bytes.NewReader(layer), ft.CompareOptions{Merged: true})
			})
		}
	}
}

func TestUserXattrOpaque(t *testing.T) {
	s := newServer(t, fuse.Options{UserXattr: true})
	layer := ft.Tar(t, torture(true)...)
	d := add(t, s, ft.Layer(t, layer))
	ft.CompareTree(t, d.Path(), bytes.NewReader(layer), ft.CompareOptions{UserXattr: true})
	below := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("hides/old", 0o644, ""))))
	merged := ft.OverlayOptions(t, "userxattr", d.Path(), below.Path())
	require.Equal(t, []string{"new"}, find(t, filepath.Join(merged, "hides")))
}

// An overlay over two mounts at once: whiteouts and opaque directories of an
// upper layer hide what a lower one has, whichever mount serves them.
func TestOverlayHides(t *testing.T) {
	s := newServer(t, fuse.Options{})
	base := add(t, s, ft.Layer(t, ft.Tar(t,
		ft.File("keep", 0o644, "k"), ft.File("gone", 0o644, "g"),
		ft.File("dir/old", 0o644, "o"), ft.File("dir/sub/old", 0o644, "o"),
		ft.File("other/below", 0o644, "b"), ft.File("replaced/f", 0o644, ""),
	)))
	whiteouts := add(t, s, ft.Layer(t, ft.Tar(t,
		ft.Whiteout("gone"), ft.File("other/above", 0o644, "a"), ft.File("replaced", 0o644, "now a file"),
	)))
	opaque := add(t, s, ft.Layer(t, ft.Tar(t, ft.Dir("dir", 0o700), ft.Opaque("dir"), ft.File("dir/new", 0o644, "n"))))
	require.True(t, base.Plain())
	require.True(t, whiteouts.Plain())
	require.False(t, opaque.Plain())

	merged := ft.Overlay(t, opaque.Path(), whiteouts.Path(), base.Path())
	require.Equal(t, []string{"dir", "dir/new", "keep", "other", "other/above", "other/below", "replaced"}, find(t, merged))
	require.EqualValues(t, 0o700, stat(t, merged+"/dir").Mode&0o777)
	_, err := os.Stat(merged + "/gone")
	require.ErrorIs(t, err, unix.ENOENT)
}

// All layers of a mount are one file system to overlayfs and to tar and du: two
// files that share (dev, ino) would be one file to them.
func TestNoSharedInodeNumbers(t *testing.T) {
	s := newServer(t, fuse.Options{})
	c := ft.Layer(t, ft.Tar(t, torture(false)...))
	dirs := []*fuse.Dir{add(t, s, c), add(t, s, c), add(t, s, ft.Layer(t, ft.Tar(t, torture(true)...)))}
	seen := map[[2]uint64]string{}
	for _, d := range dirs {
		own := map[[2]uint64]bool{}
		for _, p := range append(find(t, d.Path()), ".", ".stargz-snapshotter", ".stargz-snapshotter/"+c.Status().Digest.String()+".json") {
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(d.Path(), p), &st); err != nil {
				require.ErrorIs(t, err, unix.ENOENT) // the state file of another digest
				continue
			}
			require.Less(t, st.Ino, uint64(1)<<32)
			id := [2]uint64{st.Dev, st.Ino}
			if other, ok := seen[id]; ok && !own[id] {
				t.Errorf("%s/%s has the inode number of %s", d.Path(), p, other)
			}
			if own[id] && st.Nlink < 2 {
				t.Errorf("%s/%s shares its inode number, but has one link", d.Path(), p)
			}
			own[id], seen[id] = true, filepath.Join(d.Path(), p)
		}
	}

	// And through overlay, where two layers are merged into one tree.
	two := []*fuse.Dir{
		add(t, s, ft.Layer(t, ft.Tar(t, ft.File("a/1", 0o644, "1"), ft.File("a/2", 0o644, "2")))),
		add(t, s, ft.Layer(t, ft.Tar(t, ft.File("a/3", 0o644, "3"), ft.File("a/4", 0o644, "4")))),
	}
	merged := ft.Overlay(t, two[0].Path(), two[1].Path())
	inos := map[[2]uint64]bool{}
	for _, name := range []string{"1", "2", "3", "4"} {
		st := stat(t, merged+"/a/"+name)
		inos[[2]uint64{st.Dev, st.Ino}] = true
	}
	require.Len(t, inos, 4)
}

// overlayfs refuses a lower directory that occurs twice (ELOOP), and images have
// such chains: each occurrence is an alias with its own node ids.
func TestAliasInOneChain(t *testing.T) {
	s := newServer(t, fuse.Options{})
	same := ft.Layer(t, ft.Tar(t, ft.Whiteout("a"), ft.File("b", 0o644, "b")))
	other := ft.Layer(t, ft.Tar(t, ft.File("a", 0o644, "a")))
	empty := ft.Layer(t, ft.Tar(t, ft.Dir("./", 0o755)))
	var lower []string
	for _, c := range []*ft.Content{empty, same, empty, other, same, empty} {
		lower = append(lower, add(t, s, c).Path())
	}
	require.Equal(t, []string{"b"}, find(t, ft.Overlay(t, lower...)))

	d := add(t, s, same)
	base := t.TempDir()
	err := unix.Mount("overlay", base, "overlay", unix.MS_RDONLY, "lowerdir="+d.Path()+":"+d.Path())
	require.ErrorIs(t, err, unix.ELOOP, "if this passes, aliases are not needed any more")
}

func TestNestedOverlay(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("dir/f", 0o644, "base"))))
	outer := ft.Overlay(t, d.Path())
	// What docker, buildah and podman do inside a RUN: the kernel allows two
	// levels, so ours must not count as one.
	inner := ft.Overlay(t, filepath.Join(outer, "dir"))
	b, err := os.ReadFile(filepath.Join(inner, "f"))
	require.NoError(t, err)
	require.Equal(t, "base", string(b))
	require.NoError(t, os.WriteFile(filepath.Join(inner, "f"), []byte("copied up"), 0o644))
}

func TestCopyUp(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("dir/f", 0o640, pattern(100_000)).Owned(7, 8), ft.Link("dir/g", "dir/f"))))
	merged := ft.Overlay(t, d.Path())
	f, err := os.OpenFile(merged+"/dir/f", os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = f.WriteString("more")
	require.NoError(t, err)
	require.NoError(t, f.Close())
	b, err := os.ReadFile(merged + "/dir/f")
	require.NoError(t, err)
	require.Equal(t, pattern(100_000)+"more", string(b))
	st := stat(t, merged+"/dir/f")
	require.EqualValues(t, []uint32{7, 8}, []uint32{st.Uid, st.Gid})
	require.NoError(t, os.Rename(merged+"/dir/g", merged+"/moved"))
	require.NoError(t, os.RemoveAll(merged+"/dir"))
	require.Equal(t, []string{"moved"}, find(t, merged))
}

func TestReadOnly(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f"))))
	require.ErrorIs(t, os.WriteFile(d.Path()+"/f", nil, 0o644), unix.EROFS)
	require.ErrorIs(t, os.Mkdir(d.Path()+"/d", 0o755), unix.EROFS)
	require.ErrorIs(t, os.Remove(d.Path()+"/f"), unix.EROFS)
	require.ErrorIs(t, os.Chmod(d.Path()+"/f", 0o600), unix.EROFS)
	require.ErrorIs(t, unix.Setxattr(d.Path()+"/f", "user.x", nil, 0), unix.EROFS)
}

package fuse_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse"
	"github.com/lazykit/lazykit/fuse/erofs"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// diskDir is a directory for images, which must not be on a stacked file system or in
// memory, as that for temporary files may be.
func diskDir(t testing.TB) string {
	t.Helper()
	for _, parent := range []string{os.TempDir(), os.Getenv("LAZYKIT_CACHE"), "."} {
		var st unix.Statfs_t
		if parent == "" || unix.Statfs(parent, &st) != nil || st.Type == unix.OVERLAYFS_SUPER_MAGIC || st.Type == unix.TMPFS_MAGIC {
			continue
		}
		dir, err := os.MkdirTemp(parent, ".images-")
		require.NoError(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		return dir
	}
	return t.TempDir()
}

// image makes the image of a content's TOC.
func image(t testing.TB, c *ft.Content, opaque string) *erofs.Image {
	t.Helper()
	img, err := erofs.Build(context.Background(), c.TOC(), erofs.Options{Dir: diskDir(t), Opaque: opaque})
	require.NoError(t, err)
	t.Cleanup(img.Release)
	return img
}

// addImage shows a content as an image.
func addImage(t testing.TB, s *fuse.Server, c *ft.Content) *fuse.Dir {
	t.Helper()
	d, err := s.AddImage(c, image(t, c, "trusted.overlay.opaque"))
	if errors.Is(err, fuse.ErrNoImages) && os.Getenv("LAZYKIT_PRIVILEGED") != "1" {
		t.Skip(err)
	}
	require.NoError(t, err)
	t.Cleanup(d.Remove)
	return d
}

func TestImageIsTheSameTree(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	var ours, theirs bytes.Buffer
	require.NoError(t, estargztest.WriteTar(&ours, estargztest.Torture()...))
	require.NoError(t, estargztest.WriteTar(&theirs, estargztest.Quirks()...))
	layers := map[string][]byte{
		"plain": ft.Tar(t, torture(false)...), "xattrs": ft.Tar(t, torture(true)...),
		"torture": ours.Bytes(), "quirks": theirs.Bytes(), "nothing": ft.Tar(t),
	}
	formats := map[string]estargztest.Options{
		"eStargz":              {Format: estargz.FormatEStargz, ChunkSize: 64 << 10},
		"shared-members":       {Format: estargz.FormatEStargz, MinChunkSize: 1 << 20},
		"zstd-chunked-storage": {Format: estargz.FormatZstdChunked, Storage: true},
	}
	for name, layer := range layers {
		for format, opts := range formats {
			if format != "eStargz" && (name != "torture" || raceDetector) {
				continue // what formats differ in is in there
			}
			t.Run(name+" as "+format, func(t *testing.T) {
				d := addImage(t, s, ft.FromTar(t, layer, opts))
				ft.CompareTree(t, d.Path(), bytes.NewReader(layer), ft.CompareOptions{})
				ft.CompareTree(t, ft.Overlay(t, d.Path()), bytes.NewReader(layer), ft.CompareOptions{Merged: true})
			})
		}
	}
}

// The tools of those who made the format agree.
func TestImageIsSound(t *testing.T) {
	fsck, err := exec.LookPath("fsck.erofs")
	if err != nil && os.Getenv("LAZYKIT_PRIVILEGED") != "1" {
		t.Skip("erofs-utils is not installed")
	}
	require.NoError(t, err, "hack/test installs it")
	c := ft.Layer(t, ft.Tar(t, torture(true)...))
	img := image(t, c, "trusted.overlay.opaque")
	data := filepath.Join(t.TempDir(), "data")
	require.NoError(t, os.WriteFile(data, nil, 0o600))
	require.NoError(t, os.Truncate(data, img.DataSize()))
	meta, err := os.ReadFile(img.Path())
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "meta")
	require.NoError(t, os.WriteFile(path, meta[:img.MetadataSize()], 0o600))
	out, err := exec.Command(fsck, "--device="+data, path).CombinedOutput()
	require.NoError(t, err, string(out))
}

func TestImageLargeDirectory(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	var entries []ft.Entry
	want := []string{}
	for i := range 3000 {
		name := strings.Repeat("n", 1+i%200) + "-" + string(rune('a'+i%26)) + strings.Repeat("x", i/26%30) + "." + time.Duration(i).String()
		entries = append(entries, ft.File("!d/"+name, 0o644, "x"))
		want = append(want, name)
	}
	// Names that lie before and between "." and "..".
	for _, name := range []string{"!", "-", "...", ".-", ".a", "a"} {
		entries = append(entries, ft.File("!d/"+name, 0o644, name))
		want = append(want, name)
	}
	d := addImage(t, s, ft.Layer(t, ft.Tar(t, entries...)))
	require.ElementsMatch(t, want, find(t, filepath.Join(d.Path(), "!d")))
	for _, name := range want {
		require.EqualValues(t, unix.S_IFREG|0o644, stat(t, filepath.Join(d.Path(), "!d", name)).Mode)
	}
	require.ErrorIs(t, unix.Access(filepath.Join(d.Path(), "!d", "nn"), 0), unix.ENOENT)
	body, err := os.ReadFile(filepath.Join(d.Path(), "!d", ".-"))
	require.NoError(t, err)
	require.Equal(t, ".-", string(body))
}

// A walk sends no message, and a read none for what nobody has read.
func TestImageAsksForWhatIsRead(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	var seen sync.Map
	c := ft.Layer(t, ft.Tar(t, ft.File("a/1", 0o644, pattern(5000)), ft.File("a/2", 0o644, pattern(100)),
		ft.File("a/3", 0o644, pattern(200_000)), ft.File("a/4", 0o644, pattern(10)), ft.Symlink("s", "a/1")))
	w := &wholeFiles{Content: c}
	c.Before = func(_ context.Context, inode uint32, _ int64, _ int) error {
		seen.Store(inode, true)
		return nil
	}
	d, err := s.AddImage(w, image(t, c, "trusted.overlay.opaque"))
	require.NoError(t, err)
	defer d.Remove()
	merged := ft.Overlay(t, d.Path())
	require.Empty(t, messages(s, func() { run(t, "sh", "-c", "ls -lR "+merged+" >/dev/null") }))
	for _, f := range []struct {
		name          string
		size          int
		reads, stores uint64
	}{{"a/2", 100, 1, 0}, {"a/1", 5000, 1, 1}, {"a/3", 200_000, 2, 8}} {
		seen.Clear()
		sent := messages(s, func() {
			body, err := os.ReadFile(filepath.Join(merged, f.name))
			require.NoError(t, err)
			require.Equal(t, pattern(f.size), string(body))
		})
		files := 0
		seen.Range(func(any, any) bool { files++; return true })
		require.Equal(t, 1, files, f.name)
		require.LessOrEqual(t, sent["READ"], f.reads, f.name)
		require.LessOrEqual(t, sent["STORE"], f.stores, f.name)
		delete(sent, "READ")
		delete(sent, "STORE")
		require.Empty(t, sent)
	}
	require.Empty(t, messages(s, func() { run(t, "tar", "-C", merged, "-cf", "/dev/null", "a/1", "a/2", "a/3", "s") }), "warm")
}

func TestImageCopies(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "same")))
	one, two := addImage(t, s, c), addImage(t, s, c)
	merged := ft.Overlay(t, one.Path(), two.Path(), addImage(t, s, ft.Layer(t, ft.Tar(t, ft.File("g", 0o644, "other")))).Path())
	require.Equal(t, []string{"f", "g"}, find(t, merged))
	// A build may mount an overlay on its own root.
	nested := ft.Overlay(t, merged)
	require.Equal(t, []string{"f", "g"}, find(t, nested))
}

func TestImageRemove(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "x"), ft.File("g", 0o644, "x")))
	waits := make(chan struct{})
	c.Before = func(ctx context.Context, _ uint32, _ int64, _ int) error {
		close(waits)
		<-ctx.Done()
		return ctx.Err()
	}
	d := addImage(t, s, c)
	dir := d.Path()
	fd, err := unix.Open(filepath.Join(dir, "g"), unix.O_RDONLY, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	ended := make(chan error)
	go func() {
		_, err := os.ReadFile(filepath.Join(dir, "f"))
		ended <- err
	}()
	<-waits
	d.Remove()
	require.Error(t, <-ended, "a blocked reader")
	_, err = os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	_, err = unix.Read(fd, make([]byte, 10))
	require.Error(t, err, "an open file")
	eventually(t, "no request holds the content", func() bool { return c.Holders() == 0 })
}

func TestImagesOfAnEarlierServer(t *testing.T) {
	root := filepath.Join(t.TempDir(), "fuse")
	s := newServer(t, fuse.Options{Root: root, Images: true})
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "x")))
	d, err := s.AddImage(c, image(t, c, "trusted.overlay.opaque"))
	require.NoError(t, err)
	merged := ft.Overlay(t, d.Path())
	require.NotEmpty(t, mountsBelow(t, root))
	// It was killed while it tried what the kernel does.
	try := filepath.Join(root, "e", "try123")
	require.NoError(t, os.MkdirAll(filepath.Join(try, "empty1"), 0o700))
	require.NoError(t, os.Mkdir(filepath.Join(try, "1"), 0o700))
	require.NoError(t, unix.Mount("overlay", filepath.Join(try, "1"), "overlay", unix.MS_RDONLY, "lowerdir="+filepath.Join(try, "empty1")+":"+d.Path()))
	// As after the end of the process that had it: the connection goes, mounts stay.
	s.Abort()
	_, err = os.ReadFile(filepath.Join(merged, "f"))
	require.Error(t, err)
	for _, images := range []bool{true, false} {
		next, err := fuse.NewServer(t.Context(), fuse.Options{Root: root, Images: images})
		require.NoError(t, err)
		for _, m := range mountsBelow(t, root) {
			require.Len(t, strings.Split(strings.TrimPrefix(m, root+"/"), "/"), 1, m)
		}
		require.NoDirExists(t, try)
		require.NoError(t, next.Close())
	}
}

// What a kernel does not do is said once, and plain directories remain.
func TestNoImages(t *testing.T) {
	c := ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "x")))
	s := newServer(t, fuse.Options{})
	_, err := s.AddImage(c, image(t, c, "trusted.overlay.opaque"))
	require.ErrorIs(t, err, fuse.ErrNoImages)

	// Images must not lie on a stacked file system.
	base := ft.Overlay(t, t.TempDir())
	s = newServer(t, fuse.Options{Images: true})
	img, err := erofs.Build(context.Background(), c.TOC(), erofs.Options{Dir: base, Opaque: "trusted.overlay.opaque"})
	if err != nil {
		t.Skip("no files without a name on overlay: ", err)
	}
	defer img.Release()
	for range 2 {
		_, err = s.AddImage(c, img)
		require.ErrorIs(t, err, fuse.ErrNoImages)
	}
	d, err := s.Add(c)
	require.NoError(t, err)
	defer d.Remove()
	require.Equal(t, []string{"f"}, find(t, d.Path()))
}

// What is stored around a READ is the file, for programs that map it and for those that
// read it from many threads, and each page of it is asked for once.
func TestImageStoresAround(t *testing.T) {
	const size = 3<<20 + 1234
	body := pattern(size)
	s := newServer(t, fuse.Options{Images: true})
	in := ft.Layer(t, ft.Tar(t, ft.File("before", 0o644, body[:9000]), ft.File("large", 0o644, body), ft.File("next", 0o644, body[:7000])))
	c := &wholeFiles{Content: in}
	d, err := s.AddImage(c, image(t, in, "trusted.overlay.opaque"))
	require.NoError(t, err)
	defer d.Remove()
	large := filepath.Join(d.Path(), "large")
	readPages(t, large, 2<<20, 4096)
	eventually(t, "the rest is stored and the piece given back", func() bool { return c.held.Load() == 0 })
	sent := messages(s, func() {
		out, err := child("mmap", large).CombinedOutput()
		require.NoError(t, err, string(out))
		require.Equal(t, fmt.Sprintf("%x", sha256.Sum256([]byte(body))), string(out))
		out, err = child("tail", large).CombinedOutput()
		require.NoError(t, err, string(out))
	})
	require.Zero(t, sent["READ"], "all of it was there")
	for _, f := range []struct {
		name string
		size int
	}{{"before", 9000}, {"next", 7000}} {
		got, err := os.ReadFile(filepath.Join(d.Path(), f.name))
		require.NoError(t, err)
		require.True(t, string(got) == body[:f.size], f.name)
	}
}

// TestImageStoresAhead: files of many sizes, cut anywhere, as a blob has them: what is read
// afterwards is the files, and nothing is asked for.
func TestImageStoresAhead(t *testing.T) {
	body := pattern(5 << 20)
	for seed := range uint64(6) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var entries []ft.Entry
		var sizes []int
		for i := range 40 {
			n := []int{rnd.IntN(5000), rnd.IntN(200_000), 4096 * rnd.IntN(60), rnd.IntN(3 << 20)}[rnd.IntN(4)]
			sizes = append(sizes, n)
			entries = append(entries, ft.File(fmt.Sprintf("f%02d", i), 0o644, body[:n]))
		}
		c := ft.Layer(t, ft.Tar(t, entries...))
		s := newServer(t, fuse.Options{Images: true})
		d := addImage(t, s, c)
		var parts []fuse.Part
		for i, n := range sizes {
			inode := inodeOf(t, c.TOC(), fmt.Sprintf("f%02d", i))
			for off := 0; off < n; {
				m := min(n-off, 4096*(1+rnd.IntN(600))) // chunks begin at blocks, as eStargz' do
				parts = append(parts, fuse.Part{Inode: inode, Off: int64(off), Data: []byte(body[off : off+m])})
				off += m
			}
		}
		for len(parts) > 0 {
			k := min(len(parts), 1+rnd.IntN(10))
			require.True(t, d.StoreAhead(parts[:k]))
			parts = parts[k:]
		}
		sent := messages(s, func() {
			for i, n := range sizes {
				got, err := os.ReadFile(filepath.Join(d.Path(), fmt.Sprintf("f%02d", i)))
				require.NoError(t, err)
				require.True(t, string(got) == body[:n], "file %d of %d bytes, seed %d", i, n, seed)
			}
		})
		require.Zero(t, sent["READ"], "seed %d", seed)
	}
}

// inodeOf looks a file in the root up.
func inodeOf(t *testing.T, toc *estargz.TOC, name string) uint32 {
	t.Helper()
	i, err := toc.Lookup(estargz.Root, []byte(name))
	require.NoError(t, err)
	return i
}

func TestImageManyReaders(t *testing.T) {
	s := newServer(t, fuse.Options{Images: true})
	var entries []ft.Entry
	body := pattern(700_000)
	for i := range 40 {
		entries = append(entries, ft.File(fmt.Sprintf("f%02d", i), 0o644, body[i:i+i*i*400+1]))
	}
	in := ft.Layer(t, ft.Tar(t, entries...))
	d, err := s.AddImage(&wholeFiles{Content: in}, image(t, in, "trusted.overlay.opaque"))
	require.NoError(t, err)
	defer d.Remove()
	var eg errgroup.Group
	for n := range 16 {
		eg.Go(func() error {
			order := rand.New(rand.NewPCG(1, uint64(n))).Perm(len(entries))
			for _, i := range order {
				f, err := os.Open(filepath.Join(d.Path(), fmt.Sprintf("f%02d", i)))
				if err != nil {
					return err
				}
				got := make([]byte, i*i*400+1)
				for _, half := range rand.Perm(2) {
					from := len(got) / 2 * half
					if _, err := f.ReadAt(got[from:min(len(got), from+len(got)/2+1)], int64(from)); err != nil {
						return fmt.Errorf("f%02d: %w", i, err)
					}
				}
				f.Close()
				if string(got) != body[i:i+len(got)] {
					return fmt.Errorf("f%02d has other bytes", i)
				}
			}
			return nil
		})
	}
	require.NoError(t, eg.Wait())
}

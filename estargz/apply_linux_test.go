package estargz_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// TestTreeIsTheExtractedOne compares a TOC with what containerd makes of the
// same tar when it extracts it for overlayfs.
func TestTreeIsTheExtractedOne(t *testing.T) {
	dir := t.TempDir()
	needPrivilege(t, dir)
	l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatZstdChunked, ChunkSize: 64 << 10, Storage: true}, estargztest.Torture()...)
	got, err := estargztest.TreeOf(l.Open(t), l)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := archive.Apply(context.Background(), dir, bytes.NewReader(l.Tar), archive.WithConvertWhiteout(archive.OverlayConvertWhiteout)); err != nil {
		t.Fatal(err)
	}
	want := treeOnDisk(t, dir)
	model, err := estargztest.ModelOfTar(bytes.NewReader(l.Tar))
	if err != nil {
		t.Fatal(err)
	}
	// What extraction takes from the clock, and the root, which it leaves alone.
	for name, n := range want {
		if name == "" || model[name] != nil && (model[name].Implicit || n.IsWhiteout()) {
			n.Mtime = got[name].Mtime
		}
	}
	want[""].Mode, want[""].UID, want[""].GID = got[""].Mode, got[""].UID, got[""].GID
	for _, diff := range estargztest.Compare(want, got) {
		t.Error(diff)
	}
}

// needPrivilege skips a test that has to make devices and trusted xattrs.
func needPrivilege(t *testing.T, dir string) {
	t.Helper()
	probe := filepath.Join(dir, "probe")
	err := unix.Mknod(probe, unix.S_IFCHR, 0)
	if err == nil {
		err = os.Remove(probe)
	}
	if err == nil {
		err = unix.Setxattr(dir, "trusted.probe", nil, 0)
		unix.Removexattr(dir, "trusted.probe")
	}
	if err == nil {
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatalf("needs root, and a file system with devices and trusted xattrs: %v", err)
	}
	t.Skipf("needs root, and a file system with devices and trusted xattrs: %v", err)
}

// treeOnDisk reads an upper directory of overlayfs.
func treeOnDisk(t *testing.T, root string) estargztest.Tree {
	t.Helper()
	tree, seen := estargztest.Tree{}, map[uint64]*estargztest.Node{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(strings.TrimPrefix(p, root), "/")
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		if n := seen[st.Ino]; n != nil {
			tree[name] = n
			return nil
		}
		n := &estargztest.Node{
			Mode: st.Mode, UID: st.Uid, GID: st.Gid, Size: st.Size, Mtime: time.Unix(st.Mtim.Unix()), Xattrs: xattrsOnDisk(t, p),
		}
		tree[name], seen[st.Ino] = n, n
		major, minor := unix.Major(st.Rdev), unix.Minor(st.Rdev)
		n.Rdev = minor&0xff | major<<8 | minor>>8<<20
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			n.Sum = sha256.Sum256(data)
		case unix.S_IFLNK:
			if n.Target, err = os.Readlink(p); err != nil {
				return err
			}
		case unix.S_IFDIR:
			n.Size = 0
			if n.Opaque = n.Xattrs["trusted.overlay.opaque"] == "y"; n.Opaque {
				delete(n.Xattrs, "trusted.overlay.opaque")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	// Not st_nlink: btrfs and others do not count subdirectories.
	for name, n := range tree {
		if !n.IsDir() {
			n.Nlink++
			continue
		}
		n.Nlink += 2
		if name != "" {
			parent := filepath.Dir(name)
			if parent == "." {
				parent = ""
			}
			tree[parent].Nlink++
		}
	}
	return tree
}

func xattrsOnDisk(t *testing.T, p string) map[string]string {
	t.Helper()
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			t.Fatal(err)
		}
		out[name] = string(value[:n])
	}
	return out
}

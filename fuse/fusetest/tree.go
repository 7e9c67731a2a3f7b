package fusetest

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz/estargztest"
)

// readDir makes a tree of a directory; opaque is the attribute that marks opaque
// directories. lost entries, which are listed but not found, are left out when
// they may be. Names of one inode share a node: files of two layers that have the
// same numbers would be seen as links.
func readDir(dir, opaque string, lost bool) (estargztest.Tree, error) {
	tree := estargztest.Tree{}
	nodes := map[[2]uint64]*estargztest.Node{}
	err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		if lost && errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if rel == "." {
			rel = ""
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			if lost && errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return fmt.Errorf("%s: %w", p, err)
		}
		id := [2]uint64{st.Dev, st.Ino}
		if n := nodes[id]; n != nil && !n.IsDir() {
			tree[rel] = n
			return nil
		}
		n, err := readNode(p, &st, opaque)
		if err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		nodes[id], tree[rel] = n, n
		return nil
	})
	return tree, err
}

func readNode(p string, st *unix.Stat_t, opaque string) (*estargztest.Node, error) {
	n := &estargztest.Node{
		Mode: st.Mode, UID: st.Uid, GID: st.Gid, Nlink: uint32(st.Nlink),
		Rdev:  encodeDev(st.Rdev),
		Mtime: time.Unix(st.Mtim.Unix()),
	}
	xattrs, err := readXattrs(p)
	if err != nil {
		return nil, fmt.Errorf("xattrs: %w", err)
	}
	n.Opaque = xattrs[opaque] == "y"
	if delete(xattrs, opaque); len(xattrs) > 0 {
		n.Xattrs = xattrs
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n.Size = st.Size
		n.Sum, err = sumFile(p, st.Size)
	case unix.S_IFLNK:
		n.Size = st.Size
		n.Target, err = os.Readlink(p)
	}
	return n, err
}

// encodeDev is the kernel's new_encode_dev of what stat returned.
func encodeDev(dev uint64) uint32 {
	major, minor := unix.Major(dev), unix.Minor(dev)
	return minor&0xff | major<<8 | (minor&^0xff)<<12
}

func sumFile(p string, size int64) (sum [sha256.Size]byte, err error) {
	f, err := os.Open(p)
	if err != nil {
		return sum, err
	}
	defer f.Close()
	h := sha256.New()
	n, err := io.Copy(h, f)
	if err == nil && n != size {
		err = fmt.Errorf("read %d bytes of %d", n, size)
	}
	h.Sum(sum[:0])
	return sum, err
}

// readXattrs reads a file's attributes; none where the file system has none.
func readXattrs(p string) (map[string]string, error) {
	buf := make([]byte, 64<<10)
	size, err := unix.Llistxattr(p, buf)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	found := map[string]string{}
	value := make([]byte, 64<<10)
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:size]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		found[name] = string(value[:n])
	}
	return found, nil
}

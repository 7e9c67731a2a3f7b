package fuse_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

func TestXattrs(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, torture(true)...)))
	path := d.Path() + "/many"
	big := strings.Repeat("b", 4000)
	buf := make([]byte, 64<<10)

	n, err := unix.Getxattr(path, "user.b", nil)
	require.NoError(t, err)
	require.Equal(t, len(big), n, "the size, when asked for")
	n, err = unix.Getxattr(path, "user.b", buf)
	require.NoError(t, err)
	require.Equal(t, big, string(buf[:n]))
	_, err = unix.Getxattr(path, "user.b", buf[:10])
	require.ErrorIs(t, err, unix.ERANGE)
	n, err = unix.Getxattr(path, "user.empty", buf)
	require.NoError(t, err)
	require.Zero(t, n)
	for _, p := range []string{path, d.Path() + "/one", d.Path() + "/.stargz-snapshotter"} {
		_, err = unix.Getxattr(p, "user.none", buf)
		require.ErrorIs(t, err, unix.ENODATA)
	}

	const names = "user.a\x00user.b\x00user.empty\x00"
	n, err = unix.Listxattr(path, nil)
	require.NoError(t, err)
	require.Equal(t, len(names), n)
	n, err = unix.Listxattr(path, buf)
	require.NoError(t, err)
	require.Equal(t, names, string(buf[:n]))
	_, err = unix.Listxattr(path, buf[:len(names)-1])
	require.ErrorIs(t, err, unix.ERANGE)
	n, err = unix.Listxattr(path, buf[:len(names)])
	require.NoError(t, err)
	require.Equal(t, names, string(buf[:n]))

	// What overlayfs keeps for itself is never taken from a layer.
	n, err = unix.Listxattr(d.Path()+"/own", buf)
	require.NoError(t, err)
	require.Equal(t, "user.other\x00", string(buf[:n]))
}

// The kernel stops to ask the plain mount, and remembers ACLs of the other.
func TestXattrMessages(t *testing.T) {
	s := newServer(t, fuse.Options{})
	plain := add(t, s, wide(t, ""))
	sent := messages(s, func() { run(t, "ls", "-lR", plain.Path()) })
	require.LessOrEqual(t, sent["GETXATTR"], uint64(4))
	n, err := unix.Listxattr(plain.Path()+"/dir00/f000", make([]byte, 100))
	require.NoError(t, err, "who copies and hashes trees takes no error for a list")
	require.Zero(t, n)
	_, err = unix.Getxattr(plain.Path()+"/dir00/f000", "user.x", nil)
	require.ErrorIs(t, err, unix.ENOTSUP)

	other := add(t, s, wide(t, `{"name":"x","type":"reg","mode":420,"xattrs":{"user.x":"eA=="}},`))
	require.False(t, other.Plain())
	acl := func() {
		for range 5 {
			unix.Getxattr(other.Path()+"/x", "system.posix_acl_access", make([]byte, 100))
		}
	}
	require.LessOrEqual(t, messages(s, acl)["GETXATTR"], uint64(1))
	require.Empty(t, messages(s, acl))
}

// An ACL in a layer is in force, as it would be on disk.
func TestACL(t *testing.T) {
	// struct posix_acl_xattr_header and entries of linux/posix_acl_xattr.h:
	// user::rw- user:1234:r-- group::--- mask::r-- other::---
	const acl = "\x02\x00\x00\x00" +
		"\x01\x00\x06\x00\xff\xff\xff\xff" + "\x02\x00\x04\x00\xd2\x04\x00\x00" +
		"\x04\x00\x00\x00\xff\xff\xff\xff" + "\x10\x00\x04\x00\xff\xff\xff\xff" + "\x20\x00\x00\x00\xff\xff\xff\xff"
	s := newServer(t, fuse.Options{})
	d := add(t, s, ft.Layer(t, ft.Tar(t, ft.File("f", 0o640, "secret").Xattr("system.posix_acl_access", acl))))
	merged := ft.Overlay(t, d.Path())
	letIn(t, merged)
	for uid, allowed := range map[uint32]bool{1234: true, 1235: false} {
		out, err := as(uid, merged, "cat", "f").CombinedOutput()
		if allowed {
			require.NoError(t, err, "%s", out)
			require.Equal(t, "secret", string(out))
		} else {
			require.ErrorContains(t, err, "exit status 1", "%s", out)
		}
	}
}

// In the exact mount an attribute that is not there is missing, not unsupported.
func TestAddExact(t *testing.T) {
	s := newServer(t, fuse.Options{})
	d, err := s.AddExact(ft.Layer(t, ft.Tar(t, ft.File("f", 0o644, "f"))))
	require.NoError(t, err)
	defer d.Remove()
	require.False(t, d.Plain())
	_, err = unix.Getxattr(d.Path()+"/f", "user.none", nil)
	require.ErrorIs(t, err, unix.ENODATA)
}

package layer

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz/estargztest"
)

// A command comes with the libraries that it is known to need, and they with theirs, all in
// the first round trip: nothing of the command has been read.
func TestCompanions(t *testing.T) {
	const lib = "usr/lib/x86_64-linux-gnu/"
	library := func(name string) estargztest.Entry { return alone(lib+name, string(elf("", ""))) }
	image := openImage(t,
		[]estargztest.Entry{
			estargztest.Symlink("lib", "usr/lib"), alone("usr/bin/mkdir", "no program"), estargztest.Symlink("bin", "usr/bin"),
			library("libselinux.so.1"), library("libpcre2-8.so.0.11"), estargztest.Symlink(lib+"libpcre2-8.so.0", "libpcre2-8.so.0.11"),
			library("libssl.so.1.1"), library("libz.so.1"),
		},
		[]estargztest.Entry{
			estargztest.File("usr/bin/nodejs", []byte("a stub")), estargztest.Symlink("usr/bin/node", "nodejs"), estargztest.Symlink("etc/alternatives/x", "y"),
			library("libnode.so.108"), library("libnodeless.so.1"), alone("data/mkdir", ""),
			library("libicui18n.so.72"), library("libicuuc.so.72"), library("libicudata.so.72"), library("libcrypto.so.1.1"), library("libcrypto.so.3"),
			alone("usr/share/nodejs/undici/undici-fetch.js", ""),
		})
	image[1].Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/nowhere/mkdir", "/bin/mkdir"}}, {Paths: []string{"/usr/local/bin/node", "/usr/bin/node"}}}})
	image[0].come(0, "usr/bin/mkdir", lib+"libselinux.so.1", lib+"libpcre2-8.so.0.11", lib+"libssl.so.1.1", lib+"libz.so.1")
	image[1].come(0, lib+"libnode.so.108", lib+"libicui18n.so.72", lib+"libicuuc.so.72", lib+"libicudata.so.72", lib+"libcrypto.so.1.1",
		"usr/share/nodejs/undici/undici-fetch.js")
	for _, p := range []string{lib + "libnodeless.so.1", lib + "libcrypto.so.3", "data/mkdir"} {
		require.False(t, image[1].has(p), p)
	}
}

// A program that is more than a stub is not the library of its name, and a file is not run.
func TestNoCompanions(t *testing.T) {
	const lib = "usr/lib/x86_64-linux-gnu/"
	o := openImage(t, []estargztest.Entry{
		estargztest.File("usr/bin/perl", make([]byte, stubSize+1)), alone(lib+"libperl.so.5.36", ""),
		alone("usr/share/mkdir", ""), alone(lib+"libselinux.so.1", ""),
	})[0]
	o.Want(t.Context(), Wants{Commands: []Command{{Paths: []string{"/usr/bin/perl"}}}, Files: [][]string{{"/usr/share/mkdir"}}})
	o.come(0, "usr/bin/perl", "usr/share/mkdir")
	require.False(t, o.has(lib+"libperl.so.5.36"))
	require.False(t, o.has(lib+"libselinux.so.1"))
}

func TestCompanionsEnd(t *testing.T) {
	var depth func(name string) int
	depth = func(name string) (n int) {
		for _, c := range companionsOf(name) {
			n = max(n, 1+depth(c))
			require.Less(t, n, 10, name)
		}
		return n
	}
	for stem := range companions {
		depth(stem)
		depth(stem + ".so.1")
	}
	require.Equal(t, []string{"libcrypto.so.1.1"}, companionsOf("libssl.so.1.1"))
}

// A large library comes with its end, where its dynamic section says what it needs; other
// large files with their beginning alone.
func TestWishEnd(t *testing.T) {
	const size = 9 << 20
	large := func(name string) estargztest.Entry { return estargztest.File(name, noise(uint64(len(name)), size)) }
	o := openImage(t, []estargztest.Entry{large("usr/lib/liblarge.so.1"), large("usr/share/data")})[0]
	part := func(name string, off int64) bool {
		m := o.member(name, off)
		return o.blob.Present(m.Offset, m.Size)
	}
	o.wish(byCommand, o.inode("usr/lib/liblarge.so.1"))
	o.wish(byCommand, o.inode("usr/share/data"))
	eventually(t, "both beginnings, and an end", func() bool {
		return part("usr/lib/liblarge.so.1", 0) && part("usr/share/data", 0) && part("usr/lib/liblarge.so.1", size-1)
	})
	require.False(t, part("usr/lib/liblarge.so.1", size/2))
	require.False(t, part("usr/share/data", size-1))
}

package layer

import (
	"path"
	"sort"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// The libraries of a program are known when its first bytes are, and theirs when those have
// come: a round trip for each. Some are known from the name alone.

// companions are the libraries that programs and libraries of most distributions need, of
// those that nearly every build runs. Of a library the key is what precedes ".so", an asterisk
// stands for its version, and a name that ends with a dot or a hyphen for any version there is. A wrong name
// is looked for and not found, or costs the bytes of a library, which are counted (allowance).
var companions = map[string][]string{
	"apt-get":        {"libapt-private.so.0.0"},
	"apt":            {"libapt-private.so.0.0"},
	"bash":           {"libtinfo.so.6"},
	"cp":             {"libselinux.so.1", "libacl.so.1", "libattr.so.1"},
	"curl":           {"libcurl.so.4", "libz.so.1"},
	"dpkg":           {"libselinux.so.1", "libmd.so.0"},
	"find":           {"libselinux.so.1", "libm.so.6"},
	"git":            {"libpcre2-8.so.0", "libz.so.1"},
	"grep":           {"libpcre2-8.so.0"},
	"id":             {"libselinux.so.1"},
	"install":        {"libselinux.so.1", "libacl.so.1", "libattr.so.1"},
	"ls":             {"libselinux.so.1"},
	"mkdir":          {"libselinux.so.1"},
	"mv":             {"libselinux.so.1", "libacl.so.1", "libattr.so.1"},
	"python3":        {"libm.so.6", "libz.so.1", "libexpat.so.1"},
	"sed":            {"libselinux.so.1", "libacl.so.1"},
	"stat":           {"libselinux.so.1"},
	"tar":            {"libselinux.so.1", "libacl.so.1"},
	"cc1":            {"libisl.so.", "libmpc.so.3", "libz.so.1", "libzstd.so.1"},
	"cc1plus":        {"libisl.so.", "libmpc.so.3", "libz.so.1", "libzstd.so.1"},
	"ld":             {"libbfd-", "libctf.so.0", "libjansson.so.4", "libsframe.so.0"},
	"libapt-pkg":     {"libz.so.1", "libbz2.so.1.0", "liblzma.so.5", "liblz4.so.1", "libzstd.so.1", "libudev.so.1", "libsystemd.so.0", "libgcrypt.so.20", "libxxhash.so.0", "libstdc++.so.6"},
	"libapt-private": {"libapt-pkg.so.6.0"},
	"libbrotlidec":   {"libbrotlicommon.so.1"},
	"libcurl":        {"libnghttp2.so.14", "libssl.so.3"},
	"libicui18n":     {"libicuuc.so.*"},
	"libicuuc":       {"libicudata.so.*", "libstdc++.so.6"},
	"libnode":        {"libuv.so.1", "libcares.so.2", "libnghttp2.so.14", "libbrotlidec.so.1", "libbrotlienc.so.1", "libicui18n.so.", "libssl.so.", "libz.so.1", "libstdc++.so.6"},
	"libselinux":     {"libpcre2-8.so.0"},
	"libssl":         {"libcrypto.so.*"},
	"libstdc++":      {"libm.so.6", "libgcc_s.so.1"},
	"libsystemd":     {"libcap.so.2", "libgcrypt.so.20"},
	"libgfortran":    {"libquadmath.so.0"},
	"libisl":         {"libgmp.so.10"},
	"liblapack":      {"libblas.so.3", "libgfortran.so.5"},
	"libmpc":         {"libmpfr.so.6"},
	"libgcrypt":      {"libgpg-error.so.0"},
	"libxml2":        {"libicuuc.so.*", "liblzma.so.5", "libz.so.1"},
}

// companionsOf lists the libraries that a program or a library needs, by its file name.
func companionsOf(name string) (names []string) {
	stem, version, _ := strings.Cut(name, ".so.")
	for _, c := range companions[stem] {
		names = append(names, strings.Replace(c, "*", version, 1))
	}
	return names
}

// libraryDirs are where loaders look.
var libraryDirs = func() (dirs []string) {
	for _, t := range triplets {
		dirs = append(dirs, "/usr/lib/"+t.name)
	}
	return append(dirs, "/usr/local/lib", "/usr/lib64", "/usr/lib")
}()

// wantLibrary wishes for a library, and for those that it is known to need.
func (im image) wantLibrary(c clue, dirs []string, name string) {
	if strings.HasSuffix(name, ".") || strings.HasSuffix(name, "-") {
		p, ok := im.anyVersion(name)
		if !ok {
			return
		}
		dirs, name = []string{path.Dir(p)}, path.Base(p)
	}
	if !im.want(c, joinAll(dirs, name)...) {
		return
	}
	im.wantHabits(name)
	for _, n := range companionsOf(name) {
		im.wantLibrary(c, libraryDirs, n)
	}
}

// wantHabits wishes for the files that a library reads when it begins.
func (im image) wantHabits(name string) {
	switch stem, _, _ := strings.Cut(name, ".so."); stem {
	case "libcrypto":
		im.want(byHabit, "/etc/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf")
	case "libnode": // Debian's has these modules of its own outside of it
		for _, m := range []string{"cjs-module-lexer/lexer.js", "cjs-module-lexer/dist/lexer.js", "undici/undici-fetch.js"} {
			im.want(byHabit, "/usr/share/nodejs/"+m)
		}
	}
}

// stubSize is the largest program of which little more than a call of a library can be expected.
const stubSize = 64 << 10

// wantCompanions wishes for the libraries of a program by the name it is called by, and by the
// one that its file has: of python3, python3.11. A small program with a library of its own name,
// like node with libnode.so.108, is mostly that library.
func (im image) wantCompanions(name, file string, at location) {
	names := []string{name}
	if path.Base(file) != name {
		names = append(names, path.Base(file))
	}
	var node estargz.Inode
	stub := at.layer.toc.Inode(at.inode, &node) == nil && node.Size <= stubSize
	for _, name := range names {
		for _, n := range companionsOf(name) {
			im.wantLibrary(byCommand, libraryDirs, n)
		}
		if !stub {
			continue
		}
		if lib, ok := im.anyVersion("lib" + name + ".so."); ok {
			if at, ok := im.file(lib); ok {
				at.layer.wishAll(byCommand, at.inode)
			}
			im.wantLibrary(byCommand, []string{path.Dir(lib)}, path.Base(lib))
		}
	}
}

// anyVersion finds a library whose name begins with a prefix.
func (im image) anyVersion(prefix string) (lib string, ok bool) {
	for _, d := range libraryDirs {
		for _, l := range im {
			at, ok := image{l}.find(d)
			if !ok {
				continue
			}
			if name, ok := at.first(prefix); ok {
				return path.Join(d, name), true
			}
		}
	}
	return "", false
}

// first returns the first name in a directory that has a prefix.
func (at location) first(prefix string) (name string, ok bool) {
	var node estargz.Inode
	if at.mode != unix.S_IFDIR || at.layer.toc.Inode(at.inode, &node) != nil {
		return "", false
	}
	entry := func(n int) string {
		name, _, _ := at.layer.toc.Entry(at.inode, uint32(n))
		return string(name)
	}
	n := sort.Search(int(node.Entries), func(n int) bool { return entry(n) >= prefix })
	name = entry(n)
	return name, strings.HasPrefix(name, prefix)
}

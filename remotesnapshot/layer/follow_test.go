package layer

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// apart is so many bytes that a file with them is nobody's small neighbour.
const apart = asideSize + 1<<10

// alone makes a file that is fetched for its own sake only.
func alone(name string, head string) estargztest.Entry {
	return estargztest.File(name, append([]byte(head), noise(uint64(len(name)), apart)...))
}

// openImage opens layers, the lowest first, as those of one image. Between two entries lies
// what no two wishes are joined over.
func openImage(t *testing.T, layers ...[]estargztest.Entry) (out []*opened) {
	t.Helper()
	for _, entries := range layers {
		entries = slices.Clone(entries)
		for i := len(entries) - 1; i > 0; i-- {
			entries = slices.Insert(entries, i, estargztest.File(fmt.Sprintf("between/%d", i), noise(uint64(i), wishGap+1)))
		}
		l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, Level: 1}, entries...)
		hints, err := estargz.ParseHints(l.Annotations)
		require.NoError(t, err)
		out = append(out, built{l.Blob, hints}.open(t, Options{}))
	}
	var all []*Layer
	for _, o := range slices.Backward(out) {
		all = append(all, o.Layer)
	}
	for _, o := range out {
		o.SetImage(func() []*Layer { return all })
	}
	return out
}

// has says whether all of a file is present.
func (o *opened) has(path string) bool {
	o.t.Helper()
	v, size, ok := o.wholeFile(o.inode(path))
	require.True(o.t, ok, path)
	m, err := o.toc.Member(v.first)
	require.NoError(o.t, err)
	return o.blob.Present(m.Offset, size)
}

// come waits for files that were named, and checks that nobody was held up by them.
func (o *opened) come(blocked int, paths ...string) {
	o.t.Helper()
	for _, p := range paths {
		eventually(o.t, p, func() bool { return o.has(p) })
	}
	// A read may come before what was asked for ahead of it, and asks again.
	var ahead []fakeRequest
	for _, r := range o.blob.requests() {
		covers := func(a fakeRequest) bool { return a.off <= r.off && r.off+r.size <= a.off+a.size }
		switch {
		case r.prio != Blocked:
			ahead = append(ahead, r)
		case !slices.ContainsFunc(ahead, covers):
			blocked--
		}
	}
	require.LessOrEqual(o.t, 0, blocked, "requests that somebody waits for")
}

func TestFollowProgram(t *testing.T) {
	const dir = "usr/lib/x86_64-linux-gnu/"
	image := openImage(t,
		[]estargztest.Entry{
			alone(dir+"libz.so.1.2", string(elf("", ""))),
			estargztest.Symlink(dir+"libz.so.1", "libz.so.1.2"),
			alone(dir+"unused.so", string(elf("", ""))),
			alone("usr/lib/ld.so", string(elf("", ""))),
			estargztest.Symlink("lib", "usr/lib"),
		},
		[]estargztest.Entry{
			alone("opt/bin/prog", string(elf("/lib/ld.so", "$ORIGIN/../lib", "libown.so", "liba.so", "libmissing.so"))),
			alone("opt/lib/libown.so", string(elf("", ""))),
			estargztest.Symlink(dir+"liba.so", "/etc/alternatives/liba"),
			estargztest.Symlink("etc/alternatives/liba", "/"+dir+"a/liba.so"),
			alone(dir+"a/liba.so", string(elf("", "", "libz.so.1", "liba.so"))),
		})
	_, err := image[1].read(t.Context(), "opt/bin/prog", 0, 1)
	require.NoError(t, err)
	image[1].come(1, "opt/bin/prog", "opt/lib/libown.so", dir+"a/liba.so")
	image[0].come(0, "usr/lib/ld.so", dir+"libz.so.1.2")
	require.False(t, image[0].has(dir+"unused.so"))
}

func TestFollowLargeProgram(t *testing.T) {
	data := elf("", "", "liba.so")
	large := append(data[:len(data)-100:len(data)-100], noise(7, 500<<10)...) // the writable part is the first
	image := openImage(t, []estargztest.Entry{
		estargztest.File("usr/lib/large.so", large),
		alone("usr/lib/liba.so", string(elf("", ""))),
	})
	o := image[0]
	o.pool.opts.Window, o.windows.limit = 200<<10, 200<<10
	_, err := o.read(t.Context(), "usr/lib/large.so", 0, 1)
	require.NoError(t, err)
	o.come(1, "usr/lib/liba.so")
	last := o.member("usr/lib/large.so", int64(len(large)-1))
	require.False(t, o.blob.Present(last.Offset, last.Size))
	require.Len(t, o.partsIn(o.inode("usr/lib/large.so"), []span{{0, 1 << 40}}), 3, "no part is longer than a window")
}

func TestFollowSources(t *testing.T) {
	const py = "usr/lib/python3.11/"
	const inc = "usr/include/c++/12/"
	const src = "usr/local/go/src/"
	const gcc = "usr/lib/gcc/x86_64-linux-gnu/12/"
	for _, tc := range []struct {
		name    string
		read    string
		come    []string
		stay    []string
		entries []estargztest.Entry
	}{
		{"module", py + "__pycache__/a.cpython-311.pyc",
			[]string{py + "a.py", py + "b.py", py + "__pycache__/b.cpython-311.pyc", py + "p/q.py", py + "lib-dynload/_c.cpython-311-x86_64-linux-gnu.so"},
			[]string{py + "unused.py"},
			[]estargztest.Entry{
				alone(py+"__pycache__/a.cpython-311.pyc", ""), alone(py+"__pycache__/b.cpython-311.pyc", ""),
				alone(py+"a.py", "import b, sys\nfrom _c import *\nfrom .p import q\n"), alone(py+"b.py", ""), alone(py+"unused.py", ""),
				alone(py+"p/q.py", ""), alone(py+"lib-dynload/_c.cpython-311-x86_64-linux-gnu.so", ""),
			}},
		{"header", inc + "a",
			[]string{inc + "bits/b.h", inc + "bits/c.h", "usr/include/stdio.h", "usr/include/x86_64-linux-gnu/c++/12/bits/config.h", "usr/lib/gcc/x86_64-linux-gnu/12/include/stddef.h"},
			[]string{inc + "unused.h"},
			[]estargztest.Entry{
				alone(inc+"a", "#include <bits/b.h>\n#include <bits/config.h>\n#include <stdio.h>\n#include <stddef.h>\n"),
				alone(inc+"bits/b.h", "#include \"c.h\"\n"), alone(inc+"bits/c.h", "#include_next <bits/c.h>\n"), alone(inc+"unused.h", ""),
				alone("usr/include/stdio.h", ""), alone("usr/include/x86_64-linux-gnu/c++/12/bits/config.h", ""),
				alone("usr/lib/gcc/x86_64-linux-gnu/12/include/stddef.h", ""),
			}},
		{"package", src + "a/a.go",
			[]string{src + "a/b.s", src + "net/http/h.go", src + "vendor/x/x.go"},
			[]string{src + "net/n.go", src + "net/http/testdata.txt"},
			[]estargztest.Entry{
				alone(src+"a/a.go", "package a\nimport (\n\"net/http\"\n\"x\"\n)\n"), alone(src+"a/b.s", ""), alone(src+"net/n.go", ""),
				alone(src+"net/http/h.go", "import \"net\"\n"), alone(src+"net/http/testdata.txt", ""), alone(src+"vendor/x/x.go", ""),
			}},
		{"container", "etc/passwd", []string{"etc/group", "bin/dash"}, []string{"etc/shadow"},
			[]estargztest.Entry{
				alone("etc/passwd", ""), alone("etc/group", ""), alone("etc/shadow", ""),
				alone("bin/dash", ""), estargztest.Symlink("bin/sh", "dash"),
			}},
		{"conditions", py + "p/__init__.py", []string{py + "p/q.py", py + "p/r.py"}, []string{py + "p/s.py", py + "p/t.py"},
			[]estargztest.Entry{
				alone(py+"p/__init__.py", "if X:\n    from . import s\nelse:\n    from . import q\ntry:\n    from . import r\nexcept E:\n    from . import t\n"),
				alone(py+"p/q.py", ""), alone(py+"p/r.py", ""), alone(py+"p/s.py", ""), alone(py+"p/t.py", ""),
			}},
		{"interpreter", "usr/bin/python3.9",
			[]string{
				"usr/lib/python3.9/encodings/__init__.py", "usr/lib/python3.9/encodings/__pycache__/__init__.cpython-39.pyc", "usr/lib/python3.9/os.py",
				"usr/lib/locale/C.utf8/LC_CTYPE", "usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache",
			},
			[]string{"usr/lib/python3.9/json.py"},
			[]estargztest.Entry{
				alone("usr/bin/python3.9", string(elf("/lib/ld.so", ""))),
				alone("usr/lib/python3.9/encodings/__init__.py", ""), alone("usr/lib/python3.9/encodings/__pycache__/__init__.cpython-39.pyc", ""),
				alone("usr/lib/python3.9/os.py", ""), alone("usr/lib/python3.9/json.py", ""),
				alone("usr/lib/locale/C.utf8/LC_CTYPE", ""), alone("usr/lib/x86_64-linux-gnu/gconv/gconv-modules.cache", ""),
			}},
		{"compiler", "usr/bin/x86_64-linux-gnu-g++-12",
			[]string{gcc + "cc1plus", gcc + "collect2", gcc + "libgcc.a", "usr/bin/x86_64-linux-gnu-as", "usr/lib/x86_64-linux-gnu/Scrt1.o", "usr/lib/x86_64-linux-gnu/libc.so"},
			[]string{gcc + "cc1"},
			[]estargztest.Entry{
				alone("usr/bin/x86_64-linux-gnu-g++-12", string(elf("/lib/ld.so", ""))),
				alone(gcc+"cc1", ""), alone(gcc+"cc1plus", ""), alone(gcc+"collect2", ""), alone(gcc+"libgcc.a", ""),
				estargztest.Symlink("usr/bin/as", "x86_64-linux-gnu-as"), alone("usr/bin/x86_64-linux-gnu-as", ""),
				alone("usr/lib/x86_64-linux-gnu/Scrt1.o", ""), alone("usr/lib/x86_64-linux-gnu/libc.so", ""),
			}},
		{"compiler of its own", "usr/local/bin/gcc", []string{"usr/local/libexec/gcc/m/13/cc1"}, []string{"usr/local/libexec/gcc/m/13/cc1plus"},
			[]estargztest.Entry{
				alone("usr/local/bin/gcc", string(elf("/lib/ld.so", ""))),
				alone("usr/local/libexec/gcc/m/13/cc1", ""), alone("usr/local/libexec/gcc/m/13/cc1plus", ""),
			}},
		{"linker's script", "usr/lib/libm.so", []string{"lib/libm.so.6", "lib/libmvec.so.1"}, []string{"lib/other"},
			[]estargztest.Entry{
				alone("usr/lib/libm.so", "/* GNU ld script\n*/\nGROUP ( /lib/libm.so.6  AS_NEEDED ( /lib/libmvec.so.1 ) )\n"),
				alone("lib/libm.so.6", ""), alone("lib/libmvec.so.1", ""), alone("lib/other", ""),
			}},
		{"configuration", "usr/lib/libcrypto.so.3", []string{"etc/ssl/openssl.cnf"}, nil,
			[]estargztest.Entry{alone("usr/lib/libcrypto.so.3", string(elf("", ""))), alone("etc/ssl/openssl.cnf", "")}},
		{"script", "bin/x", []string{"usr/bin/perl", "usr/bin/env"}, nil,
			[]estargztest.Entry{alone("bin/x", "#!/usr/bin/env perl\n"), alone("usr/bin/perl", ""), alone("usr/bin/env", "")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := openImage(t, tc.entries)[0]
			_, err := o.read(t.Context(), tc.read, 0, 1)
			require.NoError(t, err)
			o.come(1, tc.come...)
			for _, p := range tc.stay {
				require.False(t, o.has(p), p)
			}
		})
	}
}

// A step begins with what its command line names, in any layer of the image, and with what
// that needs; nobody waits.
func TestWant(t *testing.T) {
	const lib = "usr/lib/x86_64-linux-gnu/"
	image := openImage(t,
		[]estargztest.Entry{
			alone("etc/passwd", ""), alone("etc/group", ""), alone("bin/dash", string(elf("/lib64/ld-linux-x86-64.so.2", "", "libc.so.6"))),
			estargztest.Symlink("bin/sh", "dash"), alone("lib64/ld-linux-x86-64.so.2", ""), alone(lib+"libc.so.6", string(elf("", ""))),
			estargztest.Symlink("lib", "usr/lib"), alone(lib+"libz.so.1", string(elf("", ""))), alone("bin/other", ""),
		},
		[]estargztest.Entry{alone("usr/bin/tool", string(elf("/lib64/ld-linux-x86-64.so.2", "", "libz.so.1"))), alone("data", "")})
	image[1].Want(t.Context(), Wants{
		Files: [][]string{{"/missing"}, {"/data"}, {"/usr"}}, Commands: []Command{{Paths: []string{"/usr/local/bin/tool", "/usr/bin/tool", "/bin/other"}}},
	})
	image[1].come(0, "usr/bin/tool", "data")
	image[0].come(0, "etc/passwd", "etc/group", "bin/dash", "lib64/ld-linux-x86-64.so.2", lib+"libc.so.6", lib+"libz.so.1")
	require.False(t, image[0].has("bin/other"))

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	image = openImage(t, []estargztest.Entry{alone("etc/passwd", "")})
	image[0].Want(ended, Wants{Files: [][]string{{"/etc/passwd"}}})
	require.Empty(t, image[0].blob.requests())
}

func TestFollowArchives(t *testing.T) {
	const src, pkg = "go/src/", "go/pkg/linux_amd64/"
	o := openImage(t, []estargztest.Entry{
		alone(src+"a/a.go", "import \"net/http\"\n"), alone(src+"net/http/h.go", ""),
		alone(pkg+"a.a", ""), alone(pkg+"net/http.a", ""), alone(pkg+"net.a", ""),
	})[0]
	for _, p := range []string{src + "a/a.go", pkg + "a.a"} {
		_, err := o.read(t.Context(), p, 0, 1)
		require.NoError(t, err)
		o.come(2, p, src+"net/http/h.go")
	}
	o.come(2, pkg+"net/http.a")
	require.False(t, o.has(pkg+"net.a"))
}

// A program's headers may name anything: no path leads out, or on without end.
func TestFollowEndlessLinks(t *testing.T) {
	o := openImage(t, []estargztest.Entry{
		alone("bin/x", "#!/loop/a "+strings.Repeat("../", 50)+"\n"),
		estargztest.Symlink("loop", "loop2"), estargztest.Symlink("loop2", "/loop"), estargztest.Symlink("up", "../../bin"),
	})[0]
	im, release := o.image()
	defer release()
	_, ok := im.file("/loop/a")
	require.False(t, ok)
	_, ok = im.file("/bin/x/more")
	require.False(t, ok)
	_, ok = im.file("/up/../../up/x")
	require.True(t, ok)
	_, err := o.read(t.Context(), "bin/x", 0, 1)
	require.NoError(t, err)
}

func TestWishesHaveAnAllowance(t *testing.T) {
	var w wishes
	size := allowance[bySource] / 4
	add := func(c clue, v wish, size int64) bool {
		added, _ := w.add(c, v, size)
		return added
	}
	empty := func() {
		for len(w.take()) > 0 {
		}
	}
	for i := range uint32(4) {
		add(bySource, wish{inode: i}, size)
	}
	require.Len(t, w.take(), 4)
	require.False(t, add(bySource, wish{inode: 10}, size))
	require.Empty(t, w.take(), "nothing of it was read")
	require.True(t, add(byImport, wish{inode: 11}, size), "another clue has its own")
	w.wasRead(2)
	w.wasRead(2)
	empty()
	require.True(t, add(bySource, wish{inode: 10}, size))
	empty()
	require.False(t, add(bySource, wish{inode: 10}, 0), "once for each file")
	require.True(t, w.named("a"))
	require.False(t, w.named("a"))
}

func TestWishesAreJoined(t *testing.T) {
	w := newWindows(nil, 10*wishGap, near)
	done := 0
	wanted := func(lo, hi int64) wishRange { return wishRange{span{lo, hi}, []uint32{0}, func() { done++ }} }
	none := func(off, size int64) bool { return false }
	out := joinRanges([]wishRange{wanted(900, 1000), wanted(0, 100), wanted(50, 120), wanted(wishGap+1001, wishGap+1002)}, w, none)
	require.Len(t, out, 2)
	require.Equal(t, span{0, 1000}, out[0].span)
	require.Len(t, out[0].files, 3)
	require.True(t, w.comes(span{200, 900}))
	out[0].done()
	require.Equal(t, 3, done)
	require.False(t, w.touches(span{0, 1000}))
	out = joinRanges([]wishRange{wanted(0, 100), wanted(200, 300), wanted(20*wishGap, 20*wishGap+1)}, w, func(off, size int64) bool { return off == 100 })
	require.Len(t, out, 3, "what lies between is present")
}

// Who reads what was decompressed ahead is seen as a reader.
func TestReadsOfWhatCameAhead(t *testing.T) {
	o := openImage(t, []estargztest.Entry{
		alone("bin/x", "#!/bin/y\n"), alone("bin/y", "#!/bin/z\n"), alone("bin/z", ""),
	})[0]
	balance := func() int64 {
		o.wishes.mu.Lock()
		defer o.wishes.mu.Unlock()
		return o.wishes.mu.balance[byProgram]
	}
	_, err := o.read(t.Context(), "bin/x", 0, 1)
	require.NoError(t, err)
	o.come(1, "bin/y", "bin/z")
	require.Negative(t, balance())
	for _, p := range []string{"bin/y", "bin/z"} {
		eventually(t, "it is decompressed", func() bool {
			o.flights.Lock()
			defer o.flights.Unlock()
			return len(o.flights.of) == 0
		})
		_, err := o.read(t.Context(), p, 0, 1)
		require.NoError(t, err)
	}
	require.Positive(t, balance())
	require.Len(t, o.blob.requests(), 3)
}

// A step's first wishes go into fewer requests where the bytes between take no longer.
func TestManyWishesAreJoined(t *testing.T) {
	var entries []estargztest.Entry
	for i := range 2 * manyWishes {
		entries = append(entries, alone(fmt.Sprintf("bin/x%02d", i), "x"))
	}
	for _, rate := range []int64{0, 100 << 20} {
		o := openImage(t, entries)[0]
		o.blob.setLink(rate, 50*time.Millisecond)
		var c []Command
		for i := range 2 * manyWishes {
			c = append(c, Command{Paths: []string{fmt.Sprintf("/bin/x%02d", i)}})
		}
		o.Want(t.Context(), Wants{Commands: c})
		for i := range 2 * manyWishes {
			o.come(0, fmt.Sprintf("bin/x%02d", i))
		}
		if n := len(o.blob.requests()); rate == 0 {
			require.Equal(t, 2*manyWishes, n)
		} else {
			require.Equal(t, manyWishes, n)
		}
	}
}

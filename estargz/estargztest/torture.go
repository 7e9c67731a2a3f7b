package estargztest

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// securityCapability is a version 2 value: cap_net_bind_service, effective.
const securityCapability = "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"

// Bytes returns n bytes that compress badly, the same for each seed.
func Bytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}).Read(b)
	return b
}

// Torture is a layer with everything that a layer may have and that extraction
// (containerd's archive.Apply with overlay's whiteouts) understands; about
// 1,800 entries and 2 MB. Chunks of 64 KiB cut its larger files.
func Torture() []Entry {
	var es []Entry
	es = append(es, tortureBasics()...)
	es = append(es, tortureNames()...)
	es = append(es, tortureLinks()...)
	es = append(es, tortureAttributes()...)
	es = append(es, tortureContents()...)
	es = append(es, tortureReplaced()...)
	return append(es, tortureWhiteouts()...)
}

func tortureBasics() []Entry {
	return []Entry{
		Dir("./"),
		Dir("./etc/"),
		File("./etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\n")),
		File("etc/shadow", []byte("root:*:::::::\n"), Mode(0o640), Owner(0, 42)),
		File("/etc/hostname", []byte("box\n")),
		Dir("dev"),
		Char("dev/null", 1, 3, Mode(0o666)),
		Char("dev/large", 4095, 1<<20-1),
		Block("dev/sda300", 8, 300, Owner(0, 6)),
		Fifo("dev/initctl", Mode(0o600)),
		File("implicit/parents/of/a/file", []byte("deep")),
		Symlink("implicit/links/to/nowhere", "/does/not/exist"),
	}
}

func tortureNames() []Entry {
	es := []Entry{Dir("names")}
	for _, n := range []string{
		"newline\nin it", "tab\there", "back\\slash", `"quoted"`, "-rf", " ", "...", "..a", "a..", ".hidden", "%s%d", "<>&\u2028",
		"Grüße", "日本語のファイル名", "\U0001f680 rocket", "e\u0301 combining", "\u200b", "\x7f", "\x01control", strings.Repeat("n", 255), strings.Repeat("ü", 127),
	} {
		es = append(es, File("names/"+n, []byte(n)))
	}
	deep := "deep"
	for len(deep)+21 < 3800 {
		deep += "/" + strings.Repeat("d", 20)
	}
	es = append(es, File(deep+"/bottom", []byte("bottom")))
	es = append(es, Dir("many"))
	for i := range 1500 {
		var data []byte
		if i%5 == 0 { // a member each costs time
			data = fmt.Appendf(nil, "%d", i)
		}
		es = append(es, File(fmt.Sprintf("many/%04d", (i*7919)%1500), data))
	}
	return es
}

func tortureLinks() []Entry {
	return []Entry{
		Dir("links"),
		File("links/original", []byte("one inode"), Mode(0o600)),
		Hardlink("links/second", "links/original", Mode(0o600)),
		Hardlink("links/chained", "./links/second", Mode(0o600)),
		Dir("links/elsewhere"),
		Hardlink("links/elsewhere/third", "/links/original", Mode(0o644), Owner(7, 8), Mtime(Epoch.Add(time.Hour))),
		Symlink("links/short", "original"),
		Hardlink("links/short-again", "links/short"),
		Symlink("links/long", strings.Repeat("../links/", 454)+"original"),
		Symlink("links/odd", "new\nline and ü"),
		Fifo("links/fifo"),
		Hardlink("links/fifo-again", "links/fifo", Mode(0o640)),
		Char("links/zero", 1, 5),
		Hardlink("links/zero-again", "links/zero", Mode(0o600)),
		Dir("usr"),
		Dir("usr/lib"),
		Symlink("lib", "usr/lib"),
		File("lib/through-a-symlink", []byte("in usr/lib")),
		Symlink("abs", "/usr"),
		File("abs/lib/through-two", []byte("in usr/lib too")),
		Symlink("up", "../../usr/./lib"),
		Dir("up/kept-in-the-root"),
		Hardlink("usr/hard", "lib/through-a-symlink"),
	}
}

func tortureAttributes() []Entry {
	return []Entry{
		Dir("attrs"),
		File("attrs/suid", nil, Mode(0o4755)),
		File("attrs/sgid", []byte("x"), Mode(0o2755), Owner(1, 2)),
		Dir("attrs/sticky", Mode(0o1777)),
		Dir("attrs/all", Mode(0o7777)),
		File("attrs/none", []byte("secret"), Mode(0)),
		File("attrs/owner", nil, Owner(4294967294, 4294967294)),
		File("attrs/nanoseconds", nil, Mtime(time.Unix(1700000000, 123456789))),
		File("attrs/epoch", nil, Mtime(time.Unix(0, 0))),
		File("attrs/before", nil, Mtime(time.Unix(-86400, 0))),
		File("attrs/future", nil, Mtime(time.Date(2199, 12, 31, 23, 59, 59, 0, time.UTC))),
		Dir("attrs/old", Mtime(time.Unix(1, 0))),
		File("attrs/capable", []byte("#!"), Mode(0o755), Xattr("security.capability", securityCapability)),
		File("attrs/also-capable", []byte("#!"), Mode(0o755), Xattr("security.capability", securityCapability)),
		File("attrs/user", nil, Xattr("user.a", "1"), Xattr("user.b", ""), Xattr("trusted.dropped", "v"), Xattr("user.c", "\x01\xff=\n")),
		Dir("attrs/dir", Xattr("user.large", strings.Repeat("v", 2000)), Xattr("security.x", "y")),
		Symlink("attrs/symlink", "x", Xattr("trusted.of.a.link", "v"), Xattr("user.refused", "by the kernel")),
		Fifo("attrs/fifo", Xattr("user.refused", "too")),
	}
}

func tortureContents() []Entry {
	zerosInside := append(append(Bytes(1, 1<<16), make([]byte, 3<<16)...), Bytes(2, 100)...)
	return []Entry{
		Dir("contents"),
		File("contents/empty", nil),
		File("contents/one", []byte{0}),
		File("contents/chunk", Bytes(3, 1<<16)),
		File("contents/chunk-and-one", Bytes(4, 1<<16+1)),
		File("contents/many-chunks", Bytes(5, 10<<16+4321)),
		File("contents/zeros", make([]byte, 5<<16)),
		File("contents/zeros-inside", zerosInside),
		File("contents/text", []byte(strings.Repeat("all work and no play makes jack a dull boy\n", 5000))),
		File("contents/same-text", []byte(strings.Repeat("all work and no play makes jack a dull boy\n", 5000))),
	}
}

// tortureReplaced has names that occur more than once.
func tortureReplaced() []Entry {
	return []Entry{
		Dir("twice"),
		File("twice/file", []byte("first")),
		File("twice/linked", []byte("stays under the other name")),
		Hardlink("twice/other", "twice/linked"),
		File("twice/file", []byte("second, and longer"), Mode(0o600)),
		File("twice/linked", []byte("replaced")),
		Dir("twice/dir", Mode(0o700), Xattr("user.first", "kept"), Xattr("user.both", "1")),
		File("twice/dir/child", []byte("kept")),
		Dir("twice/dir", Mode(0o711), Owner(3, 4), Xattr("user.both", "2")),
		Dir("twice/was-dir"),
		File("twice/was-dir/lost", nil),
		File("twice/was-dir", []byte("a file now")),
		File("twice/was-file", []byte("gone")),
		Dir("twice/was-file"),
		File("twice/was-file/child", []byte("child of what was a file")),
		File("twice/late-parent/child", nil),
		Dir("twice/late-parent", Mode(0o750), Owner(5, 6)),
		Symlink("twice/was-symlink", "dir"),
		Dir("twice/was-symlink"),
		File("twice/was-symlink/child", []byte("not in dir")),
	}
}

func tortureWhiteouts() []Entry {
	return []Entry{
		Dir("hiding"),
		Whiteout("hiding/file"),
		Whiteout("hiding/owned", Owner(9, 10)),
		Whiteout("top-level"),
		Dir("hiding/opaque"),
		Opaque("hiding/opaque"),
		File("hiding/opaque/child", []byte("seen")),
		Dir("hiding/late"),
		File("hiding/late/child", nil),
		Opaque("hiding/late"),
		Whiteout("hiding/replaced-by-file"),
		File("hiding/replaced-by-file", []byte("new")),
	}
}

// Quirks is a layer of what extraction refuses or gets wrong, where estargz says
// what it means instead.
func Quirks() []Entry {
	return []Entry{
		Dir("/", Mode(0o711), Owner(11, 12), Xattr("user.root", "has one")),
		Whiteout("hidden-then-dir"),
		Dir("hidden-then-dir"),
		File("hidden-then-dir/child", nil),
		Dir("dir-then-hidden"),
		File("dir-then-hidden/child", nil),
		Whiteout("dir-then-hidden"),
		File("file-then-hidden", []byte("wins")),
		Whiteout("file-then-hidden"),
		Whiteout("hidden-then-implicit"),
		File("hidden-then-implicit/child", nil),
		Whiteout("twice-hidden"),
		Whiteout("twice-hidden", Owner(1, 1)),
		Hardlink("link-before-target", "target-after-link"),
		File("target-after-link", []byte("late")),
		Dir("overlay", Xattr("trusted.overlay.opaque", "y"), Xattr("user.overlay.opaque", "y"), Xattr("user.kept", "v")),
		File("overlay/redirect", nil, Xattr("trusted.overlay.redirect", "/etc/shadow"), Xattr("trusted.overlay.metacopy", "")),
		File(".wh..wh.aufs", nil),
		Dir(".wh..wh.plnk"),
		File(".wh..wh.plnk/1.2", []byte("link of aufs")),
		File("dir/./with//odd///slashes/../kept", []byte("x")),
		Opaque(""),
		File("in-dir/stargz.index.json", []byte("not the TOC")),
		File("in-dir/.prefetch.landmark", []byte("not a landmark")),
	}
}

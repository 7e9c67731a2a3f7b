package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	et "github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/hack/lab"
)

// hostile is a layer that means harm, above a good base. A build on it must come to
// what a daemon that extracts layers comes to, or to what is said here.
type hostile struct {
	name  string
	layer func(t *testing.T) lab.RawLayer
	run   string // more commands of the step, behind those that list and read what the layer brought

	lazy   bool   // it is mounted lazily
	reason string // part of what the progress says of why it is not

	want  string // the step says this too, and stock is not asked: what we do differs, on purpose
	fails string // so does the build: part of the error or the progress, and stock is not asked
}

// readIt is the end of what a step says that has read hostile-file. Where it is wanted,
// stock fails: we believe the registry's size and the file's first bytes.
const readIt = "  /hostile-file\n"

const dataEntry = `{"type":"reg","name":"hostile-file","size":12,%DATA%}`

var hostileLayers = []hostile{
	// Names.
	{name: "names above the root", layer: honest(et.File("../../../../hostile-a", nil), et.File("hostile-d/../../../hostile-b", nil)), reason: "root"},
	{name: "absolute names", layer: honest(et.File("/hostile-a", []byte("a")), et.Dir("//hostile-d/"), et.File("/hostile-d//b", nil)), lazy: true},
	{name: "symlink as a parent", layer: honest(et.Dir("etc"), et.Symlink("hostile-l", "/etc"), et.File("hostile-l/hostile-a", []byte("a"))), lazy: true},
	{name: "symlink out of the root as a parent", layer: honest(et.Symlink("hostile-l", "../../../../../../../tmp"), et.Dir("tmp"), et.File("hostile-l/hostile-a", []byte("a"))), lazy: true},
	{name: "directory replaced by a symlink and written through", layer: honest(et.Dir("hostile-d"), et.File("hostile-d/a", nil),
		et.Symlink("hostile-d", "/"), et.File("hostile-d/hostile-b", []byte("b"))), lazy: true},
	{name: "symlink to nothing as a parent", layer: honest(et.Symlink("hostile-l", "/hostile/nowhere"), et.File("hostile-l/a", []byte("a")))},
	{name: "symlinks in a circle", layer: honest(et.Symlink("hostile-a", "hostile-b"), et.Symlink("hostile-b", "hostile-a"), et.File("hostile-a/c", nil)), reason: "hostile-a"},
	{name: "name of 64 KiB", layer: honest(et.File("hostile-"+strings.Repeat("x", 64<<10), nil)), reason: "path"},
	{name: "path of 64 KiB", layer: honest(et.File("hostile"+strings.Repeat("/x", 32<<10), nil)), reason: "path"},
	{name: "name with a NUL", layer: described(entries(dataEntry, `{"type":"dir","name":"hostile-\u0000"}`)), reason: "NUL"},
	{name: "names that only the table of contents has", layer: described(entries(dataEntry, `{"type":"dir","name":"../hostile"}`)), reason: "root"},

	// Attributes and kinds of files.
	{name: "overlay's attributes", layer: honest(
		et.Dir("etc", et.Xattr("trusted.overlay.opaque", "y"), et.Xattr("user.overlay.opaque", "y")),
		et.Dir("srv", et.Xattr("trusted.overlay.redirect", "/etc"), et.Xattr("user.overlay.redirect", "/etc")),
		et.File("hostile-meta", nil, et.Xattr("trusted.overlay.metacopy", ""), et.Xattr("trusted.overlay.redirect", "/etc/passwd"))),
		lazy: true, run: `ls /etc/passwd; ls -A /srv | wc -l; wc -c < /hostile-meta`, want: "/etc/passwd\n0\n0\n"},
	{name: "devices", layer: honest(et.Char("hostile-mem", 1, 1, et.Mode(0o666)), et.Block("hostile-disk", 8, 0, et.Mode(0o666)), et.Fifo("hostile-pipe")),
		lazy: true, run: `head -c 1 /hostile-mem; head -c 1 /hostile-disk`},
	{name: "device that is a whiteout", layer: honest(et.Dir("etc"), et.Char("etc/passwd", 0, 0)), lazy: true, run: `ls /etc/passwd /etc/group`},
	{name: "set-user-id", layer: honest(et.File("hostile-su", []byte("#!/bin/sh\n"), et.Mode(0o6755), et.Owner(0, 0)),
		et.File("hostile-cap", []byte("x"), et.Mode(0o755), et.Xattr("security.capability", "\x01\x00\x00\x02\xff\xff\xff\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"))), lazy: true},

	// Hard links and whiteouts.
	{name: "hard link to nothing", layer: honest(et.Hardlink("hostile-h", "nowhere")), reason: "nowhere"},
	{name: "hard link out of the root", layer: honest(et.Hardlink("hostile-h", "../../../../../etc/shadow")), reason: "shadow"},
	{name: "hard link in a circle", layer: honest(et.Hardlink("hostile-h", "hostile-i"), et.Hardlink("hostile-i", "hostile-h")), reason: "hostile-"},
	{name: "hard link to a symlink", layer: honest(et.Symlink("hostile-s", "/etc/shadow"), et.Hardlink("hostile-h", "hostile-s")), lazy: true},
	{name: "whiteouts of whiteouts", layer: honest(et.Dir("hostile-d"), et.File("hostile-d/.wh..wh.x", nil), et.File(".wh..wh.plnk", nil)),
		lazy: true, want: "/hostile-d d 755 0:0\n"},
	{name: "whiteout of the root", layer: honest(et.File(".wh..", nil)), reason: "wh"},
	{name: "whiteout of above the root", layer: honest(et.File(".wh...", nil)), reason: "wh"},
	{name: "opaque root", layer: honest(et.Opaque("/")), run: "true"},
	{name: "file under a whiteout", layer: honest(et.File(".wh.hostile", nil), et.File(".wh.hostile/x", nil)), reason: "wh"},

	// Tables of contents.
	{name: "negative offset", layer: described(entries(`{"type":"reg","name":"hostile-file","size":12,"offset":-12,"chunkDigest":"` + sumOfZeros(12) + `"}`)), reason: "offset"},
	{name: "offset that overflows", layer: described(entries(`{"type":"reg","name":"hostile-file","size":12,"offset":9223372036854775807,"chunkDigest":"` + sumOfZeros(12) + `"}`)), reason: "offset"},
	{name: "size that overflows", layer: described(entries(`{"type":"reg","name":"hostile-file","size":9223372036854775807,%DATA%}`)), reason: "size"},
	{name: "chunks that overflow", layer: described(entries(`{"type":"reg","name":"hostile-file","size":12,"chunkOffset":9223372036854775807,"chunkSize":9223372036854775807,%DATA%}`)), reason: "chunk"},
	{name: "no digests", layer: described(entries(`{"type":"reg","name":"hostile-file","size":12,"offset":0}`)), reason: "digest"},
	{name: "deep JSON", layer: described(strings.Repeat(`{"a":`, 5_000_000)), reason: "TOC"},
	{name: "deep JSON in an entry", layer: described(entries(`{"type":"dir","name":"hostile","x":` + strings.Repeat(`[`, 5_000_000))), reason: "TOC"},
	{name: "long string", layer: described(entries(`{"type":"dir","name":"` + strings.Repeat("x", 50_000_000) + `"}`)), reason: "TOC"},
	{name: "not JSON", layer: described("\x7fELF"), reason: "TOC"},
	{name: "large table of contents", layer: tocBomb(1<<30 + 1), reason: "1073741824"},

	// Footers.
	{name: "footer behind the end", layer: changed(honest(), footer(func([]byte, int64) []byte { return et.Footer(1 << 40) })), reason: "footer"},
	{name: "footer at itself", layer: changed(honest(), footer(func(b []byte, _ int64) []byte { return et.Footer(int64(len(b)) - 51) })), reason: "footer"},
	{name: "footer at the beginning", layer: changed(honest(), footer(func([]byte, int64) []byte { return et.Footer(0) })), reason: "TOC"},
	{name: "footer with a sign", layer: changed(honest(), footer(func(_ []byte, at int64) []byte {
		return []byte(strings.Replace(string(et.Footer(at)), fmt.Sprintf("%016x", at), "-000000000000001", 1))
	})), reason: "footer"},

	// Manifests.
	{name: "digest of another table of contents", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) {
		d.Annotations[et.AnnotationTOCDigest] = sumOfZeros(1)
	})), reason: "digest"},
	{name: "digest that is a path", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) {
		d.Annotations[et.AnnotationTOCDigest] = "sha256:../../../../../../hostile"
	})), fails: "TOC digest"},
	{name: "position behind the end", layer: changed(in(estargz.FormatZstdChunked),
		describe(func(d *ocispecs.Descriptor) {
			d.Annotations[et.AnnotationZstdPosition] = "9223372036854775000:100:100:1"
		})), reason: "TOC"},
	{name: "position of a large table of contents", layer: changed(in(estargz.FormatZstdChunked),
		describe(func(d *ocispecs.Descriptor) {
			d.Annotations[et.AnnotationZstdPosition] = "8:4611686018427387904:4611686018427387904:1"
		})), reason: "TOC"},
	{name: "size too small", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) { d.Size = 1 })), lazy: true, want: readIt},
	{name: "size too large", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) { d.Size = 1 << 60 })), lazy: true, want: readIt},
	{name: "negative size", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) { d.Size = -1 })), lazy: true, want: readIt},
	{name: "zstd called gzip", layer: changed(in(estargz.FormatZstdChunked),
		describe(func(d *ocispecs.Descriptor) { d.MediaType = ocispecs.MediaTypeImageLayerGzip })), lazy: true},
	{name: "gzip called zstd", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) { d.MediaType = ocispecs.MediaTypeImageLayerZstd })), lazy: true},
	{name: "gzip called a tar", layer: changed(honest(), describe(func(d *ocispecs.Descriptor) { d.MediaType = ocispecs.MediaTypeImageLayer })), lazy: true, want: readIt},
	{name: "tar called eStargz", layer: func(t *testing.T) lab.RawLayer {
		l := et.Build(t, et.Options{Format: estargz.FormatEStargz}, goodFile())
		return lab.RawLayer{Blob: l.Tar, DiffID: l.DiffID, Desc: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Annotations: l.Annotations}}
	}, reason: "no table of contents"},

	// Contents. Nobody could tell what extracting them should give.
	{name: "wrong digest of a chunk", layer: described(entries(`{"type":"reg","name":"hostile-file","size":12,"offset":0,"chunkDigest":"` + sumOfZeros(12) + `"}`)),
		lazy: true, run: `cat /hostile-file`, fails: "digest is sha256"},
	{name: "4 KiB of a member of 2 GiB", layer: bomb(2<<30, entries(`{"type":"reg","name":"hostile-file","size":4096,"offset":0,"chunkDigest":"`+sumOfZeros(4096)+`"}`)),
		lazy: true, run: `tr -d '\0' < /hostile-file | wc -c`, want: "0\n"},
	{name: "4 KiB at the end of a member of 1 GiB", layer: bomb(1<<30, entries(`{"type":"reg","name":"hostile-file","size":4096,"innerOffset":1073737728,"offset":0,"chunkDigest":"`+sumOfZeros(4096)+`"}`)),
		lazy: true, run: `tr -d '\0' < /hostile-file | wc -c`, want: "0\n"},
	{name: "file of 4 EiB", layer: described(entries(`{"type":"reg","name":"hostile-file","size":4611686018427387903,"chunkType":"zeros"}`)),
		lazy: true, run: `head -c 100 /hostile-file | tr -d '\0' | wc -c`, want: "0\n"},
}

// listing shows what a hostile layer brought, and reads it.
const listing = `cd /; find / -xdev -path '*hostile*' \( -type d -printf '%p %y %m %U:%G\n' -o -printf '%p %y %m %U:%G %s %n %l\n' \) | sort; ` +
	`find / -xdev -type f -path '*hostile*' -size -64k -exec sha256sum {} + | sort; `

// hostileMemory is what the daemon may need on top of a usual one, at any time: one
// member that is being decompressed, or one table of contents.
const hostileMemory = 256 << 20

// Layers that mean harm are used as if they were extracted, or refused with a reason
// that names them. Nothing is written outside the daemon's root, its memory stays
// small, and builds on another image go on beside.
func TestHostile(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	img := image(t, lab.EStargz)
	base := onLink(t, r, img)
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
	extracts := daemon(t, lab.DaemonOptions{Program: stock(t), Snapshotter: "overlayfs", Registries: []string{r.Link}})
	good := lab.BuildOptions{NoCache: true, Dockerfile: "FROM " + base + "\nRUN cat /etc/os-release && grep -q root /etc/passwd\n"}
	build(t, d, good)

	stop := beside(t, d, good)
	d.ResetPeakMemory()
	for i, h := range hostileLayers {
		t.Run(strings.ReplaceAll(h.name, " ", "-"), func(t *testing.T) {
			layer := h.layer(t)
			bad, err := img.With(t.TempDir(), fmt.Sprintf("hostile-%d", i), layer)
			require.NoError(t, err)
			h.check(t, d, extracts, onLink(t, r, bad), bad.Layers[len(bad.Layers)-1])
			noneOutside(t, d.Root)
			noneOutside(t, extracts.Root)
		})
	}
	n, longest := stop()
	t.Logf("%d builds beside, the longest took %v; most memory %.1f MB", n, longest, float64(d.PeakMemory())/1e6)
	require.Positive(t, n)
	require.Less(t, d.PeakMemory(), int64(hostileMemory), "bytes of anonymous memory")
}

func (h *hostile) check(t *testing.T, d, extracts *lab.Daemon, ref string, layer ocispecs.Descriptor) {
	ctx, cancel := context.WithTimeout(testContext(t), time.Minute)
	defer cancel()
	run := func(d *lab.Daemon) (string, *lab.BuildResult, error) {
		out := t.TempDir()
		res, err := lab.Build(ctx, d.Addr, lab.BuildOptions{
			Dockerfile: "FROM " + ref + " AS b\nRUN (" + listing + h.run + ") > /out 2>&1" + h.ending() + "\nFROM scratch\nCOPY --from=b /out /\n",
			OutputDir:  out,
		})
		if err != nil {
			return "", res, err
		}
		said, err := os.ReadFile(filepath.Join(out, "out"))
		require.NoError(t, err)
		return string(said), res, nil
	}
	got, res, err := run(d)
	logs := ""
	if res != nil {
		logs = res.Logs
	}
	t.Logf("%.2000v\n%.1000s\n%s", err, got, regexp.MustCompile(`(?m)^#.*lazy.*$`).FindString(logs))
	if h.lazy {
		require.True(t, strings.Contains(logs, layer.Digest.String()+" lazy"), "it is lazy")
	}
	if h.reason != "" {
		require.True(t, regexp.MustCompile(layer.Digest.String()+` not lazy: .*`+h.reason).MatchString(logs), "it is not lazy because of %q", h.reason)
	}
	switch {
	case h.fails != "":
		require.Error(t, err)
		require.Contains(t, err.Error(), h.fails)
	case h.want != "":
		require.NoError(t, err)
		require.True(t, strings.HasSuffix(got, h.want), "%q does not end with %q", got, h.want)
	default:
		want, _, stockErr := run(extracts)
		if stockErr != nil {
			t.Logf("stock: %v", firstLine(stockErr))
			require.Error(t, err, "stock fails with %v", firstLine(stockErr))
			break
		}
		require.NoError(t, err, "stock can use it")
		require.Equal(t, want, got, "what extracting gives")
	}
	var failed *lab.BuildError
	if errors.As(err, &failed) && h.fails == "" {
		require.Contains(t, failed.Err.Error(), layer.Digest.Encoded(), "the error names the layer")
	}
}

// ending makes the step fail with its last command only where that is wanted.
func (h *hostile) ending() string {
	if h.fails != "" {
		return " || { cat /out; exit 1; }"
	}
	return "; true"
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// beside runs a build again and again until stop is called, which says how many there
// were and how long the longest took. All have to succeed.
func beside(t *testing.T, d *lab.Daemon, opts lab.BuildOptions) (stop func() (n int, longest time.Duration)) {
	ctx, cancel := context.WithCancel(testContext(t))
	done := make(chan struct{})
	var n int
	var longest time.Duration
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			res, err := lab.Build(ctx, d.Addr, opts)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				t.Errorf("a build beside: %v", err)
				return
			}
			n++
			longest = max(longest, res.Wall)
			select {
			case <-ctx.Done():
			case <-time.After(500 * time.Millisecond):
			}
		}
	}()
	stop = func() (int, time.Duration) {
		cancel()
		<-done
		return n, longest
	}
	t.Cleanup(func() { stop() })
	return stop
}

// noneOutside looks for what hostile layers would have written where their names
// lead, from a daemon's root up to that of the machine.
func noneOutside(t *testing.T, root string) {
	for dir := filepath.Dir(root); ; dir = filepath.Dir(dir) {
		for _, below := range []string{"", "etc", "tmp"} {
			found, err := filepath.Glob(filepath.Join(dir, below, "hostile-*"))
			require.NoError(t, err)
			require.Empty(t, found, "written outside of the root")
		}
		if dir == "/" {
			return
		}
	}
}

// A snapshot is shared by images whose layers are the same. No image can put its own
// files into the place of another's by what its manifest and configuration claim.
func TestNoImageLendsItsFiles(t *testing.T) {
	privileged(t)
	t.Parallel()
	r := emptyRegistry(t)
	img := image(t, lab.EStargz)
	onLink(t, r, img)
	tagged := 0
	pushed := func(l lab.RawLayer) string {
		tagged++
		made, err := img.With(t.TempDir(), fmt.Sprintf("lent-%d", tagged), l)
		require.NoError(t, err)
		return onLink(t, r, made)
	}
	evil := et.File("hostile-file", []byte("evil"))
	for attack, layer := range map[string]func(t *testing.T, good lab.RawLayer) lab.RawLayer{
		"its own digest of the table of contents": func(t *testing.T, _ lab.RawLayer) lab.RawLayer { return packed(t, estargz.FormatEStargz, evil) },
		"zstd:chunked": func(t *testing.T, _ lab.RawLayer) lab.RawLayer { return packed(t, estargz.FormatZstdChunked, evil) },
		"the other's digest": func(t *testing.T, good lab.RawLayer) lab.RawLayer {
			return withTOC(packed(t, estargz.FormatEStargz, evil), good)
		},
		"no digest": func(t *testing.T, _ lab.RawLayer) lab.RawLayer {
			return withTOC(packed(t, estargz.FormatEStargz, evil), lab.RawLayer{})
		},
		"legacy stargz": func(t *testing.T, _ lab.RawLayer) lab.RawLayer { return packed(t, estargz.FormatStargz, evil) },
		"legacy stargz with the other's digest": func(t *testing.T, good lab.RawLayer) lab.RawLayer {
			return withTOC(packed(t, estargz.FormatStargz, evil), good)
		},
	} {
		for victim, make := range map[string]func(t *testing.T) lab.RawLayer{
			"eStargz":      honest(),
			"zstd:chunked": in(estargz.FormatZstdChunked),
			"gzip": changed(honest(), func(l *lab.RawLayer) {
				l.Desc.Annotations = nil
				l.Blob = l.Blob[:len(l.Blob)-51] // without the footer
			}),
		} {
			t.Run(attack+" against "+victim, func(t *testing.T) {
				d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
				good := make(t)
				bad := layer(t, good)
				bad.DiffID = good.DiffID
				read := func(ref string) (string, error) {
					out := t.TempDir()
					_, err := lab.Build(testContext(t), d.Addr, lab.BuildOptions{
						Dockerfile: "FROM " + ref + " AS b\nRUN cat /hostile-file > /out\nFROM scratch\nCOPY --from=b /out /\n", OutputDir: out,
					})
					if err != nil {
						return "", err
					}
					said, err := os.ReadFile(filepath.Join(out, "out"))
					return string(said), err
				}
				_, err := read(pushed(bad))
				t.Logf("the bad image itself: %.200v", err)
				said, err := read(pushed(good))
				require.NoError(t, err)
				require.Regexp(t, `^file \d+$`, said)
			})
		}
	}
}

// withTOC is l with the digest of the table of contents that other has; none if other
// is empty.
func withTOC(l, other lab.RawLayer) lab.RawLayer {
	l.Desc.Annotations = map[string]string{}
	if v := other.Desc.Annotations[et.AnnotationTOCDigest]; v != "" {
		l.Desc.Annotations[et.AnnotationTOCDigest] = v
	}
	return l
}

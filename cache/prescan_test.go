package cache

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
)

// stepWith makes a record as a step does that runs f in the tree.
func (w *world) stepWith(parent bkcache.ImmutableRef, f func(dir string)) *immutableRef {
	w.t.Helper()
	mut, err := w.m.New(w.ctx(), parent, group("s"), bkcache.CachePolicyRetain)
	if err != nil {
		w.t.Fatalf("new: %v", err)
	}
	mountable, err := mut.Mount(w.ctx(), false, group("s"))
	if err != nil {
		w.t.Fatalf("mount: %v", err)
	}
	w.inside(mountable, f)
	c, err := mut.Commit(w.ctx())
	if err != nil {
		w.t.Fatalf("commit: %v", err)
	}
	return c.(*immutableRef)
}

// plant makes files, "dir/" for directories, "from>target" for symlinks; "-" before
// a name removes it.
func plant(t *testing.T, names ...string) func(dir string) {
	return func(dir string) {
		for _, n := range names {
			var err error
			from, target, link := strings.Cut(n, ">")
			gone, remove := strings.CutPrefix(n, "-")
			switch {
			case remove:
				err = os.RemoveAll(filepath.Join(dir, gone))
			case link:
				err = os.Symlink(target, filepath.Join(dir, from))
			case strings.HasSuffix(n, "/"):
				err = os.MkdirAll(filepath.Join(dir, n), 0o750)
			default:
				err = os.WriteFile(filepath.Join(dir, n), []byte(n), 0o644)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
}

// forgetful is metadata that stores nothing of what contenthash has found out.
type forgetful struct{ bkcache.RefMetadata }

func (forgetful) GetExternal(string) ([]byte, error) { return nil, errNotFound }

func (forgetful) SetExternal(string, []byte) error { return nil }

// asked is a ref of which nothing is known to contenthash, but for a prescan.
type asked struct {
	*immutableRef
	prescan bool
}

func (a asked) begin(md bkcache.RefMetadata) bkcache.RefMetadata {
	contenthash.ClearCacheContext(md)
	md = forgetful{md}
	if a.prescan {
		return contentHashes{md, a.record}
	}
	return md
}

func (a asked) GetEqualMutable() (bkcache.RefMetadata, bool) {
	md, ok := a.ref.RefMetadata.GetEqualMutable()
	if !ok {
		md = a.ref.RefMetadata
	}
	return a.begin(md), true
}

// TestPrescan: what is known of a tree beforehand changes no digest, and makes and
// hides no error, whatever is asked, and in whatever order.
func TestPrescan(t *testing.T) {
	w := newWorld(t, false)
	base := w.stepWith(nil, plant(t, "usr/", "usr/bin/", "usr/bin/cc", "etc/", "etc/passwd", "bin>usr/bin", "mixed/", "mixed/base", "file", "was/", "was/base"))
	one := w.stepWith(base, plant(t, "out/", "out/a/", "out/a/gone", "out/a/stays", "out/odd\xff", "out/up>../usr/bin/cc", "out/loop>loop",
		"usr/new/", "usr/new/x", "mixed/step", "app/", "app/deep/", "app/deep/f", "link>out", "-was", "was/", "was/step"))
	two := w.stepWith(one, plant(t, "out/late", "-out/a/gone", "-app", "app/", "app/second", "rootfile", "-file", "file/", "file/in"))
	defer w.release(base, one, two)
	paths := []string{"/out", "/out/", "/out/a", "/out/a/gone", "/out/late", "/out/up", "/out/loop", "/out/odd\xff", "/app", "/app/deep", "/app/second",
		"/usr/new", "/usr/bin/cc", "/bin/cc", "/bin", "/link", "/link/a", "/rootfile", "/rootfile/x", "/file", "/file/in", "/mixed", "/was", "/was/base",
		"/none", "/out/none", "/etc/passwd", "/"}
	sum := func(h bkcache.ImmutableRef, p string, opts contenthash.ChecksumOpts) string {
		dgst, err := contenthash.Checksum(w.ctx(), h, p, opts, group("s"))
		if err != nil {
			// Of which kind depends on what was asked before, with BuildKit alone, too.
			return "error"
		}
		return dgst.String()
	}
	options := []contenthash.ChecksumOpts{{}, {FollowLinks: true}, {Wildcard: true, FollowLinks: true}, {ExcludePatterns: []string{"**/late"}}}
	check := func(h *immutableRef) {
		t.Helper()
		for _, o := range options {
			want := map[string]string{}
			for _, p := range paths {
				want[p] = sum(asked{h, false}, p, o)
			}
			for _, p := range paths {
				if got := sum(asked{h, true}, p, o); got != want[p] {
					t.Errorf("%s at first, with %+v: %s, BuildKit alone %s", p, o, got, want[p])
				}
				for _, next := range paths {
					if got := sum(h, next, o); got != want[next] {
						t.Errorf("%s after %s, with %+v: %s, BuildKit alone %s", next, p, o, got, want[next])
					}
				}
			}
		}
	}
	for _, h := range []*immutableRef{base, one, two} {
		check(h)
		if err := h.Finalize(w.ctx()); err != nil {
			t.Fatal(err)
		}
		check(h)
	}
}

// TestPrescanned: what the steps made is listed, and nothing of the base.
func TestPrescanned(t *testing.T) {
	w := newWorld(t, false)
	base := w.stepWith(nil, plant(t, "usr/", "usr/x", "bin>usr", "file"))
	step := w.stepWith(base, plant(t, "out/", "out/x", "out/l>x", "usr/y", "two", "-file", "file/", "file/f"))
	defer w.release(base, step)
	listed := func(h *immutableRef) (names []string) {
		raw, err := h.record.prescan()
		if err != nil {
			t.Fatal(err)
		}
		var l contenthash.CacheRecords
		if err := l.UnmarshalVT(raw); err != nil {
			t.Fatal(err)
		}
		for _, p := range l.Paths {
			names = append(names, fmt.Sprintf("%s %d %s", strings.ReplaceAll(p.Path, "\x00", "/"), p.Record.Type, p.Record.Linkname))
		}
		return names
	}
	if got := listed(base); got != nil {
		t.Errorf("of a single layer: %q", got)
	}
	const file, dir, header, link = contenthash.CacheRecordTypeFile, contenthash.CacheRecordTypeDir, contenthash.CacheRecordTypeDirHeader, contenthash.CacheRecordTypeSymlink
	want := []string{}
	for _, e := range []struct {
		path, target string
		t            contenthash.CacheRecordType
	}{{"/out", "", dir}, {"/out/", "", header}, {"/out/l", "x", link}, {"/out/x", "", file}, {"/two", "", file}} {
		want = append(want, fmt.Sprintf("%s %d %s", e.path, e.t, e.target))
	}
	if got := listed(step); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}

	many := w.stepWith(base, func(dir string) {
		plant(t, "big/", "small/", "small/x")(dir)
		for i := range prescanDir {
			plant(t, fmt.Sprintf("big/%d", i))(dir)
		}
	})
	defer w.release(many)
	if got := listed(many); len(got) != 4 || !strings.HasPrefix(got[0], "/file ") || !strings.HasPrefix(got[1], "/small ") {
		t.Errorf("with a large directory: %d, %.3q", len(got), got)
	}
}

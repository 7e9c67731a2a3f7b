package depcheck

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestRepository is what this package is for.
func TestRepository(t *testing.T) {
	pkgs, err := Load(t.Context(), "../..", Module)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range pkgs {
		seen[p.Path] = true
	}
	for _, p := range []string{"cmd/buildkitd", "estargz", "remotesnapshot", "hack/depcheck"} {
		if !seen[p] {
			t.Errorf("package %s was not looked at", p)
		}
	}
	for _, v := range Check(Ours, pkgs) {
		t.Error(v)
	}
}

// TestFixture loads a module that breaks each rule once, and one package that
// breaks none.
func TestFixture(t *testing.T) {
	dir := t.TempDir()
	// Kept as text files, so that no tool takes them for packages of ours.
	if err := os.CopyFS(dir, os.DirFS("testdata/violations")); err != nil {
		t.Fatal(err)
	}
	err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".txt") {
			err = os.Rename(path, strings.TrimSuffix(path, ".txt"))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	pkgs, err := Load(t.Context(), dir, Module)
	if err != nil {
		t.Fatal(err)
	}
	rules := Ours
	rules.Allowances = append(rules.Allowances[:0:0], Allowance{From: "worker", Import: "go.etcd.io/bbolt"}, Allowance{From: "fuse", Import: "stale"})
	var got []string
	for _, v := range Check(rules, pkgs) {
		got = append(got, v.String())
	}
	want := strings.Split(strings.TrimSpace(`
cache/prune imports github.com/hanwen/go-fuse/v2/fuse: the door to go-fuse is in fuse
cmd/buildkitd imports github.com/lazykit/lazykit/remotesnapshot: no arrow goes there from cmd/buildkitd
cmd/other: it is in no row of the table of arrows
estargz imports compress/gzip/gziptest: it is for tests only
estargz imports github.com/lazykit/lazykit/fuse: no arrow goes there from estargz
estargz imports github.com/lazykit/lazykit/hack/tools: no arrow goes there from estargz
estargz imports github.com/moby/buildkit/util/bklog: the door to BuildKit is in worker, cache/..., session, cmd/...
estargz imports testing: it is for tests only
estargz/estargztest imports github.com/lazykit/lazykit/worker: no arrow goes there from estargz
fuse imports compress/gzip: the door to (de)compression is in estargz, cache/...
fuse imports github.com/lazykit/lazykit/estargz/estargztest: it is for tests only
fuse imports github.com/lazykit/lazykit/hack/tools: nothing uses hack
nothing needs the allowance of fuse for stale
remotesnapshot/layer imports net/http: the door to HTTP requests is in remotesnapshot/blob, session, worker, cmd/...
worker imports github.com/containerd/containerd/v2/core/metadata: the door to bbolt and containerd's metadata is in remotesnapshot, cache/...
worker imports github.com/distribution/distribution/v3/registry: the door to a registry server is in tests and hack only
worker/util: a package named util has no idea of its own
worker/util: it is in no row of the table of arrows
`), "\n")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWithin(t *testing.T) {
	for _, tt := range []struct {
		pattern, pkg string
		want         bool
	}{
		{"cache", "cache", true},
		{"cache", "cache/prune", false},
		{"cache/...", "cache", true},
		{"cache/...", "cache/prune", true},
		{"cache/...", "cachex", false},
		{"...", "anything", true},
		{"github.com/moby/buildkit/...", "github.com/moby/buildkit-x/y", false},
	} {
		if got := within(tt.pattern, tt.pkg); got != tt.want {
			t.Errorf("within(%q, %q) = %v", tt.pattern, tt.pkg, got)
		}
	}
}

func TestLoadErrors(t *testing.T) {
	if _, err := Load(t.Context(), t.TempDir(), Module); err == nil {
		t.Error("a directory without a module")
	}
	if _, err := Load(t.Context(), "../..", "example.org/other"); err == nil || !strings.Contains(err.Error(), "example.org/other") {
		t.Errorf("another module: %v", err)
	}
}

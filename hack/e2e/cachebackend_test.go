package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// notCached are the RUN and COPY steps that were not taken from the cache.
func notCached(res *lab.BuildResult) (steps []string) {
	for _, v := range res.Steps {
		if !v.Cached && (strings.Contains(v.Name, "] RUN ") || strings.Contains(v.Name, "] COPY ")) {
			steps = append(steps, v.Name)
		}
	}
	return steps
}

// Steps on lazy bases are exported to every kind of cache, and a new daemon that
// imports it runs none of them again, nor does it need more of the bases.
func TestCacheOfStepsOnLazyBases(t *testing.T) {
	privileged(t)
	t.Parallel()
	r := registry(t)
	img, plain := image(t, lab.EStargz), image(t, lab.ZstdChunked)
	first, second := onLink(t, r, img), onLink(t, r, plain)
	linear := "FROM " + first + "\nRUN python3 -c 'print(6*7)' > /one\nRUN cat /one /one > /two\n"
	stages := "FROM " + first + " AS a\nRUN python3 -c 'print(6*7)' > /one\n" +
		"FROM " + second + " AS b\nRUN gcc --version > /two\n" +
		"FROM scratch\nCOPY --from=a /one /\nCOPY --from=b /two /\n"
	dir := stateDir(t)
	type backend struct {
		name, text string
		to, from   client.CacheOptionsEntry
		image      string // to push, for a cache that lies in it
	}
	entry := func(kind string, attrs ...string) client.CacheOptionsEntry {
		e := client.CacheOptionsEntry{Type: kind, Attrs: map[string]string{}}
		for i := 0; i < len(attrs); i += 2 {
			e.Attrs[attrs[i]] = attrs[i+1]
		}
		return e
	}
	repo := r.Link + "/cache-" + identity.NewID()
	for _, b := range []backend{
		{name: "registry max", text: stages, to: entry("registry", "ref", repo+":max", "mode", "max"), from: entry("registry", "ref", repo+":max")},
		{name: "registry min", text: linear, to: entry("registry", "ref", repo+":min", "mode", "min"), from: entry("registry", "ref", repo+":min")},
		{name: "inline", text: linear, to: entry("inline"), from: entry("registry", "ref", repo+":inline"), image: repo + ":inline"},
		{name: "local max", text: stages, to: entry("local", "dest", filepath.Join(dir, "max"), "mode", "max"), from: entry("local", "src", filepath.Join(dir, "max"))},
		{name: "local min", text: linear, to: entry("local", "dest", filepath.Join(dir, "min"), "mode", "min"), from: entry("local", "src", filepath.Join(dir, "min"))},
	} {
		t.Run(b.name, func(t *testing.T) {
			opts := lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}}
			exporter := daemon(t, opts)
			reset(t, r)
			export := lab.BuildOptions{Dockerfile: b.text, CacheTo: []client.CacheOptionsEntry{b.to}}
			if b.image != "" {
				export.Exports = pushTo(b.image)
			}
			build(t, exporter, export)
			s := stats(t, r)
			t.Logf("export: %d layer requests, %d layer bytes, %d bytes pushed", s.LayerGets, s.LayerBytes, s.PushedBytes)
			size := img.Size() + plain.Size()
			if b.to.Type == "local" {
				require.LessOrEqual(t, s.LayerBytes, size+size/100)
			} else {
				require.Less(t, s.LayerBytes, size/4, "the bases are where they were")
				require.Less(t, s.PushedBytes, int64(1_000_000))
			}

			importer := daemon(t, opts)
			reset(t, r)
			out := t.TempDir()
			text := b.text
			if text == linear {
				text += "FROM scratch\nCOPY --from=0 /two /\n"
			}
			res := build(t, importer, lab.BuildOptions{Dockerfile: text, CacheFrom: []client.CacheOptionsEntry{b.from}, OutputDir: out})
			s = stats(t, r)
			t.Logf("import: %d layer requests, %d layer bytes; not cached: %v", s.LayerGets, s.LayerBytes, notCached(res))
			got, err := os.ReadFile(filepath.Join(out, "two"))
			require.NoError(t, err)
			if text == b.text {
				require.Empty(t, notCached(res), res.Logs)
				require.Contains(t, string(got), "gcc")
			} else {
				require.Len(t, notCached(res), 1, "the COPY of the result was never built\n%s", res.Logs)
				require.Equal(t, "42\n42\n", string(got))
			}
			require.Less(t, s.LayerBytes, size/4)
		})
	}
}

package main

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/worker"
)

// TestStargzKeysAreStocks compares the keys with the source that stock reads them by.
func TestStargzKeysAreStocks(t *testing.T) {
	stock := stargzSnapshotterKeys(t)
	ours := honouredStargz()
	for _, key := range ownStargz {
		require.True(t, ours[key], "%s is not honoured", key)
		require.False(t, stock[key], "%s is stock's", key)
		delete(ours, key)
	}
	for key, why := range inertStargz {
		require.False(t, ours[key], "%s is honoured and inert", key)
		require.NotEmpty(t, why)
		ours[key] = true
	}
	require.Equal(t, stock, ours)
}

// stargzSnapshotterKeys reads them from stargz-snapshotter's fs/config.
func stargzSnapshotterKeys(t *testing.T) map[string]bool {
	t.Helper()
	const module = "github.com/containerd/stargz-snapshotter@v0.18.2"
	var found struct{ Dir, Error string }
	out, err := exec.CommandContext(t.Context(), "go", "mod", "download", "-json", module).Output()
	if err != nil || json.Unmarshal(out, &found) != nil || found.Dir == "" {
		t.Skipf("%s can't be had: %v %s", module, err, found.Error)
	}
	f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(found.Dir, "fs/config/config.go"), nil, 0)
	require.NoError(t, err)
	structs := map[string]*ast.StructType{}
	ast.Inspect(f, func(n ast.Node) bool {
		if ts, ok := n.(*ast.TypeSpec); ok {
			if st, ok := ts.Type.(*ast.StructType); ok {
				structs[ts.Name.Name] = st
			}
		}
		return true
	})
	keys := map[string]bool{}
	addKeys(t, keys, "", structs["Config"], structs)
	return keys
}

func addKeys(t *testing.T, keys map[string]bool, prefix string, st *ast.StructType, structs map[string]*ast.StructType) {
	t.Helper()
	require.NotNil(t, st)
	for _, field := range st.Fields.List {
		tag, err := strconv.Unquote(field.Tag.Value)
		require.NoError(t, err)
		key := prefix + reflect.StructTag(tag).Get("toml")
		if id, ok := field.Type.(*ast.Ident); ok && structs[id.Name] != nil {
			addKeys(t, keys, key+".", structs[id.Name], structs)
			continue
		}
		keys[key] = true
	}
}

func TestStargzKeys(t *testing.T) {
	for _, c := range []struct {
		name, file string
		want       worker.LazyOptions
		warnings   []string
		err        string
	}{
		{name: "nothing"},
		{
			name: "what is honoured",
			file: `
prefetch_size = 1000
no_background_fetch = false
resolve_result_entry_ttl_sec = 7
debug = true
profile_dir = "/srv/profiles"
no_profiles = true
resolve_timeout_sec = 9
[blob]
fetching_timeout_sec = 30
prefetch_chunk_size = 5000
min_wait_msec = 20
max_wait_msec = 4000
`,
			want: worker.LazyOptions{PrefetchSize: 1000, BackgroundFetch: true, TTL: 7 * time.Second, Debug: true,
				ProfileDir: "/srv/profiles", NoProfiles: true, ResolveTimeout: 9 * time.Second,
				FetchTimeout: 30 * time.Second, RequestSize: 5000, MinWait: 20 * time.Millisecond, MaxWait: 4 * time.Second},
		},
		{name: "background fetch is asked for by its absence only", file: "no_background_fetch = true"},
		{
			name:     "what has no effect",
			file:     "disable_verification = true\n[fuse]\npassthrough = true\n[directory_cache]\ndirect = true",
			warnings: []string{"directory_cache.direct", "disable_verification", "fuse.passthrough"},
		},
		{name: "an unknown key", file: "prefetch_siez = 1", err: "prefetch_siez"},
		{name: "an unknown key of a table", file: "[blob]\nchunk_sizes = 1", err: "blob.chunk_sizes"},
		{name: "an unknown table", file: "[cache]\nx = 1", err: "cache.x"},
		{name: "a value of another type", file: "prefetch_size = 'much'", err: "failed to parse stargz config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var table map[string]any
			require.NoError(t, toml.Unmarshal([]byte(c.file), &table))
			got, warnings, err := parseStargz(table)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			require.Len(t, warnings, len(c.warnings))
			for i, key := range c.warnings {
				require.True(t, strings.Contains(warnings[i], " "+key+" has no effect"), warnings[i])
			}
		})
	}
}

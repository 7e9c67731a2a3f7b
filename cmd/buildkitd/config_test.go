package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
)

// TestConfigKeysAreUsed asks, for each key that stock's config can hold, whether
// our code ever looks at its field, unless the key is listed as different.
func TestConfigKeysAreUsed(t *testing.T) {
	used := selectors(t)
	keys := configKeys("", reflect.TypeFor[config.Config]())
	require.Greater(t, len(keys), 60, "stock's config has changed its shape")
	for key, field := range keys {
		if isDifferent(key, ignored, refused) || strings.HasPrefix(key, "worker.containerd.") {
			continue
		}
		require.True(t, slices.ContainsFunc(field, func(f string) bool { return used[f] }), "nothing looks at %s", key)
	}
	for _, d := range differences {
		if strings.HasPrefix(d.subject, "worker.") && !strings.HasSuffix(d.subject, "*") && !strings.Contains(d.subject, "stargzSnapshotter.") {
			require.Contains(t, keys, d.subject, "stock has no such key")
		}
	}
}

// configKeys are the dotted names of all keys, with the Go fields that hold them,
// the innermost first. A struct that is handed on as a whole counts as used by
// its own field.
func configKeys(prefix string, typ reflect.Type, outer ...string) map[string][]string {
	out := map[string][]string{}
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("toml"), ",")
		key, fields := prefix+name, append([]string{f.Name}, wholes(outer)...)
		inner := f.Type
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice || inner.Kind() == reflect.Map {
			inner = inner.Elem()
		}
		switch {
		case f.Anonymous:
			for k, v := range configKeys(prefix, inner, outer...) {
				out[k] = v
			}
		case inner.Kind() == reflect.Struct && inner.NumField() > 0 && inner.Field(0).Tag.Get("toml") != "":
			for k, v := range configKeys(key+".", inner, append([]string{f.Name}, outer...)...) {
				out[k] = v
			}
		default:
			out[key] = fields
		}
	}
	return out
}

// wholes are the fields that BuildKit's own code takes over as they are.
func wholes(fields []string) []string {
	return slices.DeleteFunc(slices.Clone(fields), func(f string) bool {
		return !slices.Contains([]string{"Registries", "History", "GHA"}, f)
	})
}

// selectors are the names after dots in our code, tests apart.
func selectors(t *testing.T) map[string]bool {
	t.Helper()
	files, err := filepath.Glob("*.go")
	require.NoError(t, err)
	out := map[string]bool{}
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		require.NoError(t, err)
		ast.Inspect(f, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				out[s.Sel.Name] = true
			}
			return true
		})
	}
	return out
}

func TestDefaultsOfANamespace(t *testing.T) {
	s := stockDefaults(t)
	require.Equal(t, "/var/lib/buildkit", s.Root)
	require.Equal(t, []string{"unix:///run/buildkit/buildkitd.sock"}, s.GRPC.Address)
	require.Equal(t, "auto", s.Workers.OCI.Snapshotter)
	require.Equal(t, "auto", s.Workers.OCI.Mode)
	require.Equal(t, "/run/buildkit/otel-grpc.sock", s.OTEL.SocketPath)
	require.NotEmpty(t, s.CDI.SpecDirs)
	require.NotEmpty(t, s.Workers.OCI.Platforms)
}

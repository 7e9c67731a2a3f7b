package stargzconfig

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestKeysAreStocks compares the keys with the source that stock reads them by.
func TestKeysAreStocks(t *testing.T) {
	stock := stargzSnapshotterKeys(t)
	ours := honoured()
	for _, key := range own {
		require.True(t, ours[key], "%s is not honoured", key)
		require.False(t, stock[key], "%s is stock's", key)
		delete(ours, key)
	}
	for key, why := range inert {
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

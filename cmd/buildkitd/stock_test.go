package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/urfave/cli/v3"
)

// stockFlag is what a flag of stock buildkitd looks like in its source.
type stockFlag struct {
	kind   string // StringFlag, ...
	usage  string
	env    string
	hidden string // true, false, or an expression
}

// stockFlags reads the flags from stock's source: those that a Linux build has.
func stockFlags(t *testing.T) map[string]stockFlag {
	t.Helper()
	dir := moduleDir(t, "github.com/moby/buildkit")
	out := map[string]stockFlag{}
	for _, file := range []string{
		"cmd/buildkitd/main.go", "cmd/buildkitd/main_oci_worker.go", "cmd/buildkitd/main_containerd_worker.go",
		"util/profiler/profiler.go",
	} {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(dir, file), nil, 0)
		require.NoError(t, err)
		for name, flag := range flagsOf(t, f) {
			out[name] = flag
		}
	}
	require.Greater(t, len(out), 50, "the source of stock buildkitd has changed its shape")
	return out
}

// flagsOf finds the literals of cli flags. A flag is the first literal with its
// name; later ones differ in their defaults.
func flagsOf(t *testing.T, f *ast.File) map[string]stockFlag {
	t.Helper()
	out := map[string]stockFlag{}
	vars := map[string]string{} // strings by the variables that hold them
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			for i, l := range n.Lhs {
				id, ok := l.(*ast.Ident)
				if !ok || i >= len(n.Rhs) {
					continue
				}
				// A second assignment is to another case, like Windows.
				if v, ok := textOf(n.Rhs[i], vars); ok && (n.Tok == token.DEFINE || vars[id.Name] == "") {
					vars[id.Name] = v
				}
			}
		case *ast.CompositeLit:
			sel, ok := n.Type.(*ast.SelectorExpr)
			if !ok || !strings.HasSuffix(sel.Sel.Name, "Flag") {
				return true
			}
			name, flag := flagOf(n, sel.Sel.Name, vars)
			require.NotEmpty(t, name, "a flag without a name that can be read")
			old, seen := out[name]
			if !seen || strings.HasPrefix(old.usage, flag.usage) {
				out[name] = flag
			}
		}
		return true
	})
	return out
}

func flagOf(lit *ast.CompositeLit, kind string, vars map[string]string) (name string, flag stockFlag) {
	flag = stockFlag{kind: kind, hidden: "false"}
	for _, e := range lit.Elts {
		kv := e.(*ast.KeyValueExpr)
		switch kv.Key.(*ast.Ident).Name {
		case "Name":
			name, _ = textOf(kv.Value, vars)
		case "Usage":
			flag.usage, _ = textOf(kv.Value, vars)
		case "Hidden":
			flag.hidden = "an expression"
			if id, ok := kv.Value.(*ast.Ident); ok {
				flag.hidden = id.Name
			}
		case "Sources":
			flag.env, _ = textOf(kv.Value.(*ast.CallExpr).Args[0], vars)
		}
	}
	return name, flag
}

func textOf(e ast.Expr, vars map[string]string) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil && e.Kind == token.STRING
	case *ast.Ident:
		s, ok := vars[e.Name]
		return s, ok
	case *ast.BinaryExpr:
		a, ok := textOf(e.X, vars)
		b, ok2 := textOf(e.Y, vars)
		return a + b, ok && ok2
	}
	return "", false
}

// ourFlags are those of our command line, the profiler's included.
func ourFlags(t *testing.T) map[string]cli.Flag {
	t.Helper()
	app := newApp(stockDefaults(t))
	out := map[string]cli.Flag{}
	for _, f := range app.Flags {
		name := f.Names()[0]
		require.NotContains(t, out, name, "a flag that is there twice")
		out[name] = f
	}
	return out
}

// stockDefaults are the settings of a machine without a config file.
func stockDefaults(t *testing.T) settings {
	t.Helper()
	var s settings
	setDefaults(&s.Config)
	return s
}

// moduleDir is where the source of a module that we depend on lies.
func moduleDir(t *testing.T, module string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	require.NoError(t, err)
	dir := strings.TrimSpace(string(out))
	require.NotEmpty(t, dir, "%s is not in the module cache", module)
	return dir
}

package depcheck

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Package is what the rules look at.
type Package struct {
	Path        string // relative to the module
	Name        string // of the package clause
	Imports     []string
	TestImports []string // of its tests, in the package and outside
}

// listed is the part that is used of what go list prints.
type listed struct {
	ImportPath     string
	Name           string
	Dir            string
	Imports        []string
	TestImports    []string
	XTestImports   []string
	IgnoredGoFiles []string
}

// Load lists the packages of the module in dir. Files that build constraints
// leave out are read as well, so that a rule can't be escaped behind a tag.
// Dependencies need not be there.
func Load(ctx context.Context, dir, module string) ([]Package, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-e",
		"-json=ImportPath,Name,Dir,Imports,TestImports,XTestImports,IgnoredGoFiles", "./...")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOWORK=off", "GOPROXY=off")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w: %s", dir, err, stderr.Bytes())
	}
	var pkgs []Package
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l listed
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, fmt.Errorf("output of go list: %w", err)
		}
		p, err := l.toPackage(module)
		if err != nil {
			return nil, err
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("go list found no package in %s", dir)
	}
	return pkgs, nil
}

func (l listed) toPackage(module string) (Package, error) {
	path, ok := relative(module, l.ImportPath)
	if !ok {
		return Package{}, fmt.Errorf("package %s is not in module %s", l.ImportPath, module)
	}
	p := Package{
		Path: path, Name: l.Name, Imports: slices.Clone(l.Imports),
		TestImports: slices.Concat(l.TestImports, l.XTestImports),
	}
	for _, name := range l.IgnoredGoFiles {
		imports, err := importsOf(filepath.Join(l.Dir, name))
		if err != nil {
			return Package{}, err
		}
		if strings.HasSuffix(name, "_test.go") {
			p.TestImports = append(p.TestImports, imports...)
		} else {
			p.Imports = append(p.Imports, imports...)
		}
	}
	for _, list := range []*[]string{&p.Imports, &p.TestImports} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return p, nil
}

// importsOf reads the import paths of one Go file.
func importsOf(file string) ([]string, error) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, spec := range f.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, fmt.Errorf("%s: import %s: %w", file, spec.Path.Value, err)
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// relative is path within the module ("." for the module itself).
func relative(module, path string) (string, bool) {
	if path == module {
		return ".", true
	}
	return strings.CutPrefix(path, module+"/")
}

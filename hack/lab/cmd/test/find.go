package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strings"
)

// stressNames are what tests of concurrency are called.
var stressNames = regexp.MustCompile(`Stress|Concurren|Race|Parallel|Chaos|ManyReaders|Readers|Blocked|Storm|AtATime|Mix`)

// allocNames are what tests are called that count allocations, or that do less under
// the race detector.
var allocNames = regexp.MustCompile(`Alloc|^TestFaults$|^TestCancels$|` + plainNames)

// plainNames are tests of one goroutine that take a minute and more under the race
// detector, which has nothing to find there.
const plainNames = `^TestGzip$|^TestTenMillionEntries$`

// function is a test or fuzz target.
type function struct {
	pkg  string // ./path
	name string
}

// find lists the functions of test files whose names begin with prefix, by path
// and name. It reads sources: asking the tests themselves would build them all.
func find(root, prefix string) ([]function, error) {
	var found []function
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, decl := range file.Decls {
			if f, ok := decl.(*ast.FuncDecl); ok && f.Recv == nil && strings.HasPrefix(f.Name.Name, prefix) {
				found = append(found, function{pkg: "./" + rel, name: f.Name.Name})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find %s functions: %w", prefix, err)
	}
	return found, nil
}

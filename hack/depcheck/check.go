package depcheck

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Violation is one breach of a rule.
type Violation struct {
	Package string // "" when a rule itself is at fault
	Import  string // "" when it is not about an import
	Rule    string
}

func (v Violation) String() string {
	switch {
	case v.Package == "":
		return v.Rule
	case v.Import == "":
		return v.Package + ": " + v.Rule
	}
	return fmt.Sprintf("%s imports %s: %s", v.Package, v.Import, v.Rule)
}

// checker is one run over a list of packages.
type checker struct {
	rules Rules
	found []Violation
	used  map[Allowance]bool
}

// Check holds pkgs to the rules and returns what breaks one, sorted.
func Check(rules Rules, pkgs []Package) []Violation {
	c := &checker{rules: rules, used: map[Allowance]bool{}}
	for _, p := range pkgs {
		c.name(p)
		c.production(p)
		c.tests(p)
	}
	for _, a := range rules.Allowances {
		if !c.used[a] {
			c.add("", "", fmt.Sprintf("nothing needs the allowance of %s for %s", a.From, a.Import))
		}
	}
	slices.SortFunc(c.found, func(a, b Violation) int { return strings.Compare(a.String(), b.String()) })
	return c.found
}

func (c *checker) add(pkg, imp, rule string) {
	c.found = append(c.found, Violation{Package: pkg, Import: imp, Rule: rule})
}

// name checks what a package is called.
func (c *checker) name(p Package) {
	for _, bad := range c.rules.BadNames {
		if p.Name == bad || path.Base(p.Path) == bad {
			c.add(p.Path, "", fmt.Sprintf("a package named %s has no idea of its own", bad))
			return
		}
	}
}

// production checks the imports of a package's own files.
func (c *checker) production(p Package) {
	from := p.Path
	if isTestPackage(from) {
		// A package of test parts stands beside its parent.
		from = path.Dir(from)
	}
	arrow, known := c.arrow(from)
	if !known {
		c.add(p.Path, "", "it is in no row of the table of arrows")
		return
	}
	for _, imp := range p.Imports {
		if c.allowed(p.Path, imp) {
			continue
		}
		if to, ours := relative(c.rules.Module, imp); ours {
			c.arrowTo(p, arrow, from, to, imp)
			continue
		}
		if isTestPackage(p.Path) || within("hack/...", p.Path) {
			continue
		}
		if imp == "testing" || isTestPackage(imp) {
			c.add(p.Path, imp, "it is for tests only")
		}
		for _, d := range c.rules.Doors {
			if slices.ContainsFunc(d.Imports, func(i string) bool { return within(i+"/...", imp) }) && !withinAny(d.In, from) {
				c.add(p.Path, imp, fmt.Sprintf("the door to %s is in %s", d.Name, doors(d.In)))
			}
		}
	}
}

// arrowTo checks one import of a package of ours.
func (c *checker) arrowTo(p Package, arrow Arrow, from, to, imp string) {
	switch {
	case isTestPackage(to):
		if !isTestPackage(p.Path) && !within("hack/...", p.Path) {
			c.add(p.Path, imp, "it is for tests only")
		}
	case isTestPackage(p.Path) && to == from:
	case strings.HasSuffix(arrow.From, "/...") && within(arrow.From, to):
	case withinAny(arrow.To, to):
	default:
		c.add(p.Path, imp, "no arrow goes there from "+arrow.From)
	}
}

// tests checks the imports of a package's tests, which are free but for one rule.
func (c *checker) tests(p Package) {
	if within("hack/...", p.Path) {
		return
	}
	for _, imp := range p.TestImports {
		if to, ours := relative(c.rules.Module, imp); ours && within("hack/...", to) {
			c.add(p.Path, imp, "nothing uses hack")
		}
	}
}

// arrow finds the row for a package, the most specific one.
func (c *checker) arrow(pkg string) (best Arrow, found bool) {
	for _, a := range c.rules.Arrows {
		if within(a.From, pkg) && (!found || len(a.From) > len(best.From)) {
			best, found = a, true
		}
	}
	return best, found
}

// allowed looks for an exception and notes its use.
func (c *checker) allowed(pkg, imp string) bool {
	for _, a := range c.rules.Allowances {
		if a.From == pkg && a.Import == imp {
			c.used[a] = true
			return true
		}
	}
	return false
}

// isTestPackage reports whether a package exists for tests: its name ends with
// "test", as in blobtest or httptest, or says so in another way.
func isTestPackage(pkg string) bool {
	base := path.Base(pkg)
	switch base {
	case "latest":
		return false
	case "testsuite", "testutil", "testutils":
		return true
	}
	return strings.HasSuffix(base, "test")
}

// within reports whether pkg is what pattern names: a package, a subtree "x/..."
// with x itself, or "..." for all.
func within(pattern, pkg string) bool {
	if pattern == "..." {
		return true
	}
	tree, isTree := strings.CutSuffix(pattern, "/...")
	return pkg == tree || isTree && strings.HasPrefix(pkg, tree+"/")
}

func withinAny(patterns []string, pkg string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return within(p, pkg) })
}

func doors(in []string) string {
	if len(in) == 0 {
		return "tests and hack only"
	}
	return strings.Join(in, ", ")
}

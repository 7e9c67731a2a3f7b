package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/lazykit/lazykit/hack/lab"
)

// knownPackages are the packages of BuildKit with integration tests that take
// the daemon from PATH.
var knownPackages = []string{"client", "frontend/dockerfile", "solver", "cmd/buildctl"}

// layout names the places of one BuildKit version under the cache directory.
type layout struct {
	repo    string // directory of our go.mod
	root    string // <cache>/upstream
	version string
}

func (l layout) src() string          { return filepath.Join(l.root, l.version, "src") }
func (l layout) bin() string          { return filepath.Join(l.root, l.version, "bin") }
func (l layout) results() string      { return filepath.Join(l.root, l.version, "results") }
func (l layout) ours() string         { return filepath.Join(l.root, "ours") }
func (l layout) mirror(b base) string { return filepath.Join(l.root, "mirror-"+string(b)+"-"+recipe) }

// testBinary is where the compiled tests of a package lie.
func (l layout) testBinary(pkg string) string {
	return filepath.Join(l.bin(), strings.ReplaceAll(pkg, "/", "-")+".test")
}

// sideDir holds nothing but a buildkitd: it is put in front of PATH to choose
// a side.
func (l layout) sideDir(s side) string {
	return filepath.Join(l.root, l.version, "side-"+string(s))
}

// buildStock makes what is missing of the binaries that both sides share, and
// stock buildkitd. They depend on the version only, so a file that is there is
// right.
func (l layout) buildStock(ctx context.Context, packages []string) error {
	if err := os.MkdirAll(l.bin(), 0o755); err != nil {
		return err
	}
	programs, err := lab.Stock(ctx)
	if err != nil {
		return err
	}
	if err := relink(programs.Buildkitd, filepath.Join(l.bin(), "buildkitd")); err != nil {
		return err
	}
	if err := relink(programs.Buildctl, filepath.Join(l.bin(), "buildctl")); err != nil {
		return err
	}
	if err := l.makeOnce(ctx, l.repo, filepath.Join(l.bin(), "registry"), "build", "./hack/upstream/registry"); err != nil {
		return err
	}
	for _, pkg := range packages {
		if err := l.makeOnce(ctx, l.src(), l.testBinary(pkg), "test", "-c", "./"+pkg); err != nil {
			return err
		}
	}
	return l.linkRunc()
}

// makeOnce runs "go ARGS..." in dir for an output that is not there yet. It
// appears whole, also when the build is interrupted.
func (l layout) makeOnce(ctx context.Context, dir, out string, args ...string) error {
	if _, err := os.Stat(out); err == nil {
		return nil
	}
	step("building %s", filepath.Base(out))
	args = slices.Insert(args, len(args)-1, "-o", out+".part")
	if err := runQuiet(ctx, dir, []string{"CGO_ENABLED=0"}, "go", args...); err != nil {
		return err
	}
	return os.Rename(out+".part", out)
}

// relink makes link a symbolic link to target, whatever it was.
func relink(target, link string) error {
	if err := os.Remove(link); err != nil && !os.IsNotExist(err) {
		return err
	}
	return os.Symlink(target, link)
}

// linkRunc gives the machine's runc the name that buildkitd looks for first.
func (l layout) linkRunc() error {
	link := filepath.Join(l.bin(), "buildkit-runc")
	if _, err := os.Stat(link); err == nil {
		return nil
	}
	for _, name := range []string{"buildkit-runc", "runc"} {
		if path, err := exec.LookPath(name); err == nil {
			return relink(path, link)
		}
	}
	return fmt.Errorf("no runc in PATH: apt-get install runc")
}

// buildOurs builds our daemon (the go command decides what is stale) and
// returns its path.
func (l layout) buildOurs(ctx context.Context, race bool) (string, error) {
	out := filepath.Join(l.ours(), "buildkitd")
	if race {
		step("building our buildkitd with the race detector")
		out += "-race"
		return out, runQuiet(ctx, l.repo, []string{"CGO_ENABLED=1"}, "go", "build", "-race", "-o", out, "./cmd/buildkitd")
	}
	step("building our buildkitd")
	return out, runQuiet(ctx, l.repo, []string{"CGO_ENABLED=0"}, "go", "build", "-o", out, "./cmd/buildkitd")
}

// useDaemon makes path the buildkitd of a side.
func (l layout) useDaemon(s side, path string) error {
	path, err := filepath.Abs(path)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("buildkitd of %s: %w", s, err)
	}
	dir := l.sideDir(s)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return relink(path, filepath.Join(dir, "buildkitd"))
}

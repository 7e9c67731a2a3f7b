// test runs all checks and tests of this repository and says how many passed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// runner runs stages and counts what they find.
type runner struct {
	root     string // of the repository
	logs     string // directory for full output
	fuzztime time.Duration
	verbose  bool
	tally    tally
}

// stage is a part of the whole; its failures are in the tally, and its error
// says that it could not be run at all.
type stage struct {
	name string
	what string
	run  func(*runner, context.Context) error
}

var stages = []stage{
	{"fmt", "gofmt has nothing to say", (*runner).gofmt},
	{"vet", "go vet has nothing to say", (*runner).vet},
	{"unit", "the packages' tests, with the race detector", (*runner).unit},
	{"alloc", "tests for which the race detector is in the way", (*runner).alloc},
	{"stress", "tests of concurrency again, on one processor", (*runner).stress},
	{"fuzz", "every fuzz target for a while", (*runner).fuzz},
	{"e2e", "builds on real images", (*runner).e2e},
	{"faults", "builds behind a faulty registry, killed daemons, a daemon used for long; in their short forms", (*runner).faults},
	{"buildx", "real buildx and a real Docker engine", (*runner).buildx},
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	r := &runner{}
	var known []string
	for _, s := range stages {
		known = append(known, s.name)
	}
	chosen := flag.String("stages", strings.Join(known, ","), "what to run, separated by commas")
	flag.DurationVar(&r.fuzztime, "fuzztime", fuzztime(), "time for each fuzz target; $FUZZTIME is the default's source")
	flag.BoolVar(&r.verbose, "v", false, "show every test")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: hack/test [FLAGS]\n\nRuns as root on Debian with Go; installs the packages that are missing. The stages:\n\n")
		for _, s := range stages {
			fmt.Fprintf(flag.CommandLine.Output(), "  %-8s %s\n", s.name, s.what)
		}
		fmt.Fprintln(flag.CommandLine.Output())
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := r.main(ctx, *chosen); err != nil {
		fmt.Fprintln(os.Stderr, "test:", err)
		os.Exit(1)
	}
}

// fuzztime is $FUZZTIME, or what all targets together have time for in CI.
func fuzztime() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("FUZZTIME")); err == nil {
		return d
	}
	return 15 * time.Second
}

func (r *runner) main(ctx context.Context, chosen string) error {
	run := map[string]bool{}
	for _, name := range strings.Split(chosen, ",") {
		run[name] = true
	}
	for _, s := range stages {
		delete(run, s.name)
	}
	if len(run) > 0 {
		return fmt.Errorf("unknown stages in %q", chosen)
	}
	if err := r.setUp(ctx); err != nil {
		return err
	}
	begin := time.Now()
	for _, s := range stages {
		if !strings.Contains(","+chosen+",", ","+s.name+",") {
			continue
		}
		fmt.Printf("== %s: %s\n", s.name, s.what)
		start := time.Now()
		if err := s.run(r, ctx); err != nil {
			r.tally.fail(s.name, err.Error())
			fmt.Printf("FAIL %s: %v\n", s.name, err)
		}
		fmt.Printf("== %s took %.0f s\n\n", s.name, time.Since(start).Seconds())
		if ctx.Err() != nil {
			break
		}
	}
	r.tally.summary(time.Since(begin))
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(r.tally.failed) > 0 {
		return fmt.Errorf("%d failed; full output is in %s", len(r.tally.failed), r.logs)
	}
	return nil
}

func (r *runner) setUp(ctx context.Context) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed: tests mount file systems and start containers")
	}
	// gcc is for the race detector.
	if err := lab.Install(ctx, "runc", "fuse3", "erofs-utils", "gcc", "libc6-dev", "git", "ca-certificates"); err != nil {
		return err
	}
	var err error
	if r.root, err = lab.RepoRoot(); err != nil {
		return err
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return err
	}
	r.logs = filepath.Join(cache, "test")
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		return fmt.Errorf("make the logs' directory: %w", err)
	}
	if err := os.Chdir(r.root); err != nil {
		return fmt.Errorf("enter the repository: %w", err)
	}
	// Tests that could run without privileges skip without them: not here.
	os.Setenv("LAZYKIT_PRIVILEGED", "1")
	os.Setenv("LAZYKIT_CACHE", cache)
	// As the daemons are built: Go keeps what it compiled with cgo apart.
	os.Setenv("CGO_ENABLED", "0")
	out, err := exec.CommandContext(ctx, "go", "version").Output()
	if err != nil {
		return fmt.Errorf("run go: %w", err)
	}
	fmt.Printf("%s, %d CPUs, tests as root\n\n", strings.TrimSpace(string(out)), runtime.NumCPU())
	return nil
}

func (r *runner) gofmt(ctx context.Context) error {
	// Through git where it is one: caches and the like hold foreign files.
	args := []string{"-l", "."}
	if out, err := exec.CommandContext(ctx, "git", "ls-files", "--cached", "--others", "--exclude-standard", "*.go").Output(); err == nil {
		args = []string{"-l"}
		for _, file := range strings.Fields(string(out)) {
			if _, err := os.Stat(file); err == nil {
				args = append(args, file)
			}
		}
	}
	out, err := exec.CommandContext(ctx, "gofmt", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("gofmt: %w\n%s", err, out)
	}
	r.check("gofmt", string(out))
	return nil
}

func (r *runner) vet(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "go", "vet", "./...").CombinedOutput()
	if err == nil {
		out = nil // what it says then is about downloads
	}
	r.check("go vet", string(out))
	return nil
}

// check counts a check that passes by saying nothing.
func (r *runner) check(name, complaint string) {
	if complaint == "" {
		r.tally.passed++
		fmt.Println("ok  ", name)
		return
	}
	r.tally.fail(name, "")
	fmt.Printf("FAIL %s:\n%s\n", name, complaint)
}

// unit runs the tests of all packages that need nothing but this machine.
func (r *runner) unit(ctx context.Context) error {
	// One test compares the daemon's help with stock's.
	stock, err := lab.Stock(ctx)
	if err != nil {
		return err
	}
	os.Setenv("STOCK_BUILDKITD", stock.Buildkitd)
	out, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
	if err != nil {
		return fmt.Errorf("list the packages: %w", err)
	}
	args := []string{"-race", "-timeout=10m", "-skip=" + plainNames}
	for _, pkg := range strings.Fields(string(out)) {
		if !strings.Contains(pkg, "/hack/e2e") && !strings.Contains(pkg, "/hack/buildx") {
			args = append(args, pkg)
		}
	}
	return r.goTest(ctx, "unit", args...)
}

// stress runs the tests of concurrency in the order of one processor, which
// finds other races than many do.
func (r *runner) stress(ctx context.Context) error {
	return r.named(ctx, "stress", stressNames, "-race", "-cpu=1")
}

// alloc runs the tests that the race detector, which allocates itself, made
// skip in unit, and those that were left out there.
func (r *runner) alloc(ctx context.Context) error {
	return r.named(ctx, "alloc", allocNames)
}

// named runs the production packages' tests that are called after a pattern,
// and fails where there is none.
func (r *runner) named(ctx context.Context, stage string, pattern *regexp.Regexp, args ...string) error {
	found, err := find(r.root, "Test")
	if err != nil {
		return err
	}
	args = append(args, "-timeout=10m", "-run="+pattern.String())
	seen := map[string]bool{}
	for _, f := range found {
		if pattern.MatchString(f.name) && !seen[f.pkg] && !strings.HasPrefix(f.pkg, "./hack/") {
			seen[f.pkg] = true
			args = append(args, f.pkg)
		}
	}
	if len(seen) == 0 {
		return errors.New("no test is called after " + pattern.String())
	}
	return r.goTest(ctx, stage, args...)
}

func (r *runner) e2e(ctx context.Context) error {
	// Made before, so that no test's time goes into it.
	base, err := lab.FindBase("demo")
	if err != nil {
		return err
	}
	if _, err := lab.MakeImage(ctx, base, lab.EStargz); err != nil {
		return err
	}
	if _, err := lab.Stock(ctx); err != nil {
		return err
	}
	return r.goTest(ctx, "e2e", "-timeout=20m", "./hack/e2e/...")
}

// faults runs the programs that let things go wrong, side by side: they mostly
// wait, and what they look for does not depend on how fast a machine is.
func (r *runner) faults(ctx context.Context) error {
	type result struct {
		name, complaint string
		err             error
	}
	programs := [][]string{{"hack/faults", "-short"}, {"hack/crash", "-short"}, {"hack/soak", "-for", "1m"}}
	results := make(chan result, len(programs))
	for _, args := range programs {
		go func() {
			complaint, err := r.program(ctx, args)
			results <- result{strings.Join(args, " "), complaint, err}
		}()
	}
	var errs []error
	for range programs {
		v := <-results
		if v.err != nil {
			errs = append(errs, v.err)
			continue
		}
		r.check(v.name, v.complaint)
	}
	return errors.Join(errs...)
}

// program runs one to its end, keeps what it says, and returns what is wrong.
func (r *runner) program(ctx context.Context, args []string) (complaint string, err error) {
	out, runErr := exec.CommandContext(ctx, args[0], args[1:]...).CombinedOutput()
	log := filepath.Join(r.logs, filepath.Base(args[0])+".log")
	if err := os.WriteFile(log, out, 0o644); err != nil {
		return "", fmt.Errorf("keep what %s said: %w", args[0], err)
	}
	if runErr != nil {
		complaint = fmt.Sprintf("%v; all of it is in %s\n%s", runErr, log, out[max(0, len(out)-4000):])
	}
	return complaint, nil
}

// buildx lets hack/buildx-test install what it needs and run its tests.
func (r *runner) buildx(ctx context.Context) error {
	return r.json(ctx, "buildx", exec.CommandContext(ctx, "hack/buildx-test", "-json"))
}

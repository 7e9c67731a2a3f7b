package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// options are the command line.
type options struct {
	mode     string
	base     string
	packages string
	run      string
	daemon   string
	cache    string
	repo     string
	parallel int
	times    int
	timeout  time.Duration
	fresh    bool
	stock    bool
	race     bool
}

func main() {
	var o options
	flag.StringVar(&o.mode, "mode", "stargz", "value of --oci-worker-snapshotter: stargz, overlayfs or native")
	flag.StringVar(&o.base, "base", string(baseGzip), "layers of the stand-in images: gzip or estargz")
	flag.StringVar(&o.packages, "packages", "client", "comma-separated: "+strings.Join(knownPackages, ", ")+", or all")
	flag.StringVar(&o.run, "run", "", "only test functions whose name matches this regular expression")
	flag.StringVar(&o.daemon, "buildkitd", "", "our daemon (default: built from ./cmd/buildkitd)")
	flag.StringVar(&o.cache, "cache", "", "cache directory (default: $LAZYKIT_CACHE, or .cache in the repository)")
	flag.StringVar(&o.repo, "repo", ".", "the repository")
	flag.IntVar(&o.parallel, "parallel", 3, "tests at a time; the harness runs at most GOMAXPROCS daemons at once")
	flag.IntVar(&o.times, "times", 1, "how often ours is run")
	flag.DurationVar(&o.timeout, "timeout", 40*time.Minute, "for one run of one package's tests")
	flag.BoolVar(&o.fresh, "fresh", false, "run stock again, whatever is stored")
	flag.BoolVar(&o.stock, "stock-only", false, "run (and store) stock, and nothing of ours")
	flag.BoolVar(&o.race, "race", false, "build our daemon with the race detector; a report of it that names our code counts as a difference")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	same, err := o.main(ctx)
	if err != nil {
		fmt.Fprintln(os.Stderr, "upstream-test:", err)
		os.Exit(2)
	}
	if !same {
		os.Exit(1)
	}
}

// main runs everything and tells whether ours passes all that stock passes.
func (o options) main(ctx context.Context) (bool, error) {
	if os.Geteuid() != 0 {
		return false, errors.New("must be root: the daemons mount file systems and run containers")
	}
	packages, err := o.packageList()
	if err != nil {
		return false, err
	}
	f, err := newFilter(o.mode, o.run)
	if err != nil {
		return false, err
	}
	kind := base(o.base)
	if kind != baseGzip && kind != baseEstargz {
		return false, fmt.Errorf("--base %s: want gzip or estargz", o.base)
	}
	l, err := o.prepare(ctx, packages)
	if err != nil {
		return false, err
	}
	if err := fillMirror(ctx, l, kind); err != nil {
		return false, fmt.Errorf("stand-in images: %w", err)
	}

	same := true
	for _, pkg := range packages {
		c := comparison{options: o, layout: l, mirror: l.mirror(kind), pkg: pkg, filter: f}
		ok, err := c.run(ctx)
		if err != nil {
			return false, fmt.Errorf("%s: %w", pkg, err)
		}
		same = same && ok
	}
	return same, nil
}

func (o options) packageList() ([]string, error) {
	if o.packages == "all" {
		return knownPackages, nil
	}
	packages := strings.Split(o.packages, ",")
	for _, p := range packages {
		if !slices.Contains(knownPackages, p) {
			return nil, fmt.Errorf("--packages: %q is none of %s", p, strings.Join(knownPackages, ", "))
		}
	}
	return packages, nil
}

// prepare builds what is missing and points both sides at their daemon.
func (o options) prepare(ctx context.Context, packages []string) (layout, error) {
	repo, err := filepath.Abs(o.repo)
	if err != nil {
		return layout{}, err
	}
	if o.cache != "" {
		if err := os.Setenv("LAZYKIT_CACHE", o.cache); err != nil {
			return layout{}, err
		}
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return layout{}, err
	}
	mod, err := findModule(ctx, repo, buildkitModule)
	if err != nil {
		return layout{}, err
	}
	l := layout{repo: repo, root: filepath.Join(cache, "upstream"), version: mod.Version}
	if err := writableCopy(mod, l.src()); err != nil {
		return l, err
	}
	if err := l.buildStock(ctx, packages); err != nil {
		return l, err
	}
	if err := l.useDaemon(stock, filepath.Join(l.bin(), "buildkitd")); err != nil {
		return l, err
	}
	if o.stock {
		return l, nil
	}
	daemon := o.daemon
	if daemon == "" {
		if daemon, err = l.buildOurs(ctx, o.race); err != nil {
			return l, err
		}
	}
	return l, l.useDaemon(ours, daemon)
}

// step tells the person who waits what is being done.
func step(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "== "+format+"\n", args...)
}

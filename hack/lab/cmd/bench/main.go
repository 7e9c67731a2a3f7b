// bench measures builds on real images: this repository's buildkitd beside
// stock BuildKit's, on fresh daemons, behind links of known speed.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lazykit/lazykit/hack/lab"
)

const usage = `usage: hack/bench COMMAND [FLAGS]

  cold   first build of a machine: a fresh daemon, nothing in its cache
  cache  what the cache manager does: mixed chains, steps, merges, pushes, caches

hack/bench COMMAND -h shows the flags. Figures depend on the machine: compare the
rows of one run, not of two.
`

var commands = map[string]func(context.Context, []string) error{"cold": runCold, "cache": runCacheBench}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func runCold(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("cold", flag.ExitOnError)
	n := flags.Int("n", 3, "runs of each case, of which the median is shown")
	ours := flags.String("ours", "", "buildkitd to measure as ours (default: built from ./cmd/buildkitd)")
	stock := flags.String("stock", "", "stock buildkitd (default: built from BuildKit's module)")
	variantNames := flags.String("variants", "ours,stock-stargz,stock-overlayfs", "daemons, separated by commas: "+strings.Join(names(variants), ", "))
	workloadNames := flags.String("workloads", strings.Join(names(workloads), ","), "builds, separated by commas: "+strings.Join(names(workloads), ", "))
	networkNames := flags.String("networks", strings.Join(names(networks), ","), "links, separated by commas: "+strings.Join(names(networks), ", "))
	format := flags.String("format", "estargz", "layer format of the base image: estargz, zstdchunked, gzip, stargz")
	jsonPath := flags.String("json", "", "file for every run's figures in JSON")
	check := flags.Bool("check", false, "fail where ours is slower than stock stargz, sends more requests or bytes, or uses 100 MB of memory")
	logs := flags.String("logs", "", "directory for the daemons' logs, which are discarded otherwise")
	flags.Parse(args)

	b := &bench{n: *n, logs: *logs}
	var err error
	if b.variants, err = choose("variant", variants, *variantNames); err != nil {
		return err
	}
	if b.workloads, err = choose("workload", workloads, *workloadNames); err != nil {
		return err
	}
	if b.networks, err = choose("network", networks, *networkNames); err != nil {
		return err
	}
	layers, err := lab.ParseFormat(*format)
	if err != nil {
		return err
	}
	if err := b.setUp(ctx, layers, *ours, *stock); err != nil {
		return err
	}
	defer b.registry.Stop()
	runErr := b.run(ctx)
	return conclude(b.report(), *jsonPath, runErr, *check)
}

// findings are what a subcommand has measured.
type findings interface {
	markdown() string
	check() error // names the promises that are not kept
}

// conclude shows the figures, also those of runs of which some have failed.
func conclude(f findings, jsonPath string, runErr error, check bool) error {
	if jsonPath != "" {
		if err := writeJSON(jsonPath, f); err != nil {
			return err
		}
	}
	fmt.Print(f.markdown())
	if runErr != nil || !check {
		return runErr
	}
	return f.check()
}

// named is anything that flags choose by name.
type named interface{ name() string }

func names[T named](all []T) []string {
	var out []string
	for _, v := range all {
		out = append(out, v.name())
	}
	return out
}

// choose finds values by the names in list, in the list's order.
func choose[T named](what string, all []T, list string) ([]T, error) {
	var out []T
	for _, name := range strings.Split(list, ",") {
		found := false
		for _, v := range all {
			if v.name() == name {
				out, found = append(out, v), true
			}
		}
		if !found {
			return nil, fmt.Errorf("unknown %s %q (known: %s)", what, name, strings.Join(names(all), ", "))
		}
	}
	return out, nil
}

package main

import (
	"context"
	"errors"
	"flag"
	"strings"

	"github.com/lazykit/lazykit/hack/lab"
)

func runCold(ctx context.Context, args []string) error {
	return runBuilds(ctx, args, coldCommand)
}

func runLimit(ctx context.Context, args []string) error {
	return runBuilds(ctx, args, limitCommand)
}

// buildsCommand is a command that measures the four builds.
type buildsCommand struct {
	id, variants, networks, check string
	limits                        bool
}

var (
	coldCommand = buildsCommand{
		id: "cold", variants: "ours,ours-profile,stock-stargz,stock-overlayfs,warm-overlayfs", networks: "shaped,far",
		check: "fail where ours is slower than stock stargz, sends more requests or bytes, uses 100 MB of memory, or breaks a bound of docs/bench.md",
	}
	limitCommand = buildsCommand{
		id: "limit", variants: "ours-profile,warm-overlayfs", networks: "shaped", limits: true,
		check: "fail where ours with a profile waits for more than twice the floor",
	}
)

func runBuilds(ctx context.Context, args []string, c buildsCommand) (err error) {
	flags := flag.NewFlagSet(c.id, flag.ExitOnError)
	n := flags.Int("n", 3, "runs of each case, of which the median is shown")
	ours := flags.String("ours", "", "buildkitd to measure as ours (default: built from ./cmd/buildkitd)")
	stock := flags.String("stock", "", "stock buildkitd (default: built from BuildKit's module)")
	variantNames := flags.String("variants", c.variants, "daemons, separated by commas: "+strings.Join(names(coldVariants), ", "))
	workloadNames := flags.String("workloads", strings.Join(names(workloads), ","), "builds, separated by commas")
	networkNames := flags.String("networks", c.networks, "links, separated by commas: "+strings.Join(names(networks), ", "))
	rtt := flags.Duration("rtt", 0, "round trip time of the links that have one, instead of their own")
	format := flags.String("format", "estargz", "layer format of the base image: estargz, zstdchunked, gzip, stargz")
	jsonPath := flags.String("json", "", "file for every run's figures in JSON")
	check := flags.Bool("check", false, c.check)
	logs := flags.String("logs", "", "directory for the daemons' logs, which are discarded otherwise")
	flags.Parse(args)

	b := &bench{n: *n, logs: *logs, limits: c.limits}
	if b.variants, err = choose("variant", coldVariants, *variantNames); err != nil {
		return err
	}
	if b.workloads, err = choose("workload", workloads, *workloadNames); err != nil {
		return err
	}
	if b.networks, err = chooseNetworks(*networkNames, *rtt); err != nil {
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
	defer func() { err = errors.Join(err, b.end()) }()
	runErr := b.run(ctx)
	return conclude(b.report(), *jsonPath, runErr, *check)
}

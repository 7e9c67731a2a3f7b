// bench measures builds on real images: this repository's buildkitd beside
// stock BuildKit's, on fresh daemons, behind links of known speed.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
)

const usage = `usage: hack/bench COMMAND [FLAGS]

  cold    first build of a machine: a fresh daemon, nothing in its cache
  limit   the least that those builds can take, beside what they do take
  scan    first build of a machine that reads everything
  share   first builds that read 1 to 100 % of the base, and a plot
  warm    steps on a base that the kernel knows already
  steps   ten small steps
  memory  50 images with two million entries, mounted
  export  the tar of a lazy base, for docker
  cache   what the cache manager does: mixed chains, merges, pushes, caches

hack/bench COMMAND -h shows the flags. Figures depend on the machine: compare the
rows of one run, not of two.
`

// command finds what a name stands for; nil without.
func command(name string) func(context.Context, []string) error {
	for _, c := range suites {
		if c.id == name {
			return c.run
		}
	}
	return map[string]func(context.Context, []string) error{"cold": runCold, "limit": runLimit}[name]
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(os.Args) < 2 || command(os.Args[1]) == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := command(os.Args[1])(ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
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

// faults builds behind a registry that goes wrong in every way that it can, at every
// moment of a build, and says what this repository's buildkitd and stock BuildKit's
// survive.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lazykit/lazykit/hack/lab"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.BoolVar(&o.short, "short", false, "each fault at the moments where it matters most, in about three minutes")
	flag.DurationVar(&o.length, "for", 0, "after the matrix, run random cells for so long, such as 1h")
	flag.Uint64Var(&o.seed, "seed", uint64(time.Now().UnixNano()), "of where and when faults strike")
	flag.BoolVar(&o.stock, "stock", false, "run stock buildkitd with its stargz snapshotter beside ours")
	flag.IntVar(&o.parallel, "parallel", 3, "cells at the same time: they mostly wait")
	flag.StringVar(&o.match, "match", "", "only cells whose names contain one of these words, with commas between them")
	flag.DurationVar(&o.limit, "limit", 90*time.Second, "a build that takes longer has hung; long outages have more")
	flag.BoolVar(&o.verbose, "v", false, "show why builds failed, and where to find the daemons' logs")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: hack/faults [FLAGS]\n\n"+
			"Needs root, FUSE and runc. Prints a table in Markdown, and fails when a build of ours fails\n"+
			"that must survive. The same seed repeats the same faults.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "faults:", err)
		os.Exit(1)
	}
}

type options struct {
	short, stock, verbose bool
	length, limit         time.Duration
	parallel              int
	seed                  uint64
	match                 string
}

// subject is a daemon to try.
type subject struct{ name, program string }

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for mounts")
	}
	ours, err := lab.Ours(ctx)
	if err != nil {
		return err
	}
	subjects := []subject{{"ours", ours.Buildkitd}}
	if o.stock {
		stock, err := lab.Stock(ctx)
		if err != nil {
			return err
		}
		subjects = append(subjects, subject{"stock", stock.Buildkitd})
	}
	l, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer l.close()
	fmt.Printf("seed %d\n\n", o.seed)
	r := &report{subjects: subjects}
	r.head()
	var running errgroup.Group
	running.SetLimit(max(o.parallel, 1))
	n := uint64(0)
	start := func(c cell) {
		n++
		seed := o.seed + n
		running.Go(func() error {
			if out := l.try(ctx, c, seed, subjects); ctx.Err() == nil {
				r.add(c, out)
			}
			return nil
		})
	}
	for _, c := range cells(o) {
		start(c)
	}
	rnd := rand.New(rand.NewPCG(o.seed, 2))
	for end := time.Now().Add(o.length); time.Now().Before(end) && ctx.Err() == nil; {
		start(randomCell(rnd))
	}
	running.Wait() // outcomes are the report's
	if err := ctx.Err(); err != nil {
		return err
	}
	return r.conclude(o.seed)
}

// outcome is how one daemon fared in one cell.
type outcome struct {
	err  error
	wall time.Duration
	hits int // requests that went wrong
	logs string
}

func (o outcome) survived() bool { return o.err == nil }

// report prints the table as cells end. Its methods may be called from several goroutines.
type report struct {
	subjects []subject

	mu       sync.Mutex
	cells    int
	survived map[string]int
	failed   []string // cells that ours had to survive
}

func (r *report) head() {
	r.survived = map[string]int{}
	line, rule := "| fault | moment | workload |", "|---|---|---|"
	for _, s := range r.subjects {
		line, rule = line+" "+s.name+" |", rule+"---|"
	}
	fmt.Println(line + "\n" + rule)
}

func (r *report) add(c cell, outcomes []outcome) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cells++
	line := fmt.Sprintf("| %s | %s | %s |", c.fault.name, c.moment, c.work)
	for i, o := range outcomes {
		word := "survived"
		if !o.survived() {
			word = "**failed**"
		} else {
			r.survived[r.subjects[i].name]++
		}
		line += fmt.Sprintf(" %s, %.1f s, %d hit |", word, o.wall.Seconds(), o.hits)
		if r.subjects[i].name == "ours" && !o.survived() {
			r.failed = append(r.failed, fmt.Sprintf("%s: %v", c.name(), o.err))
		}
	}
	fmt.Println(line)
}

func (r *report) conclude(seed uint64) error {
	fmt.Println()
	for _, s := range r.subjects {
		fmt.Printf("%s survived %d of %d\n", s.name, r.survived[s.name], r.cells)
	}
	if len(r.failed) > 0 {
		return fmt.Errorf("%d cells failed, seed %d:\n%s", len(r.failed), seed, strings.Join(r.failed, "\n"))
	}
	return nil
}

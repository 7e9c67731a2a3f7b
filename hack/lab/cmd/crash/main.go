// crash ends this repository's buildkitd at its write points, or fails them, starts
// it again and checks what is left.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/writepoint"
)

// options are the command's flags.
type options struct {
	runs    int
	seed    uint64
	time    time.Duration
	kinds   string
	moments string
	point   int
	keep    bool
	verbose bool
}

func main() {
	writepoint.Become() // the daemon is started through this program
	var o options
	short := flag.Bool("short", false, "a bounded form for CI: 14 runs, two minutes")
	flag.IntVar(&o.runs, "n", 60, "how many runs; 0: until -time")
	flag.Uint64Var(&o.seed, "seed", 1, "chooses kinds, moments and write points; a run that fails is repeated by the same flags")
	flag.DurationVar(&o.time, "time", 0, "begin no run after so long (default: no limit)")
	flag.StringVar(&o.kinds, "kind", "", "only these, comma-separated: "+strings.Join(names(kinds), ", "))
	flag.StringVar(&o.moments, "moment", "", "only these, comma-separated: "+strings.Join(names(moments), ", "))
	flag.IntVar(&o.point, "point", 0, "every run at this write point (default: any)")
	flag.BoolVar(&o.keep, "keep", false, "leave the state of a run that failed")
	flag.BoolVar(&o.verbose, "v", false, "show each write point that is reached")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: hack/crash [FLAGS]\n\n"+
			"Runs buildkitd on a lazily mounted image and, at one of its write points, kills it\n"+
			"(kill), signals it (term), drops all that was not synced (power), or lets this write\n"+
			"and all later ones fail (nospace, readonly). Then the daemon goes on, or starts again,\n"+
			"and what it left is checked. Needs root. See docs/crash.md.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if *short {
		o.runs, o.time = 14, 100*time.Second
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "crash:", err)
		stop()
		os.Exit(1)
	}
}

// named is what has a name on the command line.
type named interface{ called() string }

func names[T named](all []T) (out []string) {
	for _, n := range all {
		out = append(out, n.called())
	}
	return out
}

// choose picks those that list names, all when it is empty.
func choose[T named](all []T, list string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	var out []T
	for _, name := range strings.Split(list, ",") {
		i := slices.IndexFunc(all, func(n T) bool { return n.called() == name })
		if i < 0 {
			return nil, fmt.Errorf("unknown %q (known: %s)", name, strings.Join(names(all), ", "))
		}
		out = append(out, all[i])
	}
	return out, nil
}

// fault is one run: what happens, when, and at which write point.
type fault struct {
	kind   kind
	moment *moment
	point  int
}

func (f fault) String() string {
	return fmt.Sprintf("-kind %s -moment %s -point %d", f.kind, f.moment.name, f.point)
}

func run(ctx context.Context, o options) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for mounts")
	}
	ks, err := choose(kinds, o.kinds)
	if err != nil {
		return err
	}
	ms, err := choose(moments, o.moments)
	if err != nil {
		return err
	}
	start := time.Now()
	b, err := newBench(ctx, o)
	if err != nil {
		return err
	}
	defer b.close()
	if err := b.prepare(ctx, ms); err != nil {
		return err
	}
	lab.Logf("prepared in %.0f s", time.Since(start).Seconds())
	rnd := rand.New(rand.NewPCG(o.seed, o.seed))
	begin, failed, done, reached := time.Now(), 0, 0, 0
	tally := map[string]int{}
	for o.runs == 0 || done < o.runs {
		if o.time > 0 && time.Since(begin) > o.time {
			break
		}
		// Kills are the most, and every second one of the others.
		f := fault{kind: ks[rnd.IntN(len(ks))], moment: ms[done%len(ms)]}
		if len(ks) == len(kinds) && done%2 == 0 {
			f.kind = kill
		}
		f.point = 1 + rnd.IntN(f.moment.points+f.moment.points/20+1)
		if o.point > 0 {
			f.point = o.point
		}
		began := time.Now()
		at, err := b.run(ctx, f)
		if ctx.Err() != nil {
			break // what was done is worth a summary
		}
		done++
		if at != "" {
			reached++
			tally[f.kind.called()+" in "+f.moment.name]++
		}
		switch {
		case err != nil:
			failed++
			fmt.Printf("FAIL %3d %s, at %s:\n%s\n", done, f, at, indent(err.Error()))
		case o.verbose:
			fmt.Printf("ok   %3d %4.1f s %s, at %s\n", done, time.Since(began).Seconds(), f, at)
		}
		if done%progressEvery == 0 && !o.verbose {
			lab.Logf("%d runs in %.0f s, %d failed", done, time.Since(begin).Seconds(), failed)
		}
	}
	for _, k := range slices.Sorted(maps.Keys(tally)) {
		fmt.Printf("%4d %s\n", tally[k], k)
	}
	fmt.Printf("%d runs in %.0f s, seed %d: %d reached their write point, %d failed\n", done, time.Since(begin).Seconds(), o.seed, reached, failed)
	if failed > 0 {
		return fmt.Errorf("%d of %d runs failed", failed, done)
	}
	return context.Cause(ctx)
}

// progressEvery is after how many runs a line says how far it is.
const progressEvery = 10

func indent(s string) string { return "\t" + strings.ReplaceAll(s, "\n", "\n\t") }

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// comparison is both sides' run of one package.
type comparison struct {
	options
	layout layout
	mirror string
	pkg    string
	filter filter
}

// run compares, prints, and tells whether ours passes all that stock passes.
func (c comparison) run(ctx context.Context) (bool, error) {
	want, err := c.stockResults(ctx)
	if err != nil {
		return false, err
	}
	fmt.Printf("%s, %s, %s base: stock: %s\n", c.pkg, c.mode, c.base, want.counts())
	if c.stock {
		return true, nil
	}
	same := true
	for i := range c.times {
		got, took, err := c.execute(ctx, ours, c.filter.pattern(), fmt.Sprintf("run%d", i+1))
		if err != nil {
			return false, err
		}
		fmt.Printf("%s, %s, %s base: ours:  %s, in %s\n", c.pkg, c.mode, c.base, got.counts(), took)
		ok, err := c.judge(ctx, want, got)
		if err != nil {
			return false, err
		}
		races, others, err := c.sortRaces(fmt.Sprintf("run%d", i+1))
		if err != nil {
			return false, err
		}
		if c.race {
			printList("races in which our code has a part", races)
			printList("races of BuildKit's own", others)
		}
		same = same && ok && len(races) == 0
	}
	return same, nil
}

// stockResults are the stored ones if there are any, else those of a run.
func (c comparison) stockResults(ctx context.Context) (results, error) {
	file := filepath.Join(c.layout.results(), c.name(stock)+".json")
	if !c.fresh {
		stored, err := loadResults(file)
		if err != nil {
			return nil, err
		}
		if stored != nil {
			step("stock: using the stored results of %s", c.pkg)
			return stored.matching(c.filter), nil
		}
	}
	res, took, err := c.execute(ctx, stock, c.filter.pattern(), "run")
	if err != nil {
		return nil, err
	}
	step("stock: %s took %s", c.pkg, took)
	if c.options.run == "" {
		err = res.save(file) // a part would pass for the whole
	}
	return res, err
}

// judge prints the difference. A test that ours does not pass is run once
// more, alone: if it passes then, it is called flaky and not held against us.
func (c comparison) judge(ctx context.Context, want, got results) (bool, error) {
	var bad, flaky []string
	for i, name := range want.worse(got) {
		step("ours: again, alone: %s", name)
		again, _, err := c.execute(ctx, ours, exactly(name), fmt.Sprintf("retry%d", i+1))
		if err == nil && again[name] == passed {
			flaky = append(flaky, name)
			continue
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		bad = append(bad, fmt.Sprintf("%s (%s; log %s)", name, stated(got[name]), c.log(ours, fmt.Sprintf("retry%d", i+1))))
	}
	printList("stock passes, ours does not", bad)
	printList("flaky: ours passed when run alone", flaky)
	printList("stock skips, ours fails", want.only(skipped, got, failed))
	printList("ours passes, stock does not", got.worse(want))
	return len(bad) == 0, nil
}

// execute runs the tests of one side.
func (c comparison) execute(ctx context.Context, s side, pattern, label string) (results, time.Duration, error) {
	start := time.Now()
	if strings.HasPrefix(label, "run") {
		step("%s: running the tests of %s", s, c.pkg)
	}
	for _, old := range c.races(label) {
		if err := os.Remove(old); err != nil {
			return nil, 0, err
		}
	}
	res, err := testRun{
		layout:   c.layout,
		mirror:   c.mirror,
		pkg:      c.pkg,
		side:     s,
		mode:     c.mode,
		pattern:  pattern,
		parallel: c.parallel,
		timeout:  c.timeout,
		log:      c.log(s, label),
		races:    c.raceLog(label),
	}.run(ctx)
	return res, time.Since(start).Round(time.Second), err
}

// name tells runs apart in the results directory.
func (c comparison) name(s side) string {
	return strings.Join([]string{string(s), c.mode, c.base + "-" + recipe, strings.ReplaceAll(c.pkg, "/", "-")}, "_")
}

func (c comparison) log(s side, label string) string {
	return filepath.Join(c.layout.results(), c.name(s)+"_"+label+".log")
}

// raceLog is where the daemons of a run of ours put the race detector's
// reports: one file each, named by its pid.
func (c comparison) raceLog(label string) string {
	return strings.TrimSuffix(c.log(ours, label), "log") + "race"
}

// races are the files with reports of a run; a daemon without a race, or
// without the detector, leaves none.
func (c comparison) races(label string) []string {
	files, _ := filepath.Glob(c.raceLog(label) + ".*")
	return files
}

// sortRaces tells the files of a run with a race in which our code has a part
// from those where BuildKit and its libraries are among themselves.
func (c comparison) sortRaces(label string) (mine, others []string, err error) {
	for _, file := range c.races(label) {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, nil, err
		}
		if bytes.Contains(text, []byte("github.com/lazykit/lazykit/")) {
			mine = append(mine, file)
		} else {
			others = append(others, file)
		}
	}
	return mine, others, nil
}

// stated is an outcome in words; a test without one did not run.
func stated(o outcome) string {
	if o == "" {
		return "not run"
	}
	return string(o)
}

func printList(title string, names []string) {
	fmt.Printf("  %s: %d\n", title, len(names))
	for _, name := range names {
		fmt.Printf("    %s\n", name)
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

var warmSuite = suite{
	id: "warm", title: "Steps on a base that the kernel knows already", variants: allStock, network: "loopback",
	cases: []suiteCase{warmCase},
}

// pass is something that a warm step does again and again.
type pass struct {
	id, run string
	bound   float64 // of stock overlayfs' time
}

var passes = []pass{
	{"find", "find / -xdev", 1.15},
	{"ls", "ls -lR /usr", 1.15},
	// Into a pipe: tar does not read what goes to /dev/null.
	{"tar", "tar cf - /usr /etc /var | cat", 1.2},
	{"python", `for i in 1 2 3 4 5 6 7 8 9 10; do python3 -c 'import json'; done`, 1.15},
	{"g++", "g++ -O2 -o /tmp/main main.cpp", 1.15},
}

// repeats is how often a pass is done, the first time unmeasured.
const repeats = 5

// restBetween keeps passes apart in the daemon's counters, which are looked at every
// lookEvery.
const (
	restBetween = 200 * time.Millisecond
	lookEvery   = 20 * time.Millisecond
)

var warmCase = suiteCase{
	id:    "warm",
	text:  fmt.Sprintf("a RUN that does each thing %d times; the median pass after the first, in brackets by stock overlayfs', with the base's layers on the disk", repeats),
	extra: warmColumns(),
	run:   runWarm,
	check: func(m map[string]suiteMedian) []string {
		ours, full := m["ours"], m["stock-overlayfs"]
		if full.N == 0 {
			return nil
		}
		var all []promise
		for _, p := range passes {
			if limit := full.Extra[p.id]; limit > 0 {
				all = append(all, atMost("seconds of "+p.id+", beside stock overlayfs", ours.Extra[p.id], p.bound*limit))
			}
		}
		return broken(all...)
	},
}

func warmColumns() (all []column) {
	for _, p := range passes {
		all = append(all, column{key: p.id, title: p.id, unit: "ms", ratio: true})
	}
	return append(all, column{key: "discarded", title: "passes discarded"})
}

func runWarm(ctx context.Context, t *trial) error {
	img, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	d, err := t.daemon(ctx)
	if err != nil {
		return err
	}
	chosen := passesOn(t.base)
	out, err := t.dir()
	if err != nil {
		return err
	}
	watch := watchReplies(d)
	w := workload{run: warmScript(chosen), files: workloads[1].files} // the source of g++

	_, cost, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: w.dockerfile(t.on(img)), Files: w.files, OutputDir: out})
	looks, watchErr := watch.end()
	if err := errors.Join(err, watchErr); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(out, "result"))
	if err != nil {
		return fmt.Errorf("read the step's times: %w", err)
	}
	times, err := parseTimes(string(text))
	if err != nil {
		return err
	}
	t.figures = figures{Seconds: cost.Seconds, Memory: cost.Memory}
	discarded := 0
	for _, p := range chosen {
		seconds, dropped, err := warmPasses(times[p.id], looks, t.variant.ours)
		if err != nil {
			return fmt.Errorf("%s: %w", p.id, err)
		}
		discarded += dropped
		t.note(p.id, middle(seconds, func(s float64) float64 { return s }))
	}
	t.note("discarded", float64(discarded))
	return nil
}

// passesOn are those that a base has the programs for.
func passesOn(base lab.Base) (all []pass) {
	for _, p := range passes {
		if p.id != "g++" || strings.Contains(" "+strings.Join(base.Packages, " ")+" ", " g++ ") {
			all = append(all, p)
		}
	}
	return all
}

// warmScript does all passes and prints a line for each: its name, and when it began
// and ended in nanoseconds.
func warmScript(all []pass) string {
	var s strings.Builder
	for _, p := range all {
		fmt.Fprintf(&s, "for n in $(seq %d); do sleep %.1f; a=$(date +%%s%%N); { %s; } > /dev/null || exit 1; echo %s $a $(date +%%s%%N); done; ",
			repeats, restBetween.Seconds(), p.run, p.id)
	}
	return s.String() + fmt.Sprintf("sleep %.1f", restBetween.Seconds())
}

// interval is when a pass ran.
type interval struct{ from, to time.Time }

func parseTimes(text string) (map[string][]interval, error) {
	all := map[string][]interval{}
	for l := range strings.Lines(text) {
		words := strings.Fields(l)
		if len(words) != 3 {
			return nil, fmt.Errorf("read the step's times: %q", l)
		}
		from, err1 := strconv.ParseInt(words[1], 10, 64)
		to, err2 := strconv.ParseInt(words[2], 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read the step's times: %w", err)
		}
		all[words[0]] = append(all[words[0]], interval{time.Unix(0, from), time.Unix(0, to)})
	}
	return all, nil
}

// warmPasses are the times of the passes after the first in seconds. Where the
// daemon's replies count, those are left out in which the kernel read files: it had
// dropped them meanwhile, and the pass was not warm.
func warmPasses(all []interval, looks []look, count bool) (seconds []float64, discarded int, err error) {
	if len(all) != repeats {
		return nil, 0, fmt.Errorf("%d passes, not %d", len(all), repeats)
	}
	for _, p := range all[1:] {
		if n := written(looks, p); count && n >= pageReply {
			lab.Logf("a pass of %.2f s was not warm: the daemon wrote %d bytes", p.to.Sub(p.from).Seconds(), n)
			discarded++
			continue
		}
		seconds = append(seconds, p.to.Sub(p.from).Seconds())
	}
	if len(seconds) == 0 {
		return nil, discarded, errors.New("the kernel read files in each pass, none was warm")
	}
	return seconds, discarded, nil
}

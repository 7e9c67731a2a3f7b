package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/lazykit/lazykit/hack/lab"
)

var cacheCases = []suiteCase{
	mixedCase, stepsCase, copyLinkCase, mergeCase, pushSameCase, pushOtherCase, cacheCaseOfTwoBases, gcCase,
}

var cacheSuite = suite{
	id: "cache", title: "The cache manager on real images", variants: allStock, network: "shaped", cases: cacheCases,
}

// small is a step that reads a little of a base.
const small = `python3 -c 'import json; print(json.dumps({"a": 1}))'`

var mixedCase = suiteCase{
	id:    "mixed",
	text:  "a RUN that reads a little, on a plain gzip layer below an eStargz one",
	extra: []column{{key: "plain", title: "plain layer", unit: "MB"}, {key: "lazy", title: "received with both layers lazy", unit: "MB"}},
	run: func(ctx context.Context, t *trial) error {
		img, err := t.image(ctx, lab.Packing{Format: lab.Gzip}, lab.Packing{Format: lab.EStargz})
		if err != nil {
			return err
		}
		d, err := t.daemon(ctx)
		if err != nil {
			return err
		}
		_, cost, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: "FROM " + t.on(img) + "\nRUN " + small + "\n"})
		if err != nil {
			return err
		}
		t.note("plain", float64(img.Layers[0].Size))
		t.is(cost)
		if t.variant.id != "ours" {
			return nil
		}
		// The lazy share: what the same step needs where everything is lazy.
		if img, err = t.lazyImage(ctx, 0); err != nil {
			return err
		}
		if d, err = t.daemon(ctx); err != nil {
			return err
		}
		_, cost, err = t.build(ctx, d, lab.BuildOptions{Dockerfile: "FROM " + t.on(img) + "\nRUN " + small + "\n"})
		t.note("lazy", float64(cost.Received))
		return err
	},
	check: func(m map[string]suiteMedian) []string {
		ours := m["ours"]
		all := []promise{atMost("bytes received, beside the plain layer and the lazy share", float64(ours.Received), 1.02*ours.Extra["plain"]+1.1*ours.Extra["lazy"])}
		if full := m["stock-overlayfs"]; full.N > 0 {
			all = append(all, atMost("seconds, beside a full pull", ours.Seconds, full.Seconds))
		}
		return broken(all...)
	},
}

// stepsOfCase is how many steps stepsCase has.
const stepsOfCase = 10

var stepsCase = suiteCase{
	id:    "steps",
	text:  fmt.Sprintf("%d small RUNs on a base that a build has used before", stepsOfCase),
	extra: []column{{key: "step", title: "a step", unit: "ms"}, {key: "runc", title: "of it runc's own", unit: "ms"}, {key: "beyond", title: "beyond runc", unit: "ms"}},
	run: func(ctx context.Context, t *trial) error {
		img, err := t.lazyImage(ctx, 0)
		if err != nil {
			return err
		}
		runc, err := newStopwatch(t)
		if err != nil {
			return err
		}
		d, err := t.daemon(ctx, func(o *lab.DaemonOptions) { o.Args = append(o.Args, "--oci-worker-binary="+runc.program) })
		if err != nil {
			return err
		}
		text := "FROM " + t.on(img) + "\nRUN echo begin > /begin\n"
		if _, _, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: text}); err != nil {
			return err
		}
		before, _, err := runc.read()
		if err != nil {
			return err
		}
		for i := range stepsOfCase {
			text += fmt.Sprintf("RUN echo %d > /step-%d\n", i, i)
		}
		_, cost, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: text})
		if err != nil {
			return err
		}
		after, runs, err := runc.read()
		if err != nil {
			return err
		}
		if runs != stepsOfCase+1 {
			return fmt.Errorf("runc ran %d times, not once for each of %d steps", runs, stepsOfCase+1)
		}
		t.is(cost)
		t.note("step", cost.Seconds/stepsOfCase)
		t.note("runc", (after-before)/stepsOfCase)
		t.note("beyond", (cost.Seconds-(after-before))/stepsOfCase)
		return nil
	},
	check: func(m map[string]suiteMedian) []string {
		stock, ours := m["stock-overlayfs"], m["ours"]
		if stock.N == 0 {
			return nil
		}
		return broken(
			atMost("seconds of a step beyond runc, beside layers that are extracted", ours.Extra["beyond"], 1.25*stock.Extra["beyond"]+0.02),
			atMost("seconds of a step, beside layers that are extracted", ours.Extra["step"], 1.25*stock.Extra["step"]+0.05),
		)
	},
}

var stepsSuite = suite{
	id: "steps", title: "Small steps on a lazy base", variants: allStock, network: "shaped", cases: []suiteCase{quickStepsCase},
}

// quickStepsCase is stepsCase with a bound as for a base that is extracted.
var quickStepsCase = func() suiteCase {
	c := stepsCase
	c.check = func(m map[string]suiteMedian) []string {
		if m["stock-overlayfs"].N == 0 {
			return nil
		}
		return broken(atMost("seconds, beside stock overlayfs", m["ours"].Seconds, 1.05*m["stock-overlayfs"].Seconds))
	}
	return c
}()

// stopwatch stands for runc and notes how long it takes.
type stopwatch struct{ program, log string }

func newStopwatch(t *trial) (*stopwatch, error) {
	dir, err := t.dir()
	if err != nil {
		return nil, err
	}
	w := &stopwatch{program: filepath.Join(dir, "runc"), log: filepath.Join(dir, "log")}
	script := fmt.Sprintf(`#!/bin/sh
PATH=$PATH:/usr/sbin:/sbin
start=$(date +%%s%%N)
runc "$@"
status=$?
echo $(($(date +%%s%%N) - start)) " $* " >> %s
exit $status
`, w.log)
	if err := os.WriteFile(w.program, []byte(script), 0o755); err != nil {
		return nil, fmt.Errorf("write runc's stopwatch: %w", err)
	}
	return w, nil
}

// read returns the time so far in seconds, and how many containers were run.
func (w *stopwatch) read() (seconds float64, runs int, err error) {
	data, err := os.ReadFile(w.log)
	if err != nil {
		return 0, 0, fmt.Errorf("read runc's stopwatch: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		ns, args, _ := strings.Cut(line, " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("read runc's stopwatch: %w", err)
		}
		seconds += float64(n) / 1e9
		if strings.Contains(args, " run ") {
			runs++
		}
	}
	return seconds, runs, nil
}

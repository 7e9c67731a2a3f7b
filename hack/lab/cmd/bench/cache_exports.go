package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"

	"github.com/lazykit/lazykit/hack/lab"
)

var (
	pushSameCase = suiteCase{
		id:    "push-same",
		text:  "push of a step's result to the registry that the base is from",
		extra: pushColumns,
		run:   func(ctx context.Context, t *trial) error { return runPush(ctx, t, t.registry) },
		check: func(m map[string]suiteMedian) []string {
			ours := m["ours"]
			return broken(
				atMost("bytes received for the push", float64(ours.Received), 100e3),
				atMost("bytes pushed", float64(ours.Pushed), 200e3),
			)
		},
	}
	pushOtherCase = suiteCase{
		id:    "push-other",
		text:  "push of a step's result to an empty registry",
		extra: pushColumns,
		run: func(ctx context.Context, t *trial) error {
			other, err := t.emptyRegistry(ctx)
			if err != nil {
				return err
			}
			return runPush(ctx, t, other)
		},
		check: func(m map[string]suiteMedian) []string {
			ours := m["ours"]
			return broken(
				atMost("bytes received, those of the step included", float64(ours.Received)+ours.Extra["read"], 1.01*ours.Extra["base"]),
				atMost("bytes pushed", float64(ours.Pushed), 1.01*ours.Extra["base"]),
				// Stock leaves layers out where it can't find them.
				promise{float64(ours.Pushed) >= ours.Extra["base"], "the base was not pushed"},
			)
		},
	}
	pushColumns = []column{{key: "base", title: "the base", unit: "MB"}, {key: "read", title: "received before, for the step", unit: "MB"}}
)

// runPush builds a step on a lazy base and measures what it takes to push the result.
func runPush(ctx context.Context, t *trial, to *lab.Registry) error {
	img, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	d, err := t.daemon(ctx)
	if err != nil {
		return err
	}
	opts := lab.BuildOptions{Dockerfile: "FROM " + t.on(img) + "\nRUN " + small + " > /result\n"}
	_, cost, err := t.build(ctx, d, opts)
	if err != nil {
		return err
	}
	t.note("base", float64(img.Size()))
	t.note("read", float64(cost.Received))
	opts.Exports = []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
		"name": to.Link + "/pushed-" + identity.NewID() + ":1", "push": "true", "oci-mediatypes": "true",
	}}}
	_, cost, err = t.build(ctx, d, opts)
	t.is(cost)
	return err
}

var cacheCaseOfTwoBases = suiteCase{
	id:   "cache",
	text: "build of two stages on two lazy bases with --cache-to mode=max, then --cache-from in a new daemon",
	extra: []column{
		{key: "import", title: "import, wall time", unit: "s"}, {key: "requests", title: "import, requests", unit: ""}, {key: "received", title: "import, received", unit: "MB"}, {key: "rerun", title: "steps run again", unit: ""},
	},
	run: func(ctx context.Context, t *trial) error {
		refs, err := threeImages(ctx, t)
		if err != nil {
			return err
		}
		to := t.registry.Link + "/cache-" + identity.NewID() + ":max"
		out, err := t.dir()
		if err != nil {
			return err
		}
		opts := lab.BuildOptions{
			Dockerfile: fmt.Sprintf("FROM %s AS a\nRUN %s > /a\nRUN cat /a /a > /aa\nFROM %s AS b\nRUN gcc --version > /b\nFROM scratch\nCOPY --from=a /aa /\nCOPY --from=b /b /\n",
				refs[0], small, refs[1]),
			OutputDir: out,
			CacheTo:   []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": to, "mode": "max"}}},
		}
		d, err := t.daemon(ctx)
		if err != nil {
			return err
		}
		_, cost, err := t.build(ctx, d, opts)
		if err != nil {
			return err
		}
		t.is(cost)
		if d, err = t.daemon(ctx); err != nil {
			return err
		}
		opts.CacheTo, opts.CacheFrom = nil, []client.CacheOptionsEntry{{Type: "registry", Attrs: map[string]string{"ref": to}}}
		res, cost, err := t.build(ctx, d, opts)
		if err != nil {
			return err
		}
		rerun := 0
		for _, v := range res.Steps {
			if !v.Cached && (strings.Contains(v.Name, "] RUN ") || strings.Contains(v.Name, "] COPY ")) {
				rerun++
			}
		}
		t.note("import", cost.Seconds)
		t.note("requests", float64(cost.Requests))
		t.note("received", float64(cost.Received))
		t.note("rerun", float64(rerun))
		return nil
	},
	check: func(m map[string]suiteMedian) []string {
		ours := m["ours"]
		return broken(
			atMost("steps run again", ours.Extra["rerun"], 0),
			atMost("bytes received by the import", ours.Extra["received"], 1e6),
			atMost("bytes pushed to the cache", float64(ours.Pushed), 1e6),
		)
	},
}

package main

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/client/llb"

	"github.com/lazykit/lazykit/hack/lab"
)

// What memoryCase mounts: images of one layer each.
const (
	memoryImages  = 50
	memoryEntries = 40_000 // of each image, the root left out
)

var memorySuite = suite{
	id: "memory", title: "Memory of the daemon", variants: "ours", network: "loopback", cases: []suiteCase{memoryCase},
}

var memoryCase = suiteCase{
	id: "entries",
	text: fmt.Sprintf("a RUN with %d images mounted that have %d entries each, which it walks over; peak RssAnon while that runs, and before it",
		memoryImages, memoryEntries),
	extra: []column{{key: "entries", title: "entries seen"}, {key: "idle", title: "peak RssAnon of a small build before", unit: "MB"}},
	run:   runMemory,
	check: func(m map[string]suiteMedian) []string {
		return broken(atMost("bytes of anonymous memory", float64(m["ours"].Memory), 100e6))
	},
}

func runMemory(ctx context.Context, t *trial) error {
	base, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	mounts, err := t.entryImages(ctx)
	if err != nil {
		return err
	}
	d, err := t.daemon(ctx)
	if err != nil {
		return err
	}
	_, cost, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: "FROM " + t.on(base) + "\nRUN find /usr/bin\n"})
	if err != nil {
		return err
	}
	t.note("idle", float64(cost.Memory))
	out, err := t.dir()
	if err != nil {
		return err
	}
	step := llb.Image(t.on(base)).Run(append(mounts, llb.Args([]string{"/bin/sh", "-c", "find /m -mindepth 2 | wc -l > /out/result"}),
		llb.AddEnv("PATH", "/usr/bin:/bin"))...)
	def, err := step.AddMount("/out", llb.Scratch()).Marshal(ctx)
	if err != nil {
		return fmt.Errorf("describe the build: %w", err)
	}
	res, cost, err := t.build(ctx, d, lab.BuildOptions{Definition: def, OutputDir: out})
	if err != nil {
		return err
	}
	n, err := readNumber(out)
	if err != nil {
		return err
	}
	if n != memoryImages*memoryEntries {
		return fmt.Errorf("the step saw %d entries of %d\n%s", n, memoryImages*memoryEntries, res.Logs)
	}
	t.is(cost)
	t.note("entries", float64(n))
	return nil
}

// entryImages pushes the images, and returns the options that mount them. A build
// would digest all that is in a mount first, and keep that in memory, unless it is
// told not to.
func (t *trial) entryImages(ctx context.Context) (mounts []llb.RunOption, err error) {
	for i := range memoryImages {
		img, err := lab.EntriesImage(ctx, i, memoryEntries)
		if err != nil {
			return nil, err
		}
		if _, err := lab.Push(ctx, t.registry.Direct, img); err != nil {
			return nil, err
		}
		mounts = append(mounts, llb.AddMount(fmt.Sprintf("/m/%d", i), llb.Image(t.on(img)), llb.Readonly, llb.ContentCache(llb.MountContentCacheOff)))
	}
	return mounts, nil
}

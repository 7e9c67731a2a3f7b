package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/hack/lab"
)

// patience is how long the other build of gcCase may take.
const patience = 60 * time.Second

var gcCase = suiteCase{
	id:    "gc",
	text:  fmt.Sprintf("a build beside a prune, while a third one waits for a registry that hangs (given up after %v)", patience),
	extra: []column{{key: "alone", title: "the build alone", unit: "s"}, {key: "prune", title: "the prune", unit: "s"}},
	run:   runGC,
	check: func(m map[string]suiteMedian) []string {
		ours := m["ours"]
		return broken(
			atMost("seconds of the build, beside alone", ours.Seconds, 1.5*ours.Extra["alone"]+1),
			atMost("seconds of the prune", ours.Extra["prune"], 10),
		)
	},
}

func runGC(ctx context.Context, t *trial) error {
	img, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	hung, err := t.lazyImage(ctx, 1)
	if err != nil {
		return err
	}
	d, err := t.daemon(ctx)
	if err != nil {
		return err
	}
	quick := lab.BuildOptions{NoCache: true, Dockerfile: "FROM " + t.on(img) + "\nCOPY file /\nRUN cat /file && " + small + "\n", Files: map[string]string{"file": "x"}}
	for range 2 { // the second time it has all that it reads
		_, cost, err := t.build(ctx, d, quick)
		if err != nil {
			return err
		}
		t.note("alone", cost.Seconds)
	}

	var layers []digest.Digest
	for _, l := range hung.Layers {
		layers = append(layers, l.Digest)
	}
	if err := t.registry.Hold(ctx, layers...); err != nil {
		return err
	}
	hctx, cancel := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer cancel()
	defer t.registry.Hold(context.WithoutCancel(ctx))
	if err := t.registry.Reset(ctx); err != nil {
		return err
	}
	others.Go(func() { lab.Build(hctx, d.Addr, lab.BuildOptions{Dockerfile: "FROM " + t.on(hung) + "\nRUN true\n"}) })
	if err := waitForRequest(ctx, t.registry, layers); err != nil {
		return err
	}
	pruned := make(chan float64, 1)
	others.Go(func() { pruned <- prune(hctx, d) })
	time.Sleep(500 * time.Millisecond) // the collector asks for its lock

	bctx, stop := context.WithTimeout(ctx, patience)
	defer stop()
	start := time.Now()
	_, err = lab.Build(bctx, d.Addr, quick)
	t.Seconds = time.Since(start).Seconds()
	if err != nil && !errors.Is(bctx.Err(), context.DeadlineExceeded) {
		return err
	}
	select {
	case s := <-pruned:
		t.note("prune", s)
	case <-time.After(max(0, patience-time.Since(start))):
		t.note("prune", patience.Seconds())
	}
	return nil
}

// waitForRequest waits until one of the blobs is asked for.
func waitForRequest(ctx context.Context, r *lab.Registry, blobs []digest.Digest) error {
	for begin := time.Now(); time.Since(begin) < 30*time.Second; time.Sleep(50 * time.Millisecond) {
		s, err := r.Stats(ctx)
		if err != nil {
			return err
		}
		for _, b := range blobs {
			if s.Blobs[b.String()].Gets > 0 {
				time.Sleep(200 * time.Millisecond)
				return nil
			}
		}
	}
	return errors.New("the build on the registry that hangs has not asked for a layer")
}

// prune removes what came from build contexts, which collects garbage too, and says
// how long it took.
func prune(ctx context.Context, d *lab.Daemon) float64 {
	start := time.Now()
	c, err := d.Client(ctx)
	if err == nil {
		defer c.Close()
		err = c.Prune(ctx, nil, client.WithFilter([]string{"type==source.local"}))
	}
	if err != nil && ctx.Err() == nil {
		lab.Logf("prune: %v", err)
	}
	return time.Since(start).Seconds()
}

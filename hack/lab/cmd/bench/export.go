package main

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/moby/buildkit/client"

	"github.com/lazykit/lazykit/hack/lab"
)

var exportSuite = suite{
	id: "export", title: "Outputs of a lazy base", variants: allStock, network: "shaped", cases: []suiteCase{
		exportCase("docker", "the base as a type=docker tar, on a fresh daemon", ""),
		exportCase("step", "a RUN that reads a little, and its result as a type=docker tar, on a fresh daemon", "RUN "+small+" > /result\n"),
	},
}

// exportCase is a build of the base and steps whose result is a tar for docker.
func exportCase(id, text, steps string) suiteCase {
	return suiteCase{
		id: id, text: text,
		extra: []column{{key: "tar", title: "tar", unit: "MB"}},
		run:   func(ctx context.Context, t *trial) error { return runExport(ctx, t, steps) },
		check: checkExport,
	}
}

func runExport(ctx context.Context, t *trial, steps string) error {
	img, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	var size atomic.Int64
	opts := lab.BuildOptions{Exports: []client.ExportEntry{{
		Type:   client.ExporterDocker,
		Attrs:  map[string]string{"name": "exported:1"},
		Output: func(map[string]string) (io.WriteCloser, error) { return counter{&size}, nil },
	}}}
	if err := t.cold(ctx, img, func(ref string) string { return "FROM " + ref + "\n" + steps }, opts); err != nil {
		return err
	}
	if size.Load() < img.Size() {
		return fmt.Errorf("the tar has %d bytes, and the layers have %d", size.Load(), img.Size())
	}
	t.note("tar", float64(size.Load()))
	return nil
}

func checkExport(m map[string]suiteMedian) []string {
	full, ours := m["stock-overlayfs"], m["ours"]
	if full.N == 0 {
		return nil
	}
	return broken(
		atMost("seconds, beside a full pull and the output", ours.Seconds, full.Seconds),
		atMost("bytes of anonymous memory, beside stock overlayfs", float64(ours.Memory), float64(full.Memory)+40e6),
	)
}

// counter takes an output and keeps its size only.
type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}

// Close implements io.Closer.
func (counter) Close() error { return nil }

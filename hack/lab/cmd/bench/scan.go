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

var scanSuite = suite{
	id: "scan", title: "First builds that read everything", variants: allStock, network: "shaped",
	cases: []suiteCase{scanCase},
}

var scanCase = suiteCase{
	id:    "tar",
	text:  "a RUN that reads all of /usr (tar cf - /usr | wc -c)",
	extra: []column{{key: "read", title: "tar", unit: "MB"}},
	run: func(ctx context.Context, t *trial) error {
		img, err := t.lazyImage(ctx, 0)
		if err != nil {
			return err
		}
		n, err := t.coldCount(ctx, img, "tar cf - /usr | wc -c", nil)
		if err != nil {
			return err
		}
		const least = 10e6 // what any Debian has there
		if n < least {
			return fmt.Errorf("the tar of /usr has %d bytes", n)
		}
		t.note("read", float64(n))
		return nil
	},
	check: func(m map[string]suiteMedian) []string {
		full := m["stock-overlayfs"]
		if full.N == 0 {
			return nil
		}
		return broken(atMost("seconds, beside a full pull and the step", m["ours"].Seconds, 0.45*full.Seconds))
	},
}

// coldCount measures the first build on img of a step that prints a number, and
// returns that.
func (t *trial) coldCount(ctx context.Context, img *lab.Image, step string, files map[string]string) (int64, error) {
	out, err := t.dir()
	if err != nil {
		return 0, err
	}
	dockerfile := func(ref string) string { return workload{run: step}.dockerfile(ref) }
	if err := t.cold(ctx, img, dockerfile, lab.BuildOptions{Files: files, OutputDir: out}); err != nil {
		return 0, err
	}
	return readNumber(out)
}

// readNumber reads the result of a build that is a number, in the directory of its
// output.
func readNumber(out string) (int64, error) {
	text, err := os.ReadFile(filepath.Join(out, "result"))
	if err != nil {
		return 0, fmt.Errorf("read the build's result: %w", err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the build's result: %w", err)
	}
	return n, nil
}

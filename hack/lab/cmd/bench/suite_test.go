package main

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestSuiteMediansAndReport(t *testing.T) {
	c := suiteCase{id: "steps", text: "small steps", extra: []column{{"step", "a step", "ms", true}, {"size", "the size", "MB", false}}}
	run := func(seconds float64, received int64, step float64) suiteResult {
		return suiteResult{Case: "steps", Variant: "ours", figures: figures{
			Seconds: seconds, Requests: 7, Received: received, Memory: 50e6, Extra: map[string]float64{"step": step},
		}}
	}
	broken := run(100, 1, 1)
	broken.Error = "step failed"
	m := suiteMedianOf(c, "ours", []suiteResult{run(3, 1e6, 0.1), run(1, 3e6, 0.3), broken, run(2, 2e6, 0.2)})
	require.Equal(t, suiteMedian{
		Case: "steps", Variant: "ours", N: 3, Failed: 1, Fastest: 1, Slowest: 3,
		figures: figures{Seconds: 2, Requests: 7, Received: 2e6, Memory: 50e6, Extra: map[string]float64{"step": 0.2}},
	}, m)
	none := suiteMedianOf(c, "stock-stargz", nil)
	r := &suiteReport{cases: []suiteCase{c}, Medians: []suiteMedian{m, none}}
	require.Contains(t, r.markdown(), "\n| daemon | wall time | of stock-overlayfs | requests | received | written | pushed | peak RssAnon | a step | the size |\n"+
		"|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n"+
		"| ours | 2.00 s (1.00-3.00, 1 failed) |  | 7 | 2.0 MB | 0.0 MB | 0.0 MB | 50 MB | 200 ms |  |\n"+
		"| stock-stargz | 0 runs failed |  |  |  |  |  |  |  |  |\n")
	full := m
	full.Variant, full.Seconds, full.Extra = "stock-overlayfs", 4, map[string]float64{"step": 0.1}
	r.Medians = append(r.Medians, full)
	require.Contains(t, r.markdown(), "| ours | 2.00 s (1.00-3.00, 1 failed) | 0.50 | 7 | 2.0 MB | 0.0 MB | 0.0 MB | 50 MB | 200 ms (2.00) |  |\n")
}

// Each case's promises hold for figures that are as good as they can be, and every
// one that does not is named.
func TestCachePromises(t *testing.T) {
	good := map[string]suiteMedian{
		"ours": {N: 1, figures: figures{Seconds: 1, Received: 1000, Written: 1000, Pushed: 100, Extra: map[string]float64{
			"plain": 1e6, "lazy": 1e5, "step": 0.2, "beyond": 0.1, "images": 1e9, "base": 1e6, "read": 1e5, "alone": 1, "prune": 0.1,
		}}},
		"stock-overlayfs": {N: 1, figures: figures{Seconds: 2, Extra: map[string]float64{"step": 0.2, "beyond": 0.1}}},
	}
	bad := map[string]suiteMedian{
		"ours": {N: 1, figures: figures{Seconds: 100, Received: 1e9, Written: 1e9, Pushed: 1e9, Extra: map[string]float64{
			"step": 10, "beyond": 10, "prune": 100, "rerun": 1, "received": 1e9,
		}}},
		"stock-overlayfs": good["stock-overlayfs"],
	}
	want := map[string]int{"mixed": 2, "steps": 2, "copylink": 2, "merge": 2, "push-same": 2, "push-other": 2, "cache": 3, "gc": 2}
	for _, c := range cacheCases {
		t.Run(c.id, func(t *testing.T) {
			if c.id == "push-other" {
				ours := good["ours"]
				ours.Pushed = 1e6
				require.Empty(t, c.check(map[string]suiteMedian{"ours": ours}))
			} else {
				require.Empty(t, c.check(good))
			}
			require.Len(t, c.check(bad), want[c.id])
			r := &suiteReport{cases: []suiteCase{c}, Medians: []suiteMedian{{Case: c.id, Variant: "ours", N: 1, figures: bad["ours"].figures}}}
			if c.id != "steps" { // which promises something beside stock only
				require.ErrorContains(t, r.check(), c.id+": ")
			}
		})
	}
}

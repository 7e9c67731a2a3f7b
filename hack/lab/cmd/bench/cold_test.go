package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// coldRun is one run of the python build.
func coldRun(network, variant string, seconds float64, data int, dataSize int64) result {
	return result{Network: network, Workload: "python", Variant: variant, Seconds: seconds, Layers: data + 4, Others: 3,
		Data: data, DataSpan: 0.05, DataSize: dataSize, Bytes: dataSize, Memory: 1e6}
}

// coldReport is the report of runs of which the chunks are known.
func coldReport(t *testing.T, limits bool, runs ...result) *report {
	t.Helper()
	links, err := chooseNetworks("shaped,far", 0)
	require.NoError(t, err)
	b := &bench{
		limits: limits, networks: links, results: runs, variants: coldVariants, tocs: 2e6,
		trained: map[string]*training{"python": {chunks: 10e6}},
	}
	b.workloads, err = choose("workload", workloads, "python")
	require.NoError(t, err)
	b.image = &lab.Image{Name: "bench", Format: lab.EStargz}
	return b.report()
}

func TestWaitingAndBounds(t *testing.T) {
	good := map[string]result{
		"ours":           coldRun("shaped", "ours", 3, 40, 15e6),
		"ours-profile":   coldRun("shaped", "ours-profile", 1.5, 25, 13e6),
		"stock-stargz":   coldRun("shaped", "stock-stargz", 11, 100, 20e6),
		"warm-overlayfs": coldRun("shaped", "warm-overlayfs", 1, 0, 0),
		"far":            coldRun("far", "ours", 5.9, 40, 15e6),
		"far-warm":       coldRun("far", "warm-overlayfs", 2, 0, 0),
	}
	all := func(changed ...result) (runs []result) {
		for _, r := range good {
			for _, c := range changed {
				if c.Network == r.Network && c.Variant == r.Variant {
					r = c
				}
			}
			runs = append(runs, r)
		}
		return runs
	}
	r := coldReport(t, false, all()...)
	require.NoError(t, r.check())
	ours := find(r.row("shaped", "python"), "ours")
	require.Equal(t, reference{Waiting: 2, OfStock: 0.2, Chunks: 10e6, Floor: 0.27}, ours.reference)
	require.Zero(t, find(r.row("shaped", "python"), "warm-overlayfs").Waiting)
	require.InDelta(t, 0.52, find(r.row("far", "python"), "ours").Floor, 1e-9)
	require.Contains(t, r.markdown(), "| python | ours | 3.00 s (3.00-3.00) | 2.00 s | 0.20 | 0.27 s | 44 | 40 in 0.05 s | 3 | 15.0 MB | 1.50 | 1 MB |\n")
	require.Contains(t, r.markdown(), "| python | stock-overlayfs | 0 runs failed |  |  |  |  |  |  |  |  |  |\n")

	span := coldRun("shaped", "ours-profile", 1.5, 25, 13e6)
	span.DataSpan = 0.07
	for _, tc := range []struct {
		bad  result
		want string
	}{
		{coldRun("shaped", "ours", 5.1, 40, 15e6), "shaped python ours: waiting by stock stargz's: 0.41"},
		{coldRun("shaped", "ours", 3, 51, 15e6), "shaped python ours: data requests, beside stock"},
		{coldRun("shaped", "ours", 3, 40, 17e6), "shaped python ours: bytes over bytes"},
		{coldRun("shaped", "ours-profile", 2.6, 25, 13e6), "shaped python ours-profile: waiting by stock stargz's: 0.16"},
		{coldRun("shaped", "ours-profile", 1.6, 25, 13e6), "shaped python ours-profile: seconds of waiting, beside the floor"},
		{coldRun("shaped", "ours-profile", 1.5, 26, 13e6), "shaped python ours-profile: data requests"},
		{coldRun("shaped", "ours-profile", 1.5, 25, 14e6), "shaped python ours-profile: bytes over bytes"},
		{span, "from the first data request to the last"},
		{coldRun("far", "ours", 6.1, 40, 15e6), "far python ours: seconds of waiting, beside the link of 30 ms"},
	} {
		t.Run(tc.want, func(t *testing.T) {
			require.ErrorContains(t, coldReport(t, false, all(tc.bad)...).check(), tc.want)
		})
	}

	// Without what they are held against, rows say nothing of it.
	alone := coldReport(t, false, good["ours"])
	require.NoError(t, alone.check())
	require.Contains(t, alone.markdown(), "| python | ours | 3.00 s (3.00-3.00) |  |  | 0.27 s |")
}

func TestLimits(t *testing.T) {
	runs := []result{coldRun("shaped", "ours-profile", 1.5, 25, 13e6), coldRun("shaped", "warm-overlayfs", 1, 0, 0)}
	r := coldReport(t, true, runs...)
	require.NoError(t, r.check())
	require.Contains(t, r.markdown(), "| python | 10.0 MB | 2.0 MB | 5 | 0.27 s | 1.00 s (1.00-1.00) | 1.27 s |")
	require.Contains(t, r.markdown(), "| 0.50 s | 1.50 s (1.50-1.50) |\n")
	runs[0].Seconds = 1.6
	require.ErrorContains(t, coldReport(t, true, runs...).check(), "beside the floor")
}

func TestRoundTripOfLinks(t *testing.T) {
	links, err := chooseNetworks("shaped,loopback", 50*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, 50*time.Millisecond, links[0].shape.RTT)
	require.Equal(t, "50 ms round trip, 100 MB/s in all, 40 MB/s a connection", links[0].text)
	require.Zero(t, links[1].shape)
	links, err = chooseNetworks("shaped", 0)
	require.NoError(t, err)
	require.Equal(t, 30*time.Millisecond, links[0].shape.RTT, "the list itself is as it was")
	_, err = chooseNetworks("none", 0)
	require.ErrorContains(t, err, "unknown network")
}

func TestSaltedContext(t *testing.T) {
	w := workloads[0]
	one, other := w.salted(), w.salted()
	require.NotEqual(t, one.files["salt"], other.files["salt"])
	require.Equal(t, w.files["main.py"], one.files["main.py"])
	require.NotContains(t, w.files, "salt")
}

package main

import (
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

func TestWarmPassesThatReadFilesAreDiscarded(t *testing.T) {
	at := func(ms int) time.Time { return time.UnixMilli(1_000_000 + int64(ms)) }
	all := []interval{{at(100), at(500)}, {at(600), at(610)}, {at(800), at(830)}, {at(1000), at(1020)}, {at(1200), at(1240)}}
	looks := []look{{at(0), 0}, {at(550), 1e6}, {at(700), 1e6 + 8}, {at(900), 1e6 + 4104}, {at(1100), 1e6 + 4112}, {at(1300), 1e6 + 5000}}
	seconds, discarded, err := warmPasses(all, looks, true)
	require.NoError(t, err)
	require.Equal(t, 1, discarded, "the pass from 800 to 830")
	require.InDeltaSlice(t, []float64{0.01, 0.02, 0.04}, seconds, 1e-9)

	seconds, discarded, err = warmPasses(all, looks, false)
	require.NoError(t, err)
	require.Zero(t, discarded)
	require.Len(t, seconds, 4)

	for i := range looks {
		looks[i].wchar = int64(i) * 4096
	}
	_, _, err = warmPasses(all, looks, true)
	require.ErrorContains(t, err, "none was warm")
	_, _, err = warmPasses(all[:2], looks, true)
	require.ErrorContains(t, err, "2 passes, not 5")
}

func TestParseTimes(t *testing.T) {
	times, err := parseTimes("find 1000000000 1500000000\nls 3 4\nfind 5 6\n")
	require.NoError(t, err)
	require.Len(t, times["find"], 2)
	require.Equal(t, 500*time.Millisecond, times["find"][0].to.Sub(times["find"][0].from))
	for _, bad := range []string{"find 1\n", "find 1 x\n"} {
		_, err := parseTimes(bad)
		require.ErrorContains(t, err, "read the step's times")
	}
}

// The script is one for a shell, and prints what parseTimes reads.
func TestWarmScript(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "sh", "-c", warmScript([]pass{{id: "one", run: "echo words | cat"}})).Output()
	require.NoError(t, err)
	times, err := parseTimes(string(out))
	require.NoError(t, err)
	require.Len(t, times["one"], repeats)
	require.Greater(t, times["one"][1].from.Sub(times["one"][0].to), restBetween/2)
	require.Error(t, exec.CommandContext(t.Context(), "sh", "-c", warmScript([]pass{{id: "one", run: "false"}})).Run())
}

func TestPassesFitTheBase(t *testing.T) {
	for base, want := range map[string]int{"bench": len(passes), "demo": len(passes) - 1} {
		b, err := lab.FindBase(base)
		require.NoError(t, err)
		require.Len(t, passesOn(b), want)
	}
}

// Every suite's checks pass where ours is as good as can be, and name what is not.
func TestSuitePromises(t *testing.T) {
	extra := map[string]float64{"find": 1, "ls": 1, "tar": 1, "python": 1, "g++": 1}
	good := suiteMedian{N: 1, figures: figures{Seconds: 1, Memory: 50e6, Extra: extra}}
	full := suiteMedian{N: 1, figures: figures{Seconds: 10, Memory: 40e6, Extra: extra}}
	bad := suiteMedian{N: 1, figures: figures{Seconds: 100, Memory: 200e6, Extra: map[string]float64{"find": 9, "ls": 9, "tar": 9, "python": 9, "g++": 9}}}
	want := map[string]int{"scan": 1, "share": 1, "warm": 5, "memory": 1, "export": 2, "steps": 1}
	for _, s := range suites {
		if s.id == "cache" {
			continue // see TestCachePromises
		}
		t.Run(s.id, func(t *testing.T) {
			for _, c := range s.cases {
				require.Empty(t, c.check(map[string]suiteMedian{"ours": good, "stock-overlayfs": full}))
				require.Len(t, c.check(map[string]suiteMedian{"ours": bad, "stock-overlayfs": full}), want[s.id])
				if s.id != "memory" { // which promises something by itself
					require.Empty(t, c.check(map[string]suiteMedian{"ours": bad}))
				}
			}
			require.NotNil(t, command(s.id))
			require.NotEmpty(t, s.title)
		})
	}
}

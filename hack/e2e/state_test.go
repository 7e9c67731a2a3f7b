package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// A state directory moves from stock buildkitd to ours, back and once more, with
// layers lazy in it. Cached steps are hits on each side, and new steps build on them.
func TestStateDirectoryMovesToStockAndBack(t *testing.T) {
	privileged(t)
	r := registry(t)
	base, other := onLink(t, r, image(t, lab.EStargz)), onLink(t, r, mixedImage(t))
	root := stateDir(t)
	// Two chains that move: one on lazy layers alone, and one in which a plain layer
	// lies below, with a merge on top.
	chain := "FROM " + base + " AS chain\n"
	merged := "FROM " + other + " AS merged\nCOPY --link file /copied\n"
	seen := 0
	on := func(program, name string) {
		t.Helper()
		d, err := lab.StartDaemon(testContext(t), lab.DaemonOptions{Program: program, Root: root, Snapshotter: "stargz", Registries: []string{r.Link}})
		require.NoError(t, err, name)
		defer func() {
			// Stock leaves its mounts: nothing to be said of that here.
			err := d.Stop()
			var left *lab.LeftMountsError
			if name == "ours" {
				require.NoError(t, err)
			} else if err != nil {
				require.ErrorAs(t, err, &left)
			}
			if t.Failed() {
				t.Logf("log of %s:\n%s", name, d.LogTail(60))
			}
			require.NoError(t, d.Remove())
		}()
		// Each daemon adds a step to each chain, which reads what those before wrote.
		n := fmt.Sprint(seen)
		seen++
		chain += "RUN cat /step-* > /all-" + n + " 2> /dev/null; python3 -c 'print(" + n + ")' > /step-" + n + "\n"
		merged += "RUN cat /copied && cat /all-* > /all-" + n + " 2> /dev/null; python3 -c 'import decimal' && echo " + n + " > /step-" + n + "\n"
		out := t.TempDir()
		res := build(t, d, lab.BuildOptions{
			Dockerfile: chain + merged + "FROM scratch\nCOPY --from=chain /step-* /chain/\nCOPY --from=merged /step-* /copied /merged/\n",
			Files:      map[string]string{"file": "hello\n"},
			OutputDir:  out,
		})
		var missed []string
		for _, step := range notCached(res) {
			if strings.Contains(step, "] RUN ") {
				missed = append(missed, step)
			}
		}
		require.Len(t, missed, 2, "steps that ran on %s, number %s:\n%s", name, n, res.Logs)
		for i := range seen {
			for _, dir := range []string{"chain", "merged"} {
				got, err := os.ReadFile(filepath.Join(out, dir, fmt.Sprintf("step-%d", i)))
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("%d\n", i), string(got))
			}
		}
	}
	on(stock(t), "stock")
	on(ours(t), "ours")
	on(stock(t), "stock")
	on(ours(t), "ours")
	// A second start of ours knows the layers and mounts them without a registry.
	reset(t, r)
	on(ours(t), "ours")
	require.Zero(t, stats(t, r).LayerGets)
}

// A daemon that was killed leaves mounts. The next one detaches them, the cache
// still hits, what was fetched is still there, and builds go on.
func TestKilledDaemonStartsAgain(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	root := stateDir(t)
	opts := lab.DaemonOptions{Program: ours(t), Root: root, Snapshotter: "stargz", Registries: []string{r.Link}}
	text := "FROM " + base + "\nRUN python3 -c 'import json'\n"

	first, err := lab.StartDaemon(testContext(t), opts)
	require.NoError(t, err)
	build(t, first, lab.BuildOptions{Dockerfile: text})
	require.NotEmpty(t, mountsBelow(t, root), "a lazy layer is mounted")
	// What has been fetched is noted every two seconds; what is not noted yet is
	// lost with the process and fetched again.
	time.Sleep(4 * time.Second)
	first.Kill()

	d := daemon(t, opts)
	reset(t, r)
	res := build(t, d, lab.BuildOptions{Dockerfile: text + "RUN python3 -c 'import json; print(1)'\n"})
	require.NotZero(t, res.Cached, res.Logs)
	require.Zero(t, stats(t, r).LayerGets, "what was fetched before the crash is not fetched again")
}

package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// A state directory moves between stock buildkitd and ours, with layers lazy in
// it. Cached steps are hits on each side, and new steps build on them.
func TestStateDirectoryMovesToStockAndBack(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	root := stateDir(t)
	text := "FROM " + base + "\nRUN python3 -c 'print(6*7)' > /one\n"
	on := func(program, name string, wantCached bool, text string) {
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
		res := build(t, d, lab.BuildOptions{Dockerfile: text})
		hit := false
		for _, v := range res.Steps {
			if v.Cached && v.Name != "" && v.Name[0] == '[' {
				hit = true
			}
		}
		require.Equal(t, wantCached, hit, "cached step on %s:\n%s", name, res.Logs)
	}
	on(stock(t), "stock", false, text)
	on(ours(t), "ours", true, text+"RUN cat /one && python3 -c 'import decimal' && echo two > /two\n")
	// A second start of ours knows the layers and mounts them without a registry.
	on(ours(t), "ours", true, text+"RUN cat /one && python3 -c 'import decimal' && echo two > /two\nRUN cat /one /two\n")
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

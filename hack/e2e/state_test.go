package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// A state directory moves from stock buildkitd to ours, back and once more. All
// steps so far are cached on each side, whoever ran them, and new steps build on
// them.
func TestStateDirectoryMovesToStockAndBack(t *testing.T) {
	privileged(t)
	t.Parallel()
	for _, snapshotter := range []string{"stargz", "overlayfs"} {
		t.Run(snapshotter, func(t *testing.T) {
			m := newMover(t, snapshotter)
			m.build(stock(t), "chain", "merged")
			m.build(ours(t), "chain", "merged")
			if snapshotter == "stargz" {
				// At its start stock erases every record that stands on a lazy layer
				// (cache/manager.go: init has no handlers for getRecord), its own ones as
				// well. What lies on a plain layer is not lazy in stock, and stays.
				m.build(stock(t), "merged")
				m.erased("chain")
			} else {
				m.build(stock(t), "chain", "merged")
			}
			m.build(ours(t), "chain", "merged")
			// Another start of ours knows the layers and mounts them without a registry.
			reset(t, m.registry)
			m.build(ours(t), "chain", "merged")
			require.Zero(t, stats(t, m.registry).LayerGets)
		})
	}
}

// mover lets one daemon after the other build on the same state directory.
type mover struct {
	t           *testing.T
	registry    *lab.Registry
	root        string
	snapshotter string
	starts      int
	stages      map[string]string // Dockerfile stages, which grow
	steps       map[string][]int  // by which start a step was added to them
}

// newMover begins with two stages: one on lazy layers alone, and a merge on a plain
// layer below a lazy one.
func newMover(t *testing.T, snapshotter string) *mover {
	t.Helper()
	r := registry(t)
	return &mover{
		t: t, registry: r, root: stateDir(t), snapshotter: snapshotter, steps: map[string][]int{},
		stages: map[string]string{
			"chain":  "FROM " + onLink(t, r, image(t, lab.EStargz)) + " AS chain\n",
			"merged": "FROM " + onLink(t, r, mixedImage(t)) + " AS merged\nCOPY --link file /copied\n",
		},
	}
}

// erased takes note that the steps of a stage are no longer cached.
func (m *mover) erased(stage string) {
	from, _, _ := strings.Cut(m.stages[stage], "\n")
	m.stages[stage], m.steps[stage] = from+"\n", nil
}

// build starts a daemon, which adds a step to each of the stages and finds all
// earlier ones in the cache, and ends it.
func (m *mover) build(program string, stages ...string) {
	t := m.t
	t.Helper()
	opts := lab.DaemonOptions{Program: program, Root: m.root, Snapshotter: m.snapshotter, Registries: []string{m.registry.Link}}
	d, err := lab.StartDaemon(testContext(t), opts)
	require.NoError(t, err)
	defer func() {
		// Stock leaves its mounts: nothing to be said of that here.
		err := d.Stop()
		var left *lab.LeftMountsError
		if program == stock(t) && errors.As(err, &left) {
			err = nil
		}
		require.NoError(t, err)
		if t.Failed() {
			t.Logf("log of %s:\n%s", program, d.LogTail(60))
		}
		require.NoError(t, d.Remove())
	}()
	text, last := "", "FROM scratch\n"
	for _, s := range stages {
		m.stages[s] += fmt.Sprintf("RUN cat /step-* > /all-%[1]d; python3 -c 'print(%[1]d)' > /step-%[1]d\n", m.starts)
		m.steps[s] = append(m.steps[s], m.starts)
		text += m.stages[s]
		last += fmt.Sprintf("COPY --from=%[1]s /step-* /%[1]s/\n", s)
	}
	m.starts++
	out := t.TempDir()
	res := build(t, d, lab.BuildOptions{Dockerfile: text + last, Files: map[string]string{"file": "hello\n"}, OutputDir: out})
	var ran []string
	for _, step := range notCached(res) {
		if strings.Contains(step, "] RUN ") {
			ran = append(ran, step)
		}
	}
	require.Len(t, ran, len(stages), "steps that ran at start %d:\n%s", m.starts, res.Logs)
	for _, s := range stages {
		for _, n := range m.steps[s] {
			got, err := os.ReadFile(filepath.Join(out, s, fmt.Sprintf("step-%d", n)))
			require.NoError(t, err)
			require.Equal(t, fmt.Sprintf("%d\n", n), string(got))
		}
	}
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

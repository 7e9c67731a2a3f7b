package cachetest

import (
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var bugTests = []test{
	{name: string(LeaksParentOfNew), run: leaksParentOfNew},
	{name: string(CountsPruneAsUse), run: countsPruneAsUse},
	{name: string(LosesUnsized), run: losesUnsized},
}

// require says that a fault is there if, and only if, the implementation is known
// to have it.
func (e *env) requireBug(b Bug, there bool) {
	e.t.Helper()
	require.Equal(e.t, e.impl.has(b), there, "%s: %s", e.impl.Name, b)
}

func leaksParentOfNew(e *env) {
	evil := e.gz(file("a", "evil")).claiming(e.gz(file("a", "good")).diffID())
	_, handlers := e.remote(evil)
	r := e.pull(evil, nil, handlers)
	for range 3 {
		_, err := e.cache.New(e.ctx, r, nil)
		require.Error(e.t, err)
	}
	e.releaseAll()
	e.requireBug(LeaksParentOfNew, e.du()[r.ID()].InUse)
	e.leaks = e.impl.has(LeaksParentOfNew)
}

func countsPruneAsUse(e *env) {
	base := e.final(nil)
	top := e.final(base)
	e.releaseAll()
	e.requireUses(1, base.ID())
	e.restart()
	require.Contains(e.t, e.prune(client.PruneInfo{All: true, Filter: []string{"id==" + top.ID()}}), top.ID())
	e.settle()
	e.requireBug(CountsPruneAsUse, e.du()[base.ID()].UsageCount != 1)
}

func losesUnsized(e *env) {
	r := e.final(nil)
	e.releaseAll()
	e.faults.set(func(call string, _ int) bool { return call == "snapshotter.Usage" })
	_, err := e.tryPrune(all)
	require.ErrorIs(e.t, err, errFault)
	e.faults.set(nil)
	got, err := e.cache.Get(e.ctx, r.ID(), nil)
	if err == nil {
		keep(e, got)
		e.requireFiles(files{}, got)
	}
	e.requireBug(LosesUnsized, bkcache.IsNotFound(err))
	e.leaks = e.impl.has(LosesUnsized)
}

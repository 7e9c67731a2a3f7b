package cachetest

import (
	"strings"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var bugTests = []test{
	{name: string(LeaksParentOfNew), run: leaksParentOfNew},
	{name: string(CountsPruneAsUse), run: countsPruneAsUse},
	{name: string(LosesUnsized), run: losesUnsized},
	{name: string(PrunesOneTooMany), run: prunesOneTooMany},
	{name: string(LosesLazy), run: losesLazy},
	{name: string(CountsUsageAsUse), run: countsUsageAsUse},
}

// requireBug says that a fault is there if, and only if, the implementation is known
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
	e.requireBug(CountsPruneAsUse, e.usesOf(base.ID()) != 1)
}

func losesUnsized(e *env) {
	r := e.final(nil, file("a", "1"))
	e.releaseAll()
	e.faults.set(func(call string, _ int) bool { return call == "snapshotter.Usage" })
	removed, err := e.tryPrune(all)
	e.faults.set(nil)
	if u, ok := removed[r.ID()]; ok {
		require.NoError(e.t, err)
		require.Negative(e.t, u.Size)
		e.requireBug(LosesUnsized, true)
		return
	}
	e.requireBug(LosesUnsized, false)
	require.ErrorIs(e.t, err, errFault)
	e.requireFiles(files{"a": "1"}, e.get(r.ID()))
	require.Positive(e.t, e.size(r))
	e.releaseAll()
	require.Positive(e.t, e.prune(all)[r.ID()].Size)
}

func losesLazy(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	_, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	e.releaseAll()
	e.restart()
	r, err := e.cache.Get(e.ctx, top.ID(), nil, handlers)
	e.requireBug(LosesLazy, bkcache.IsNotFound(err))
	if err != nil {
		return
	}
	keep(e, r)
	require.Equal(e.t, r.ID(), e.image(layers, handlers).ID())
	e.requireFiles(files{"a": "1", "b": "2"}, r)
}

func countsUsageAsUse(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.releaseAll()
	e.requireUses(1, m.ID())
	before := e.picture()
	e.du()
	e.settle()
	e.requireBug(CountsUsageAsUse, e.usesOf(m.ID()) != 1)
	if !e.impl.has(CountsUsageAsUse) {
		records := func(picture string) int { return strings.Count(picture, keyCreatedAt) }
		require.Equal(e.t, records(before), records(e.picture()), "no record is made")
	}
}

func prunesOneTooMany(e *env) {
	e.big(2)
	removed := e.prune(client.PruneInfo{All: true, MinFreeSpace: 1})
	e.requireBug(PrunesOneTooMany, len(removed) > 0)
}

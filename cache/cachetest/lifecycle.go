package cachetest

import (
	"context"
	"fmt"
	"sync"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var lifecycleTests = []test{
	{name: "a record from new to pruned", run: fromNewToPruned},
	{name: "policies", run: policies},
	{name: "twins", run: twins},
	{name: "twins after a restart", run: twinsAfterRestart},
	{name: "finalize ends the twins", run: finalizeEndsTwins},
	{name: "getting an idle mutable record commits it", run: getCommits},
	{name: "errors", run: lifecycleErrors},
	{name: "clones hold", run: clonesHold},
	{name: "layer chain", run: layerChain},
	{name: "children hold their parents", run: childrenHold},
	{name: "refs of another type", run: foreignRefs},
	{name: "release with a cancelled context", run: releaseCancelled},
	{name: "all at once", run: allAtOnce},
	{name: "identity mapping", run: func(e *env) {
		require.Nil(e.t, e.cache.IdentityMapping())
		require.Nil(e.t, e.step(nil).IdentityMapping())
	}},
}

func fromNewToPruned(e *env) {
	e.requireUsage(0, 0)
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.requireUsage(1, 0)
	e.write(m, file("a", "1"))
	base := e.commit(m)
	e.requireUsage(1, 0)
	e.finalize(base)
	e.requireFiles(files{"a": "1"}, base)

	child := e.stepWith(base, []bkcache.RefOption{bkcache.CachePolicyRetain}, file("b", "2"))
	e.requireUsage(2, 0)
	e.requireFiles(files{"a": "1", "b": "2"}, child)
	e.release(base)
	e.requireUsage(2, 0)
	e.release(child)
	e.requireUsage(0, 2)
	require.Len(e.t, e.prune(all), 2)
	e.requireUsage(0, 0)
	e.requireGone(base.ID(), child.ID())
}

// policies says what is left when the last ref is released.
func policies(e *env) {
	retain, byDefault := bkcache.CachePolicyRetain, bkcache.CachePolicyDefault
	for _, c := range []struct {
		name             string
		policy           bkcache.RefOption
		commit, finalize bool
		retainTwin       bool
		left             int
	}{
		{name: "mutable"},
		{name: "mutable by default", policy: byDefault},
		{name: "mutable retained", policy: retain, left: 1},
		{name: "committed", commit: true},
		{name: "committed by default", policy: byDefault, commit: true},
		{name: "committed retained", policy: retain, commit: true, left: 1},
		{name: "committed, the twin retained", commit: true, retainTwin: true, left: 1},
		{name: "finalized", commit: true, finalize: true, left: 1},
		{name: "finalized retained", policy: retain, commit: true, finalize: true, left: 1},
	} {
		var opts []bkcache.RefOption
		if c.policy != nil {
			opts = append(opts, c.policy)
		}
		var r bkcache.Ref = e.newOn(nil, opts...)
		if c.commit {
			imm := e.commit(r.(bkcache.MutableRef))
			require.Equal(e.t, false, imm.HasCachePolicyRetain(), c.name)
			if c.retainTwin {
				require.NoError(e.t, imm.SetCachePolicyRetain())
			}
			if c.finalize {
				e.finalize(imm)
			}
			r = imm
		}
		e.release(r)
		e.settle()
		require.Len(e.t, e.du(), c.left, c.name)
		e.prune(all)
	}
}

func twins(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	imm := e.commit(m)
	twin, ok := imm.GetEqualMutable()
	require.True(e.t, ok)
	require.Equal(e.t, m.ID(), twin.ID())
	require.Equal(e.t, m.ID(), imm.GetString(keyTwin))

	_, err := e.cache.GetMutable(e.ctx, m.ID())
	e.requireLocked(err)
	e.release(imm)

	again := e.get(imm.ID())
	_, err = e.cache.GetMutable(e.ctx, m.ID())
	e.requireLocked(err)
	require.Len(e.t, e.du(), 1, "twins are one record on disk")
	e.release(again)

	// Taking the mutable one gives up the immutable one.
	m2 := e.getMutable(m.ID())
	require.Equal(e.t, m.ID(), m2.ID())
	_, err = e.cache.Get(e.ctx, imm.ID(), nil)
	require.True(e.t, bkcache.IsNotFound(err), "%v", err)
	e.write(m2, file("b", "2"))
	imm2 := e.commit(m2)
	require.NotEqual(e.t, imm.ID(), imm2.ID())
	e.requireFiles(files{"a": "1", "b": "2"}, imm2)
	require.False(e.t, e.hasSnapshot(imm2.ID()), "a mount for reading does not end the twins")
}

func twinsAfterRestart(e *env) {
	base := e.final(nil, file("base", "0"))
	m := e.newOn(base, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	imm := e.commit(m)
	e.releaseAll()
	e.restart()

	e.requireUsage(0, 2)
	again := e.get(imm.ID())
	e.requireFiles(files{"base": "0", "a": "1"}, again)
	_, err := e.cache.GetMutable(e.ctx, m.ID())
	e.requireLocked(err)
	e.release(again)
	m2 := e.getMutable(m.ID())
	e.requireGone2(imm.ID())
	imm2 := e.commit(m2)

	e.restart()
	e.requireGone2(imm.ID())
	require.NoError(e.t, e.get(imm2.ID()).Finalize(e.ctx))
	e.requireGone(m.ID())
	e.requireFiles(files{"base": "0", "a": "1"}, e.get(imm2.ID()))
}

// requireGone2 checks that an immutable record is gone at once.
func (e *env) requireGone2(id string) {
	e.t.Helper()
	_, err := e.cache.Get(e.ctx, id, nil)
	require.True(e.t, bkcache.IsNotFound(err), "%v", err)
}

func finalizeEndsTwins(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	imm := e.commit(m)
	require.True(e.t, e.hasSnapshot(m.ID()))
	var eg errgroup.Group
	for range 4 {
		eg.Go(func() error { return imm.Finalize(e.ctx) })
	}
	require.NoError(e.t, eg.Wait())
	require.NoError(e.t, imm.Finalize(e.ctx), "once more")
	_, ok := imm.GetEqualMutable()
	require.False(e.t, ok)
	e.requireGone(m.ID())
	require.True(e.t, e.hasSnapshot(imm.ID()))
	require.False(e.t, e.hasSnapshot(m.ID()))
	kept, ok := e.lease(imm.ID())
	require.True(e.t, ok)
	require.Equal(e.t, []string{imm.ID()}, kept)
	e.eventually("the mutable one's lease is still there", func() bool {
		_, ok := e.lease(m.ID())
		return !ok
	})
	_, err := e.cache.GetMutable(e.ctx, imm.ID())
	require.Error(e.t, err)
}

func getCommits(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain, bkcache.WithDescription("mine"))
	e.write(m, file("a", "1"))
	e.release(m)
	r := e.get(m.ID())
	require.NotEqual(e.t, m.ID(), r.ID())
	require.Equal(e.t, "mine", r.GetDescription())
	twin, ok := r.GetEqualMutable()
	require.True(e.t, ok)
	require.Equal(e.t, m.ID(), twin.ID())
	e.requireFiles(files{"a": "1"}, r)
	e.release(r)
	again := e.get(m.ID())
	require.Equal(e.t, r.ID(), again.ID(), "now there is a twin")
}

func lifecycleErrors(e *env) {
	_, err := e.cache.Get(e.ctx, "nothing", nil)
	require.True(e.t, bkcache.IsNotFound(err), "%v", err)
	_, err = e.cache.GetMutable(e.ctx, "nothing")
	require.True(e.t, bkcache.IsNotFound(err), "%v", err)
	require.True(e.t, bkcache.IsNotFound(fmt.Errorf("wrapped: %w", err)))
	require.False(e.t, bkcache.IsNotFound(errFault))

	imm := e.final(nil)
	_, err = e.cache.GetMutable(e.ctx, imm.ID())
	require.Error(e.t, err)
	require.NotErrorIs(e.t, err, bkcache.ErrLocked)
	require.False(e.t, bkcache.IsNotFound(err), "%v", err)

	m := e.newOn(nil, bkcache.CachePolicyRetain)
	_, err = e.cache.GetMutable(e.ctx, m.ID())
	e.requireLocked(err)
	_, err = e.cache.Get(e.ctx, m.ID(), nil)
	e.requireLocked(err)
	e.release(m)
	_, err = m.Commit(e.ctx)
	require.Error(e.t, err, "after its release")
}

func clonesHold(e *env) {
	r := e.stepWith(nil, []bkcache.RefOption{bkcache.CachePolicyRetain})
	c := keep(e, r.Clone())
	require.Equal(e.t, r.ID(), c.ID())
	e.release(r)
	e.requireUsage(1, 0)
	require.Empty(e.t, e.prune(all))
	e.release(c)
	e.requireUsage(0, 1)
}

func layerChain(e *env) {
	a := e.final(nil, file("a", "1"))
	b := e.final(a, file("b", "2"))
	other := e.final(nil, file("c", "3"))
	m := e.merge(b, other, e.diff(a, b), e.diff(other, a))
	chain := m.LayerChain()
	var got []string
	for _, r := range chain {
		got = append(got, r.ID())
	}
	diff := value[[]string](m, keyMerge)[3]
	require.Equal(e.t, []string{a.ID(), b.ID(), other.ID(), b.ID(), diff}, got)
	e.releaseAll()
	e.requireUsage(4, 2) // the diff of the unrelated ones needs both
	require.NoError(e.t, chain.Release(e.ctx))
	for _, r := range chain {
		require.Nil(e.t, r)
	}
	require.NoError(e.t, chain.Release(e.ctx), "once more")
	e.requireUsage(0, 6)
}

func childrenHold(e *env) {
	a := e.final(nil)
	b := e.final(a)
	c := e.newOn(b)
	e.release(a, b)
	e.requireUsage(3, 0)
	require.Empty(e.t, e.prune(all))
	e.release(c)
	e.requireUsage(0, 2)
	require.Len(e.t, e.prune(all), 2)
}

// foreignRef is a ref that the manager has not made itself.
type foreignRef struct{ bkcache.ImmutableRef }

func foreignRefs(e *env) {
	a, b := e.final(nil, file("a", "1")), e.final(nil, file("b", "2"))
	fa, fb := foreignRef{a}, foreignRef{b}
	e.requireFiles(files{"a": "1", "c": "3"}, e.step(fa, file("c", "3")))
	e.requireFiles(files{"a": "1", "b": "2"}, e.merge(fa, fb))
	e.requireFiles(files{"b": "2"}, e.diff(fa, fb))
}

func releaseCancelled(e *env) {
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	r := e.step(nil)
	e.forget(r)
	require.NoError(e.t, r.Release(ctx))
	f := e.final(nil, file("a", "1"))
	e.requireFiles(files{"a": "1"}, f)
	e.forget(f)
	require.NoError(e.t, f.Release(ctx))
	e.requireUsage(0, 1)
}

// allAtOnce is many builds on one base, while records are pruned.
func allAtOnce(e *env) {
	base := e.final(nil, file("base", "0"))
	var wg sync.WaitGroup
	build := func(i int) error {
		m, err := e.cache.New(e.ctx, base, nil, bkcache.CachePolicyRetain)
		if err != nil {
			return err
		}
		r, err := m.Commit(e.ctx)
		if err != nil {
			return err
		}
		if i%2 == 0 {
			if err := r.Finalize(e.ctx); err != nil {
				return err
			}
		}
		c := r.Clone()
		if err := r.Release(e.ctx); err != nil {
			return err
		}
		return c.Release(e.ctx)
	}
	errs := make(chan error, 64)
	for i := range 8 {
		wg.Go(func() {
			for range 4 {
				errs <- build(i)
			}
		})
	}
	for range 5 {
		require.NoError(e.t, e.cache.Prune(e.ctx, nil, all))
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		require.NoError(e.t, err)
	}
	e.requireFiles(files{"base": "0"}, base)
}

package cachetest

import (
	"context"
	"strings"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var pruneTests = []test{
	{name: "what is in use stays", run: pruneInUse},
	{name: "twins", run: pruneTwins},
	{name: "filters", run: pruneFilters},
	{name: "types that stay", run: pruneTypes},
	{name: "shared records stay", run: pruneShared},
	{name: "keep duration", run: pruneKeepDuration},
	{name: "to a size", run: pruneToSize},
	{name: "often used records last", run: pruneByUse},
	{name: "several policies", run: prunePolicies},
	{name: "more than a batch", run: pruneMany},
	{name: "what is told", run: pruneTold},
	{name: "cancelled", run: pruneCancelled},
	{name: "blobs that nothing keeps", run: pruneBlobs},
}

func pruneInUse(e *env) {
	base := e.step(nil)
	top := e.stepWith(base, []bkcache.RefOption{bkcache.CachePolicyRetain})
	require.Empty(e.t, e.prune(client.PruneInfo{}))
	e.requireUsage(2, 0)
	e.release(top)
	e.requireUsage(1, 1)
	require.Len(e.t, e.prune(client.PruneInfo{}), 1)
	require.True(e.t, e.hasSnapshot(base.ID()))

	top = e.stepWith(base, []bkcache.RefOption{bkcache.CachePolicyRetain})
	e.release(base)
	require.Empty(e.t, e.prune(client.PruneInfo{}))
	e.requireUsage(2, 0)
	e.release(top)
	e.requireUsage(0, 2)
	require.Len(e.t, e.prune(client.PruneInfo{}), 2)
	require.False(e.t, e.hasSnapshot(base.ID()))
}

func pruneTwins(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	imm := e.commit(m)
	require.Empty(e.t, e.prune(all))
	e.release(imm)
	removed := e.prune(all)
	require.Len(e.t, removed, 1)
	require.True(e.t, removed[m.ID()].Mutable)
	e.requireGone(m.ID(), imm.ID())
}

func pruneFilters(e *env) {
	a := e.stepWith(nil, []bkcache.RefOption{bkcache.WithDescription("apple")})
	b := e.stepWith(nil, []bkcache.RefOption{bkcache.WithDescription("banana")})
	for _, r := range []bkcache.ImmutableRef{a, b} {
		e.finalize(r)
		e.release(r)
	}
	require.Empty(e.t, e.prune(client.PruneInfo{Filter: []string{"description==cherry"}}))
	removed := e.prune(client.PruneInfo{Filter: []string{"description==banana"}, All: true})
	require.Len(e.t, removed, 1)
	require.Contains(e.t, removed, b.ID())
	removed = e.prune(client.PruneInfo{Filter: []string{"description==banana", "id==" + a.ID()}})
	require.Contains(e.t, removed, a.ID())
}

func pruneTypes(e *env) {
	for _, c := range []struct {
		t     client.UsageRecordType
		stays bool
	}{
		{client.UsageRecordTypeRegular, false},
		{client.UsageRecordTypeInternal, true},
		{client.UsageRecordTypeFrontend, true},
		{client.UsageRecordTypeLocalSource, false},
		{client.UsageRecordTypeGitCheckout, false},
		{client.UsageRecordTypeCacheMount, false},
	} {
		m := e.newOn(nil, bkcache.CachePolicyRetain, bkcache.WithRecordType(c.t))
		e.release(m)
		removed := e.prune(client.PruneInfo{})
		require.Equal(e.t, c.stays, len(removed) == 0, "%s", c.t)
		removed = e.prune(client.PruneInfo{Filter: []string{"type==" + string(c.t)}, All: true})
		require.Equal(e.t, c.stays, len(removed) == 1, "%s", c.t)
	}
}

func pruneShared(e *env) {
	s := e.share()
	a, b := e.final(nil), e.final(nil)
	s.ids[a.ID()] = true
	e.releaseAll()
	require.Contains(e.t, e.prune(client.PruneInfo{}), b.ID())
	require.Empty(e.t, e.prune(client.PruneInfo{}))
	require.Empty(e.t, e.prune(client.PruneInfo{All: true, Filter: []string{"private"}}))
	require.Len(e.t, e.prune(client.PruneInfo{All: true, Filter: []string{"shared"}}), 1)

	c := e.final(nil)
	s.ids[c.ID()] = true
	e.releaseAll()
	require.Len(e.t, e.prune(all), 1, "All without a filter asks nobody")
}

func pruneKeepDuration(e *env) {
	used := e.final(nil)
	e.release(used)
	child := e.final(nil)
	e.forget(child)
	require.NoError(e.t, child.Release(e.ctx))
	require.Empty(e.t, e.prune(client.PruneInfo{KeepDuration: time.Hour}))
	time.Sleep(time.Millisecond)
	require.Len(e.t, e.prune(client.PruneInfo{KeepDuration: time.Nanosecond}), 2)
}

// big makes records of about 100 kB, each used once, in order.
func (e *env) big(n int) (ids []string) {
	e.t.Helper()
	for range n {
		r := e.final(nil, file("f", strings.Repeat("x", 100_000)))
		e.release(r)
		ids = append(ids, r.ID())
		time.Sleep(time.Millisecond)
	}
	return ids
}

func (e *env) total() (n int64) {
	e.t.Helper()
	for _, u := range e.du() {
		n += u.Size
	}
	return n
}

func pruneToSize(e *env) {
	ids := e.big(4)
	total := e.total()
	one := total / 4
	for _, c := range []struct {
		name   string
		policy client.PruneInfo
		left   int
	}{
		{"it fits", client.PruneInfo{All: true, MaxUsedSpace: total + 1}, 4},
		{"too much", client.PruneInfo{All: true, MaxUsedSpace: total - one/2}, 3},
		{"reserved", client.PruneInfo{All: true, MaxUsedSpace: 1, ReservedSpace: 2*one + one/2}, 2},
		{"not enough free space, and reserved", client.PruneInfo{All: true, MinFreeSpace: 1 << 60, ReservedSpace: one + one/2}, 1},
		{"nothing", client.PruneInfo{All: true, MaxUsedSpace: 1}, 0},
	} {
		e.prune(c.policy)
		du := e.du()
		require.Len(e.t, du, c.left, c.name)
		for _, id := range ids[4-c.left:] {
			require.NotNil(e.t, du[id], "%s: the oldest go first", c.name)
		}
	}
}

func pruneByUse(e *env) {
	ids := e.big(3)
	for range 5 {
		e.release(e.get(ids[0]))
	}
	e.release(e.get(ids[2]))
	total := e.total()
	removed := e.prune(client.PruneInfo{All: true, MaxUsedSpace: total - 1})
	require.Len(e.t, removed, 1)
	require.Contains(e.t, removed, ids[1])
}

func prunePolicies(e *env) {
	a := e.newOn(nil, bkcache.CachePolicyRetain, bkcache.WithRecordType(client.UsageRecordTypeCacheMount))
	b := e.newOn(nil, bkcache.CachePolicyRetain, bkcache.WithRecordType(client.UsageRecordTypeLocalSource))
	c := e.newOn(nil, bkcache.CachePolicyRetain)
	e.releaseAll()
	removed := e.prune(
		client.PruneInfo{Filter: []string{"type==" + string(client.UsageRecordTypeCacheMount)}},
		client.PruneInfo{Filter: []string{"type==" + string(client.UsageRecordTypeLocalSource)}},
	)
	require.Len(e.t, removed, 2)
	require.Contains(e.t, removed, a.ID())
	require.Contains(e.t, removed, b.ID())
	require.NotNil(e.t, e.du()[c.ID()])
	require.Empty(e.t, e.prune(), "no policy removes nothing")
}

func pruneMany(e *env) {
	var r bkcache.ImmutableRef
	for range 13 {
		n := e.final(r)
		if r != nil {
			e.release(r)
		}
		r = n
	}
	for range 13 {
		e.final(nil)
	}
	e.releaseAll()
	e.requireUsage(0, 26)
	require.Len(e.t, e.prune(all), 26)
}

func pruneTold(e *env) {
	a, b := e.final(nil), e.final(nil, file("b", strings.Repeat("x", 10000)))
	m := e.merge(a, b)
	d := e.diff(a, b)
	top := e.stepWith(b, []bkcache.RefOption{bkcache.WithDescription("top")}, file("t", "1"))
	e.finalize(top)
	e.releaseAll()
	before := e.du()
	removed := e.prune(all)
	require.Len(e.t, removed, 5)
	for id, u := range removed {
		require.Equal(e.t, before[id].Size, u.Size)
		require.ElementsMatch(e.t, before[id].Parents, u.Parents)
		require.Equal(e.t, before[id].Description, u.Description)
		require.True(e.t, before[id].CreatedAt.Equal(u.CreatedAt))
		require.False(e.t, u.InUse)
	}
	require.Equal(e.t, []string{a.ID(), b.ID()}, removed[m.ID()].Parents)
	require.Equal(e.t, []string{a.ID(), b.ID()}, removed[d.ID()].Parents)
	require.Equal(e.t, []string{b.ID()}, removed[top.ID()].Parents)
	require.Equal(e.t, "top", removed[top.ID()].Description)
	require.NotNil(e.t, removed[a.ID()].LastUsedAt)
	require.Equal(e.t, 1, removed[a.ID()].UsageCount)
}

func pruneCancelled(e *env) {
	e.release(e.final(nil))
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	require.ErrorIs(e.t, e.cache.Prune(ctx, nil, all), context.Canceled)
}

func pruneBlobs(e *env) {
	l := e.gz(file("a", "1"))
	e.store(l)
	require.NoError(e.t, e.cache.Prune(e.ctx, nil), "the collector runs without a policy, too")
	require.False(e.t, e.hasBlob(l.desc.Digest))
}

package cachetest

import (
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"
)

var metadataTests = []test{
	{name: "options of a new record", run: newOptions},
	{name: "getters and setters", run: gettersAndSetters},
	{name: "search", run: search},
	{name: "external values", run: external},
	{name: "uses", run: uses},
	{name: "uses of twins", run: usesOfTwins},
	{name: "image references", run: imageRefs},
}

func newOptions(e *env) {
	when := time.Unix(1234, 5678)
	opts := []bkcache.RefOption{
		bkcache.CachePolicyRetain,
		bkcache.WithDescription("a step"),
		bkcache.WithRecordType(client.UsageRecordTypeCacheMount),
		bkcache.WithCreationTime(when),
	}
	check := func(r bkcache.Ref) {
		e.t.Helper()
		require.True(e.t, r.HasCachePolicyRetain())
		require.False(e.t, r.HasCachePolicyDefault())
		require.Equal(e.t, "a step", r.GetDescription())
		require.Equal(e.t, client.UsageRecordTypeCacheMount, r.GetRecordType())
		require.True(e.t, when.Equal(r.GetCreatedAt()))
		u := e.du()[r.ID()]
		require.NotNil(e.t, u)
		require.Equal(e.t, "a step", u.Description)
		require.Equal(e.t, client.UsageRecordTypeCacheMount, u.RecordType)
		require.True(e.t, when.Equal(u.CreatedAt))
	}
	m := e.newOn(nil, opts...)
	check(m)
	e.release(m)
	e.restart()
	m = e.getMutable(m.ID())
	check(m)

	// A commit takes the description along, and nothing else.
	imm := e.commit(m)
	require.Equal(e.t, "a step", imm.GetDescription())
	require.Empty(e.t, imm.GetRecordType())
	require.False(e.t, imm.HasCachePolicyRetain())
	require.False(e.t, when.Equal(imm.GetCreatedAt()))

	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	check(e.pull(l, nil, append(opts, handlers)...))
	e.finalize(imm)
	merged, err := e.cache.Merge(e.ctx, []bkcache.ImmutableRef{imm, e.final(nil)}, nil, opts...)
	require.NoError(e.t, err)
	check(keep(e, merged))
	diff, err := e.cache.Diff(e.ctx, imm, nil, nil, opts...)
	require.NoError(e.t, err)
	check(keep(e, diff))

	before := time.Now()
	plain := e.newOn(nil)
	require.False(e.t, plain.GetCreatedAt().Before(before.Truncate(0).Add(-time.Millisecond)))
	require.True(e.t, plain.HasCachePolicyDefault())
	require.Equal(e.t, client.UsageRecordTypeRegular, e.du()[plain.ID()].RecordType)
}

func gettersAndSetters(e *env) {
	r := e.final(nil)
	require.NoError(e.t, r.SetDescription("d"))
	require.NoError(e.t, r.SetLayerType("windows"))
	require.NoError(e.t, r.SetRecordType(client.UsageRecordTypeInternal))
	require.NoError(e.t, r.SetCreatedAt(time.Unix(99, 0)))
	require.NoError(e.t, r.SetCachePolicyRetain())
	check := func(r bkcache.RefMetadata) {
		e.t.Helper()
		require.Equal(e.t, "d", r.GetDescription())
		require.Equal(e.t, "windows", r.GetLayerType())
		require.Equal(e.t, client.UsageRecordTypeInternal, r.GetRecordType())
		require.True(e.t, time.Unix(99, 0).Equal(r.GetCreatedAt()))
		require.True(e.t, r.HasCachePolicyRetain())
	}
	check(r)
	check(e.get(r.ID()))
	e.releaseAll()
	e.restart()
	again := e.get(r.ID())
	check(again)
	require.NoError(e.t, again.SetCachePolicyDefault())
	require.True(e.t, again.HasCachePolicyDefault())
}

func search(e *env) {
	found := func(idx string, prefix bool) (ids []string) {
		e.t.Helper()
		list, err := e.cache.Search(e.ctx, idx, prefix)
		require.NoError(e.t, err)
		for _, md := range list {
			ids = append(ids, md.ID())
		}
		return ids
	}
	a, b := e.final(nil), e.final(nil)
	require.Empty(e.t, found("my.index:x", false))
	require.NoError(e.t, a.SetString("my.key", "x", "my.index:x"))
	require.NoError(e.t, b.SetString("my.key", "xy", "my.index:xy"))
	require.Equal(e.t, "x", a.GetString("my.key"))
	require.Equal(e.t, []string{a.ID()}, found("my.index:x", false))
	require.ElementsMatch(e.t, []string{a.ID(), b.ID()}, found("my.index:", true))
	require.Empty(e.t, found("my.index:", false))

	list, err := e.cache.Search(e.ctx, "my.index:x", false)
	require.NoError(e.t, err)
	require.NoError(e.t, list[0].SetDescription("by search"))
	require.Equal(e.t, "by search", a.GetDescription(), "both are the same record")

	e.releaseAll()
	e.restart()
	require.Equal(e.t, []string{a.ID()}, found("my.index:x", false))
	a, b = e.get(a.ID()), e.get(b.ID())
	require.NoError(e.t, a.ClearValueAndIndex("my.key", "my.index:"))
	require.Empty(e.t, a.GetString("my.key"))
	require.Empty(e.t, found("my.index:x", false))
	e.release(b)
	e.prune(all)
	require.Empty(e.t, found("my.index:", true))
}

func external(e *env) {
	r := e.final(nil)
	_, err := r.GetExternal("big")
	require.Error(e.t, err)
	require.NoError(e.t, r.SetExternal("big", []byte("value")))
	e.releaseAll()
	e.restart()
	got, err := e.get(r.ID()).GetExternal("big")
	require.NoError(e.t, err)
	require.Equal(e.t, "value", string(got))
}

// requireUses checks how often a record was used.
func (e *env) requireUses(n int, id string) {
	e.t.Helper()
	require.Equal(e.t, n, e.usesOf(id))
}

// usesOf is how often a record was used, as it is stored.
func (e *env) usesOf(id string) (n int) {
	e.t.Helper()
	si, ok := e.records.Get(id)
	require.True(e.t, ok)
	if v := si.Get(keyUsageCount); v != nil {
		require.NoError(e.t, v.Unmarshal(&n))
	}
	return n
}

func uses(e *env) {
	r := e.final(nil)
	id := r.ID()
	e.requireUses(0, id)
	e.release(r)
	e.requireUses(1, id)

	// Uses at the same time are one.
	a, b := e.get(id), e.get(id)
	e.release(a)
	e.requireUses(1, id)
	e.release(b)
	e.requireUses(2, id)

	e.release(e.get(id, bkcache.NoUpdateLastUsed))
	e.requireUses(2, id)

	// A clone is no use of its own, even if it is the last one.
	c := e.get(id)
	clone := keep(e, c.Clone())
	e.release(c)
	e.requireUses(3, id)
	e.release(clone)
	e.requireUses(3, id)

	// Nor is a child.
	parent := e.get(id)
	child := e.final(parent)
	e.release(parent)
	e.requireUses(4, id)
	e.release(child)
	e.requireUses(1, child.ID())
	e.requireUses(4, id)
	require.Contains(e.t, e.prune(all), child.ID())

	again := e.final(nil)
	e.releaseAll()
	last := e.du()[again.ID()].LastUsedAt
	e.restart()
	require.True(e.t, last.Equal(*e.du()[again.ID()].LastUsedAt))
	e.requireUses(1, again.ID())
}

func usesOfTwins(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	id := m.ID()
	e.release(m)
	e.requireUses(1, id)
	m = e.getMutable(id)
	imm := e.commit(m)
	e.requireUses(0, imm.ID())
	e.release(imm)
	e.requireUses(2, id)
	e.release(e.get(imm.ID()))
	e.requireUses(3, id)
	e.release(e.get(imm.ID(), bkcache.NoUpdateLastUsed))
	e.requireUses(3, id)
}

func imageRefs(e *env) {
	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers, bkcache.WithImageRef("example.com/a:1"))
	require.Equal(e.t, []string{"example.com/a:1"}, value[[]string](r, keyImageRefs))
	e.pull(l, nil, handlers, bkcache.WithImageRef("example.com/b:2"))
	e.pull(l, nil, handlers, bkcache.WithImageRef("example.com/a:1"))
	require.Equal(e.t, []string{"example.com/a:1", "example.com/b:2"}, value[[]string](r, keyImageRefs))

	// Who pulls the blob says where it came from.
	require.Empty(e.t, r.GetDescription())
	require.NoError(e.t, r.Extract(e.ctx, nil))
	require.Equal(e.t, "pulled from example.com/a:1", r.GetDescription())
	m := e.newOn(nil, bkcache.WithImageRef("example.com/c:3"))
	require.Equal(e.t, []string{"example.com/c:3"}, value[[]string](m, keyImageRefs))
}

package cachetest

import (
	"strings"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var usageTests = []test{
	{name: "what is told", run: usageTold},
	{name: "filters", run: usageFilters},
	{name: "age", run: usageAge},
	{name: "a filter that is none", run: func(e *env) {
		_, err := e.cache.DiskUsage(e.ctx, client.DiskUsageInfo{Filter: []string{"id==="}})
		require.Error(e.t, err)
		require.Error(e.t, e.cache.Prune(e.ctx, nil, client.PruneInfo{Filter: []string{"id==="}}))
	}},
	{name: "shared", run: usageShared},
}

func usageTold(e *env) {
	base := e.final(nil, file("a", strings.Repeat("x", 10000)))
	m := e.newOn(base, bkcache.CachePolicyRetain)
	e.write(m, file("b", strings.Repeat("y", 20000)))
	du := e.du()
	require.Len(e.t, du, 2)
	b := du[base.ID()]
	require.True(e.t, b.InUse)
	require.False(e.t, b.Mutable)
	require.GreaterOrEqual(e.t, b.Size, int64(10000))
	require.Less(e.t, b.Size, int64(30000))
	require.Empty(e.t, b.Parents)
	require.Nil(e.t, b.LastUsedAt)
	require.Zero(e.t, b.UsageCount)
	require.Equal(e.t, client.UsageRecordTypeRegular, b.RecordType)
	require.True(e.t, base.GetCreatedAt().Equal(b.CreatedAt))
	u := du[m.ID()]
	require.True(e.t, u.Mutable)
	require.True(e.t, u.InUse)
	require.Equal(e.t, []string{base.ID()}, u.Parents)
	require.Zero(e.t, u.Size, "it is changing")
	e.releaseAll()

	u = e.du()[m.ID()]
	require.False(e.t, u.InUse)
	require.GreaterOrEqual(e.t, u.Size, int64(20000))
	require.Equal(e.t, 1, u.UsageCount)
	require.WithinDuration(e.t, time.Now(), *u.LastUsedAt, time.Minute)
	require.False(e.t, e.du()[base.ID()].InUse, "only an idle record stands on it")

	// The immutable twin is listed while it is in use.
	imm := e.commit(e.getMutable(m.ID()))
	du = e.du()
	require.Len(e.t, du, 2)
	require.NotNil(e.t, du[imm.ID()])
	require.False(e.t, du[imm.ID()].Mutable)
	require.GreaterOrEqual(e.t, du[imm.ID()].Size, int64(20000))
	e.release(imm)
	du = e.du()
	require.Len(e.t, du, 2)
	require.True(e.t, du[m.ID()].Mutable)
}

func usageFilters(e *env) {
	retain := []bkcache.RefOption{bkcache.CachePolicyRetain}
	a := e.stepWith(nil, append(retain, bkcache.WithDescription("apple")))
	e.finalize(a)
	b := e.stepWith(a, append(retain, bkcache.WithDescription("banana"), bkcache.WithRecordType(client.UsageRecordTypeLocalSource)))
	e.release(b)
	twin, _ := b.GetEqualMutable()
	names := map[string]string{a.ID(): "a", twin.ID(): "b"}
	for _, c := range []struct {
		filter []string
		want   string
	}{
		{nil, "ab"},
		{[]string{"id==" + a.ID()}, "a"},
		{[]string{"id!=" + a.ID()}, "b"},
		{[]string{"id~=" + a.ID()[:8]}, "a"},
		{[]string{"parents==" + a.ID()}, "b"},
		{[]string{"parents"}, "b"},
		{[]string{"description==apple"}, "a"},
		{[]string{"description~=an"}, "b"},
		{[]string{"type==regular"}, "a"},
		{[]string{"type==source.local"}, "b"},
		{[]string{"inuse"}, "a"},
		{[]string{"mutable"}, "b"},
		{[]string{"immutable"}, "a"},
		{[]string{"shared"}, ""},
		{[]string{"private"}, "ab"},
		{[]string{"private,mutable"}, "b"},
		{[]string{"mutable", "immutable"}, "ab"},
		{[]string{"size"}, ""},
		{[]string{"nothing==1"}, ""},
	} {
		got := ""
		du := e.du(c.filter...)
		for _, id := range []string{a.ID(), twin.ID()} {
			if du[id] != nil {
				got += names[id]
			}
		}
		require.Equal(e.t, c.want, got, "%v", c.filter)
		require.Len(e.t, du, len(c.want), "%v", c.filter)
	}
}

func usageAge(e *env) {
	used := e.final(nil)
	e.release(used)
	never := e.final(nil)
	count := func(age time.Duration) int {
		list, err := e.cache.DiskUsage(e.ctx, client.DiskUsageInfo{AgeLimit: age})
		require.NoError(e.t, err)
		return len(list)
	}
	require.Equal(e.t, 2, count(0))
	require.Equal(e.t, 1, count(time.Hour), "only the one that was never used")
	time.Sleep(time.Millisecond)
	require.Equal(e.t, 2, count(time.Nanosecond))
	require.NotNil(e.t, e.du()[never.ID()])
}

// sharing says which records others need: by id, or by the blobs below.
type sharing struct {
	ids   map[string]bool
	blobs map[digest.Digest]bool
	err   error
}

func (s *sharing) checker() (bkcache.ExternalRefChecker, error) {
	if s.err != nil {
		return nil, s.err
	}
	return s, nil
}

// Exists implements bkcache.ExternalRefChecker.
func (s *sharing) Exists(id string, blobs []digest.Digest) bool {
	return s.ids[id] || len(blobs) > 0 && s.blobs[blobs[len(blobs)-1]]
}

// share has the manager ask a sharing.
func (e *env) share() *sharing {
	e.t.Helper()
	s := &sharing{ids: map[string]bool{}, blobs: map[digest.Digest]bool{}}
	e.shared = s.checker
	e.restart()
	return s
}

func usageShared(e *env) {
	s := e.share()
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2")), e.gz(file("c", "3"))}
	_, handlers := e.remote(layers...)
	var refs []bkcache.ImmutableRef
	for i, l := range layers {
		var parent bkcache.ImmutableRef
		if i > 0 {
			parent = refs[i-1]
		}
		refs = append(refs, e.pull(l, parent, handlers))
	}
	s.blobs[layers[1].desc.Digest] = true
	du := e.du()
	require.True(e.t, du[refs[0].ID()].Shared, "its child is")
	require.True(e.t, du[refs[1].ID()].Shared)
	require.False(e.t, du[refs[2].ID()].Shared)
	require.Len(e.t, e.du("shared"), 2)
	require.Len(e.t, e.du("private"), 1)
	s.err = errFault
	_, err := e.cache.DiskUsage(e.ctx, client.DiskUsageInfo{})
	require.ErrorIs(e.t, err, errFault)
	require.ErrorIs(e.t, e.cache.Prune(e.ctx, nil, client.PruneInfo{}), errFault)
	s.err = nil
}

package cachetest

import (
	"strconv"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var mergeTests = []test{
	{name: "of nothing", run: func(e *env) {
		r, err := e.cache.Merge(e.ctx, nil, nil)
		require.NoError(e.t, err)
		require.Nil(e.t, r)
		r, err = e.cache.Merge(e.ctx, []bkcache.ImmutableRef{nil}, nil)
		require.NoError(e.t, err)
		require.Nil(e.t, r)
	}},
	{name: "of one", run: mergeOfOne},
	{name: "of six", run: mergeOfSix},
	{name: "what is on top wins", run: mergeOrder},
	{name: "of merges", run: mergeOfMerges},
	{name: "of lazy images", run: mergeOfLazy},
	{name: "a layer that occurs twice", run: mergeTwice},
	{name: "after a restart", run: mergeAfterRestart},
}

var diffTests = []test{
	{name: "parents are held", run: diffHolds},
	{name: "what is shown", run: diffShows},
	{name: "of an ancestor is a merge of layers", run: diffOfAncestor},
	{name: "with scratch", run: diffWithScratch},
	{name: "of lazy layers", run: diffOfLazy},
	{name: "without a lower one", run: func(e *env) {
		_, err := e.cache.Diff(e.ctx, nil, e.final(nil), nil)
		require.Error(e.t, err)
	}},
}

func mergeOfOne(e *env) {
	r := e.final(nil, file("a", "1"))
	m := e.merge(nil, r)
	require.Equal(e.t, r.ID(), m.ID())
	e.release(r)
	e.requireFiles(files{"a": "1"}, m)
	e.requireUsage(1, 0)
}

func mergeOfSix(e *env) {
	var refs []bkcache.ImmutableRef
	for i := range 6 {
		refs = append(refs, e.step(nil, file(strconv.Itoa(i), "x")))
	}
	m1, m2 := e.merge(refs[:3]...), e.merge(refs[3:]...)
	require.True(e.t, value[bool](m1, keyCommitted))
	require.Equal(e.t, m1.ID(), snapshotID(m1))
	require.False(e.t, e.hasSnapshot(m1.ID()), "it is made when it is needed")
	e.requireFiles(files{"0": "x", "1": "x", "2": "x"}, m1)
	e.requireFiles(files{"3": "x", "4": "x", "5": "x"}, m2)
	e.requireUsage(8, 0)
	for _, r := range refs {
		e.release(r)
	}
	e.requireUsage(8, 0)
	m3 := e.merge(m1, m2)
	e.release(m1, m2)
	require.Len(e.t, value[[]string](m3, keyMerge), 6)
	e.requireFiles(files{"0": "x", "1": "x", "2": "x", "3": "x", "4": "x", "5": "x"}, m3)
	e.requireUsage(7, 2)
	require.NotEmpty(e.t, e.prune(client.PruneInfo{Filter: []string{"id==" + m1.ID()}}))
	e.release(m3)
	e.requireUsage(0, 8)
	require.Len(e.t, e.prune(all), 8)
}

func mergeOrder(e *env) {
	a := e.step(nil, file("f", "1"), file("g", "1"), file("d/x", "1"))
	b := e.step(nil, file("f", "2"), file("d/y", "2"))
	base := e.step(nil, file("g", "0"))
	del := e.step(base, gone("g"))
	e.requireFiles(files{"f": "2", "g": "1", "d/": "", "d/x": "1", "d/y": "2"}, e.merge(a, b))
	e.requireFiles(files{"f": "1", "g": "1", "d/": "", "d/x": "1", "d/y": "2"}, e.merge(b, a))
	e.requireFiles(files{"f": "2", "d/": "", "d/x": "1", "d/y": "2"}, e.merge(a, b, e.diff(base, del)))
	e.requireFiles(files{"f": "2", "h": "3", "g": "1", "d/": "", "d/x": "1", "d/y": "2"}, e.step(e.merge(a, b), file("h", "3")))
}

func mergeOfMerges(e *env) {
	a, b, c := e.final(nil, file("a", "1")), e.final(nil, file("b", "2")), e.final(nil, file("c", "3"))
	m := e.merge(e.merge(a, b), c, e.merge(c, a))
	require.Equal(e.t, []string{a.ID(), b.ID(), c.ID(), c.ID(), a.ID()}, value[[]string](m, keyMerge))
	require.Equal(e.t, value[[]string](m, keyMerge), e.du()[m.ID()].Parents)
	e.requireFiles(files{"a": "1", "b": "2", "c": "3"}, m)
	e.forget(m)
	e.releaseAll()
	e.requireUsage(4, 2)
	require.Len(e.t, e.prune(all), 2)
	e.requireFiles(files{"a": "1", "b": "2", "c": "3"}, keep(e, m))
}

func mergeOfLazy(e *env) {
	la, lb := e.gz(file("a", "1")), e.gz(file("b", "2"))
	rega, ha := e.remote(la)
	regb, hb := e.remote(lb)
	a, b := e.pull(la, nil, ha), e.pull(lb, nil, hb)
	m := e.merge(a, b)
	require.Same(e.t, ha[la.desc.Digest], m.DescHandler(la.desc.Digest))
	require.Same(e.t, hb[lb.desc.Digest], m.DescHandler(lb.desc.Digest))
	e.release(a, b)
	remote := e.remoteOf(m, compression.New(compression.Gzip))
	require.Len(e.t, remote.Descriptors, 2)
	require.Zero(e.t, rega.fetched(la)+regb.fetched(lb))
	e.requireFiles(files{"a": "1", "b": "2"}, m)
	require.Equal(e.t, 1, rega.fetched(la))
	require.Equal(e.t, 1, regb.fetched(lb))
}

func mergeTwice(e *env) {
	a, b := e.final(nil, file("f", "1")), e.final(nil, file("f", "2"))
	m := e.merge(a, b, a)
	e.requireFiles(files{"f": "1"}, m)
	require.Len(e.t, e.remoteOf(m, compression.New(compression.Gzip)).Descriptors, 3)
	e.requireFiles(files{"f": "1"}, e.merge(a, a))
}

func mergeAfterRestart(e *env) {
	a, b := e.final(nil, file("a", "1")), e.final(nil, file("b", "2"))
	m, d := e.merge(a, b), e.diff(a, b)
	e.restart()
	e.requireUsage(0, 4)
	e.requireFiles(files{"a": "1", "b": "2"}, e.get(m.ID()))
	e.requireFiles(files{"b": "2"}, e.get(d.ID()))
	e.requireUsage(4, 0)
	e.restart()
	e.requireFiles(files{"a": "1", "b": "2"}, e.get(m.ID()))
}

func diffHolds(e *env) {
	lower, upper := e.step(nil), e.step(nil, file("a", "1"))
	d := e.diff(lower, upper)
	e.requireUsage(3, 0)
	e.release(lower, upper)
	e.requireUsage(3, 0)
	require.Empty(e.t, e.prune(all))
	e.requireFiles(files{"a": "1"}, d)
	require.Equal(e.t, []string{lower.ID(), upper.ID()}, e.du()[d.ID()].Parents)
	e.release(d)
	e.requireUsage(0, 3)
	require.Len(e.t, e.prune(all), 3)
}

func diffShows(e *env) {
	base := e.final(nil, file("keep", "1"), file("gone", "1"), file("d/x", "1"))
	top := e.final(base, gone("gone"), file("new", "2"), file("d/y", "2"))
	other := e.final(nil, file("keep", "other"), file("more", "3"))
	e.requireFiles(files{"new": "2", "d/": "", "d/y": "2"}, e.diff(base, top))
	e.requireFiles(files{"keep": "other", "more": "3"}, e.diff(base, other))
	e.requireFiles(files{"more": "3", "new": "2", "keep": "other", "d/": "", "d/y": "2"}, e.merge(other, e.diff(base, top)))
	e.requireFiles(files{}, e.diff(top, top))
}

func diffOfAncestor(e *env) {
	refs := []bkcache.ImmutableRef{e.step(nil, file("0", "x"))}
	for i := range 4 {
		refs = append(refs, e.step(refs[i], file(strconv.Itoa(i+1), "x")))
	}
	d := e.diff(refs[2], refs[4])
	e.requireUsage(8, 0) // five layers, two diffs, one merge
	parts := value[[]string](d, keyMerge)
	require.Len(e.t, parts, 2)
	for i, id := range parts {
		part := e.get(id, bkcache.NoUpdateLastUsed)
		require.Equal(e.t, refs[2+i].ID(), part.GetString(keyLower))
		require.Equal(e.t, refs[3+i].ID(), part.GetString(keyUpper))
		require.Contains(e.t, part.GetDescription(), "diff ")
		e.release(part)
	}
	for _, r := range refs {
		e.release(r)
	}
	e.requireUsage(8, 0)
	require.Empty(e.t, e.prune(all))
	e.requireFiles(files{"3": "x", "4": "x"}, d)
	blobs := e.remoteOf(d, compression.New(compression.Gzip)).Descriptors
	require.Len(e.t, blobs, 2)
	require.Equal(e.t, []string{"3"}, e.namesIn(e.remoteOf(d, compression.New(compression.Gzip)), 0))
	e.release(d)
	e.requireUsage(0, 8)
	require.Len(e.t, e.prune(all), 8)

	// One layer above is a diff, which has that layer's blob.
	a := e.final(nil, file("a", "1"))
	b := e.final(a, file("b", "2"))
	one := e.diff(a, b)
	require.Empty(e.t, value[[]string](one, keyMerge))
	remote := e.remoteOf(one, compression.New(compression.Gzip))
	require.Len(e.t, remote.Descriptors, 1)
	require.Equal(e.t, digestOf(b, keyBlob), remote.Descriptors[0].Digest)
	require.Empty(e.t, digestOf(one, keyBlob))
	// So is the diff of a base layer to nothing above it.
	self := e.diff(b, b)
	require.Len(e.t, e.remoteOf(self, compression.New(compression.Gzip)).Descriptors, 1)
}

func diffWithScratch(e *env) {
	base := e.final(nil, file("a", "1"))
	d := e.diff(base, nil)
	require.Equal(e.t, []string{base.ID()}, e.du()[d.ID()].Parents)
	e.requireFiles(files{}, d)
	remote := e.remoteOf(d, compression.New(compression.Gzip))
	require.Equal(e.t, []string{".wh.a"}, e.namesIn(remote, 0))
	require.Equal(e.t, remote.Descriptors[0].Digest, digestOf(d, keyBlob))
	e.release(base, d)
	e.requireUsage(0, 2)
	require.Len(e.t, e.prune(all), 2)
}

func diffOfLazy(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2")), e.gz(file("c", "3"))}
	reg, handlers := e.remote(layers...)
	a := e.pull(layers[0], nil, handlers)
	top := e.image(layers, handlers)
	d := e.diff(a, top)
	remote := e.remoteOf(d, compression.New(compression.Gzip))
	var got []digest.Digest
	for _, desc := range remote.Descriptors {
		got = append(got, desc.Digest)
	}
	require.Equal(e.t, []digest.Digest{layers[1].desc.Digest, layers[2].desc.Digest}, got)
	for _, l := range layers {
		require.Zero(e.t, reg.fetched(l))
	}
	e.requireFiles(files{"b": "2", "c": "3"}, d)
}

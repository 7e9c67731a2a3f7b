package cachetest

import (
	bkcache "github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var byBlobTests = []test{
	{name: "what is stored", run: byBlobStored},
	{name: "the same tar in two compressions shares a snapshot", run: sharedByChain},
	{name: "the same blobs are one record", run: sharedByBlobs},
	{name: "at the same time", run: byBlobAtOnce},
	{name: "computed layers are found", run: computedFound},
	{name: "a merge is found", run: mergeFound},
	{name: "errors", run: byBlobErrors},
	{name: "a parent that has no blobs", run: unaddressableParent},
	{name: "lazy records need handlers", run: lazyNeedsHandlers},
	{name: "extracted at once", run: extractedAtOnce},
	{name: "nothing is fetched", run: nothingFetched},
}

func byBlobStored(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	b.desc.URLs = []string{"https://example.com/b"}
	_, handlers := e.remote(a, b)
	e.store(a, b)
	ra := e.pull(a, nil, handlers)
	rb := e.pull(b, ra, handlers)
	check := func(r bkcache.ImmutableRef, l layer, want ids) {
		e.t.Helper()
		require.Equal(e.t, want, idsOf(r))
		require.Equal(e.t, l.desc.Digest, digestOf(r, keyBlob))
		require.Equal(e.t, l.desc.Size, value[int64](r, keyBlobSize))
		require.Equal(e.t, l.desc.MediaType, r.GetString(keyMediaType))
		require.Equal(e.t, l.desc.URLs, value[[]string](r, keyURLs))
		require.True(e.t, value[bool](r, keyBlobOnly))
		require.True(e.t, value[bool](r, keyCommitted))
		require.Equal(e.t, snapshot.LayerSnapshotID(want.chain), snapshotID(r))
		kept, ok := e.lease(r.ID())
		require.True(e.t, ok)
		require.ElementsMatch(e.t, []string{l.desc.Digest.String(), snapshotID(r)}, kept)
		require.Same(e.t, handlers[l.desc.Digest], r.DescHandler(l.desc.Digest))
	}
	base := ids{}.with(a)
	for range 2 {
		check(ra, a, base)
		check(rb, b, base.with(b))
		require.Equal(e.t, ra.ID(), rb.GetString(keyParent))
		e.releaseAll()
		e.restart()
		ra, rb = e.get(ra.ID(), handlers), e.get(rb.ID(), handlers)
	}
}

func sharedByChain(e *env) {
	a, b := e.layer(compression.Gzip, file("a", "1")), e.layer(compression.Zstd, file("a", "1"))
	top := e.gz(file("top", "1"))
	reg, handlers := e.remote(a, b, top)
	ra, rb := e.pull(a, nil, handlers), e.pull(b, nil, handlers)
	require.NotEqual(e.t, ra.ID(), rb.ID())
	require.Equal(e.t, idsOf(ra).chain, idsOf(rb).chain)
	require.NotEqual(e.t, idsOf(ra).blobs, idsOf(rb).blobs)
	require.Equal(e.t, snapshotID(ra), snapshotID(rb))

	ta, tb := e.pull(top, ra, handlers), e.pull(top, rb, handlers)
	require.NotEqual(e.t, ta.ID(), tb.ID())
	require.Equal(e.t, snapshotID(ta), snapshotID(tb))
	require.NoError(e.t, ta.Extract(e.ctx, nil))
	require.NoError(e.t, tb.Extract(e.ctx, nil))
	e.requireFiles(files{"a": "1", "top": "1"}, tb)
	require.Equal(e.t, 1, reg.fetched(a))
	require.Zero(e.t, reg.fetched(b), "its snapshot is there")

	e.release(ra, ta)
	require.Len(e.t, e.prune(all), 2)
	e.requireFiles(files{"a": "1", "top": "1"}, tb)
}

func sharedByBlobs(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	_, handlers := e.remote(a, b)
	e.store(a, b)
	ra := e.pull(a, nil, handlers)
	rb := e.pull(b, ra, handlers)
	require.Equal(e.t, ra.ID(), e.pull(a, nil, handlers).ID())
	require.Equal(e.t, rb.ID(), e.pull(b, ra, handlers).ID())
	other := e.pull(b, nil, handlers)
	require.NotEqual(e.t, rb.ID(), other.ID(), "on another parent")
	e.requireUsage(3, 0)
	e.releaseAll()
	e.restart()
	require.Equal(e.t, other.ID(), e.pull(b, nil, handlers).ID())
	e.releaseAll()
	e.requireUsage(0, 3)
}

func byBlobAtOnce(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	reg, handlers := e.remote(a, b)
	const n = 8
	refs := make([]bkcache.ImmutableRef, n)
	var eg errgroup.Group
	for i := range n {
		eg.Go(func() error {
			ra, err := e.cache.GetByBlob(e.ctx, a.desc, nil, handlers)
			if err != nil {
				return err
			}
			if refs[i], err = e.cache.GetByBlob(e.ctx, b.desc, ra, handlers); err != nil {
				return err
			}
			if err := refs[i].Extract(e.ctx, nil); err != nil {
				return err
			}
			return ra.Release(e.ctx)
		})
	}
	require.NoError(e.t, eg.Wait())
	for _, r := range refs {
		require.Equal(e.t, refs[0].ID(), keep(e, r).ID())
	}
	e.requireUsage(2, 0)
	require.Equal(e.t, 1, reg.fetched(a))
	require.Equal(e.t, 1, reg.fetched(b))
}

func computedFound(e *env) {
	base := e.final(nil, file("a", "1"))
	top := e.final(base, file("b", "2"))
	require.Equal(e.t, ids{}, idsOf(top))
	remote := e.remoteOf(top, compression.New(compression.Gzip))
	require.Len(e.t, remote.Descriptors, 2)
	want := ids{}
	for i, r := range []bkcache.ImmutableRef{base, top} {
		l := layer{desc: remote.Descriptors[i]}
		want = want.with(l)
		require.Equal(e.t, want, idsOf(r))
		require.Equal(e.t, r.ID(), snapshotID(r))
		require.False(e.t, value[bool](r, keyBlobOnly))
	}
	// The same layers are these records.
	again := e.pull(layer{desc: remote.Descriptors[0]}, nil)
	require.Equal(e.t, base.ID(), again.ID())
	require.Equal(e.t, top.ID(), e.pull(layer{desc: remote.Descriptors[1]}, again).ID())
	// Another blob of the same tar shares the snapshot.
	other := e.gz(file("other", "")).claiming(idsOf(top).diffID)
	e.store(other)
	r := e.pull(other, base)
	require.NotEqual(e.t, top.ID(), r.ID())
	require.Equal(e.t, top.ID(), snapshotID(r))
	require.Equal(e.t, idsOf(base).with(other), idsOf(r))
	// A new layer on a computed one has a snapshot of its own.
	next := e.gz(file("c", "3"))
	e.store(next)
	n := e.pull(next, top)
	require.Equal(e.t, idsOf(top).with(next), idsOf(n))
	require.Equal(e.t, snapshot.LayerSnapshotID(idsOf(n).chain), snapshotID(n))
	require.NoError(e.t, n.Extract(e.ctx, nil))
	e.requireFiles(files{"a": "1", "b": "2", "c": "3"}, n)
}

func mergeFound(e *env) {
	var inputs []bkcache.ImmutableRef
	var layers []layer
	for _, name := range []string{"a", "b", "c"} {
		image := []layer{e.gz(file(name, "1")), e.gz(file(name, "2")), e.gz(file(name, "3"))}
		layers = append(layers, image...)
		_, handlers := e.remote(image...)
		inputs = append(inputs, e.image(image, handlers))
	}
	_, handlers := e.remote(layers...)
	m := e.merge(inputs...)
	e.remoteOf(m, compression.New(compression.Default))
	want := ids{}
	for _, l := range layers {
		want = want.with(l)
	}
	require.Equal(e.t, want.blobs, idsOf(m).blobs)
	require.Equal(e.t, want.chain, idsOf(m).chain)
	require.Equal(e.t, m.ID(), e.image(layers, handlers).ID())
}

func byBlobErrors(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	_, handlers := e.remote(a)
	var missing bkcache.NeedsRemoteProviderError
	_, err := e.cache.GetByBlob(e.ctx, a.desc, nil)
	require.ErrorAs(e.t, err, &missing)
	require.Equal(e.t, bkcache.NeedsRemoteProviderError{a.desc.Digest}, missing)
	ra := e.pull(a, nil, handlers)
	_, err = e.cache.GetByBlob(e.ctx, b.desc, ra, handlers)
	require.ErrorAs(e.t, err, &missing)
	require.Equal(e.t, bkcache.NeedsRemoteProviderError{b.desc.Digest}, missing)

	plain := ocispecs.Descriptor{Digest: a.desc.Digest, Size: a.desc.Size, MediaType: a.desc.MediaType}
	_, err = e.cache.GetByBlob(e.ctx, plain, nil, handlers)
	require.Error(e.t, err, "no DiffID")
	_, err = e.cache.GetByBlob(e.ctx, a.claiming("no digest").desc, nil, handlers)
	require.Error(e.t, err, "no valid DiffID")
	e.releaseAll()
	e.requireUsage(0, 1)
}

func unaddressableParent(e *env) {
	l := e.gz(file("a", "1"))
	e.store(l)
	p := e.final(nil)
	_, err := e.cache.GetByBlob(e.ctx, l.desc, p)
	require.Error(e.t, err)
	twin := e.step(nil)
	_, err = e.cache.GetByBlob(e.ctx, l.desc, twin)
	require.Error(e.t, err)
	e.release(p)
	e.requireUsage(1, 1)
	require.Contains(e.t, e.prune(all), p.ID())
}

func lazyNeedsHandlers(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	_, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	both := bkcache.NeedsRemoteProviderError{layers[0].desc.Digest, layers[1].desc.Digest}
	merged := e.merge(top, e.final(nil))
	for _, r := range []bkcache.ImmutableRef{top, merged} {
		var missing bkcache.NeedsRemoteProviderError
		_, err := e.cache.Get(e.ctx, r.ID(), nil)
		require.ErrorAs(e.t, err, &missing)
		require.ElementsMatch(e.t, both, missing)
		_, err = e.cache.Get(e.ctx, r.ID(), nil, bkcache.DescHandlers{both[0]: handlers[both[0]]})
		require.ErrorAs(e.t, err, &missing)
		require.Equal(e.t, both[1:], missing)
		e.get(r.ID(), handlers)
	}
	e.releaseAll()
	e.requireUsage(0, 4)
	r := e.get(top.ID(), handlers)
	require.NoError(e.t, r.Extract(e.ctx, nil))
	e.releaseAll()
	e.get(top.ID()) // it is not lazy any more
	e.get(merged.ID())
}

func extractedAtOnce(e *env) {
	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers, bkcache.Unlazy(bksession.NewGroup("me")))
	require.False(e.t, value[bool](r, keyBlobOnly))
	require.True(e.t, e.hasSnapshot(snapshotID(r)))
	e.requireFiles(files{"a": "1"}, r)
}

func nothingFetched(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	reg, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	e.get(top.ID(), handlers)
	e.merge(top, e.final(nil))
	e.diff(top, nil)
	require.Zero(e.t, e.size(top))
	for _, l := range layers {
		require.Zero(e.t, reg.fetched(l))
	}
	require.False(e.t, e.hasBlob(digest.Digest(top.GetString(keyBlob))))
}

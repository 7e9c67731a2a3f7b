package cachetest

import (
	"github.com/containerd/stargz-snapshotter/estargz"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"
	"github.com/stretchr/testify/require"
)

// A layer that may stay lazy is never checked against its DiffID, so what it shows
// is shared by DiffID and TOC digest.
var tocTests = []test{
	{name: "the TOC is part of the identity", run: tocIdentity, only: withTOCs},
	{name: "the same blob with another TOC", run: tocOfBlob, only: withTOCs},
	{name: "merges have the identities of their layers", run: tocOfMerge, only: withTOCs},
	{name: "a digest that is none", run: tocInvalid, only: withTOCs},
}

// withTOC is the layer with a TOC digest.
func (l layer) withTOC(toc string) layer {
	return l.annotated(estargz.TOCJSONDigestAnnotation, digest.FromString(toc).String())
}

func tocIdentity(e *env) {
	a := e.layer(compression.Gzip, file("a", "1")).withTOC("one")
	b := e.layer(compression.Zstd, file("a", "1")).withTOC("two")
	_, handlers := e.remote(a, b)
	for _, l := range []layer{a, b} {
		r := e.pull(l, nil, handlers)
		id := imageid.ChainID([]digest.Digest{l.diffID(), digest.Digest(l.desc.Annotations[estargz.TOCJSONDigestAnnotation])})
		require.Equal(e.t, ids{l.diffID(), id, id, imageid.ChainID([]digest.Digest{l.desc.Digest, l.diffID()})}, idsOf(r))
		require.Equal(e.t, snapshot.LayerSnapshotID(id), snapshotID(r))
	}
}

func tocOfBlob(e *env) {
	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	a, b := e.pull(l.withTOC("one"), nil, handlers), e.pull(l.withTOC("two"), nil, handlers)
	require.NotEqual(e.t, a.ID(), b.ID())
	require.Equal(e.t, idsOf(a).blobs, idsOf(b).blobs)
	require.NotEqual(e.t, idsOf(a).chain, idsOf(b).chain)
	require.NotEqual(e.t, snapshotID(a), snapshotID(b))
	require.Equal(e.t, a.ID(), e.pull(l.withTOC("one"), nil, handlers).ID())
}

func tocOfMerge(e *env) {
	base, good := e.gz(file("base", "1")), e.gz(file("proof", "good"))
	evil := e.gz(file("proof", "evil")).claiming(good.diffID()).withTOC("evil")
	_, handlers := e.remote(base, evil)
	e.store(base, evil)
	b := e.pull(base, nil, handlers, bkcache.CachePolicyRetain)
	r := e.pull(evil, b, handlers, bkcache.CachePolicyRetain)
	e.restart()
	b, r = e.get(b.ID(), handlers), e.get(r.ID(), handlers)
	d := e.diff(b, r)
	m := e.merge(b, d)
	e.remoteOf(m, compression.New(compression.Default))
	id := imageid.ChainID([]digest.Digest{good.diffID(), digest.FromString("evil")})
	chain := imageid.ChainID([]digest.Digest{base.diffID(), id})
	require.Equal(e.t, id, idsOf(r).identity)
	require.Equal(e.t, chain, idsOf(r).chain)
	require.Equal(e.t, chain, idsOf(m).chain)

	// The same blob without the TOC is another layer.
	plain := evil
	plain.desc.Annotations = good.desc.Annotations
	p := e.pull(plain, b, handlers)
	require.Equal(e.t, idsOf(m).blobs, idsOf(p).blobs)
	require.NotEqual(e.t, m.ID(), p.ID())
	require.NotEqual(e.t, idsOf(m).chain, idsOf(p).chain)
	require.NotEqual(e.t, snapshotID(m), snapshotID(p))
}

func tocInvalid(e *env) {
	l := e.gz(file("a", "1")).annotated(estargz.TOCJSONDigestAnnotation, "none")
	_, handlers := e.remote(l)
	_, err := e.cache.GetByBlob(e.ctx, l.desc, nil, handlers)
	require.Error(e.t, err)
}

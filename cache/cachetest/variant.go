package cachetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var variantTests = []test{
	{name: "from each compression to each", run: fromEachToEach},
	{name: "shared by records of the same layer", run: variantsShared},
	{name: "a ring of variants is collected", run: variantRing},
	{name: "all chains", run: allChains},
	{name: "sizes", run: variantSizes},
}

func fromEachToEach(e *env) {
	for _, from := range compressions {
		l := e.layer(from, file("from", from.String()))
		e.store(l) // of a lazy one it is not known whether it is an eStargz
		_, handlers := e.remote(l)
		r := e.pull(l, nil, handlers)
		seen := map[digest.Digest]bool{}
		for _, to := range compressions {
			remote := e.remoteOf(r, forced(to))
			desc := remote.Descriptors[0]
			e.read(remote.Provider, desc)
			e.requireForm(to, desc)
			require.Equal(e.t, to == from, desc.Digest == l.desc.Digest, "%s as %s", from, to)
			require.Equal(e.t, l.desc.Digest, digestOf(r, keyBlob), "its own blob stays")
			require.Equal(e.t, desc.Digest, e.remoteOf(r, forced(to)).Descriptors[0].Digest, "once more")
			seen[desc.Digest] = true
		}
		e.prune(all)
		for d := range seen {
			require.True(e.t, e.hasBlob(d), "a variant is not kept")
		}
	}
}

// variantsOf lists the blobs that labels connect with a blob.
func (e *env) variantsOf(dgst digest.Digest) map[digest.Digest]bool {
	e.t.Helper()
	seen := map[digest.Digest]bool{dgst: true}
	for todo := []digest.Digest{dgst}; len(todo) > 0; todo = todo[1:] {
		info, err := e.content.Info(e.ctx, todo[0])
		require.NoError(e.t, err)
		for k, v := range info.Labels {
			d := digest.Digest(v)
			if strings.HasPrefix(k, "containerd.io/gc.ref.content.blob-") && !seen[d] {
				seen[d] = true
				todo = append(todo, d)
			}
		}
	}
	return seen
}

// variantsShared has two records of one tar make variants of each other.
func variantsShared(e *env) {
	for _, own := range compressions[1:] {
		for _, other := range compressions {
			if other == own {
				continue
			}
			l := e.layer(own, file("a", fmt.Sprint(own, other)))
			e.store(l)
			a := e.pull(l, nil)
			desc := e.remoteOf(a, forced(other)).Descriptors[0]
			b := e.pull(layer{desc: desc}, nil)
			require.NotEqual(e.t, a.ID(), b.ID())
			forms := map[digest.Digest]bool{}
			for _, c := range compressions {
				from := a
				if c != own && c != other {
					from = b // made by the second, seen by the first
				}
				forms[e.remoteOf(from, forced(c)).Descriptors[0].Digest] = true
			}
			require.Len(e.t, forms, len(compressions))
			for _, r := range []bkcache.ImmutableRef{a, b} {
				require.Equal(e.t, forms, e.variantsOf(digestOf(r, keyBlob)))
			}
			e.release(a)
			require.Len(e.t, e.prune(all), 1)
			for _, c := range compressions {
				require.True(e.t, forms[e.remoteOf(b, forced(c)).Descriptors[0].Digest], "%s is gone with the other record", c)
			}
			e.release(b)
			require.Len(e.t, e.prune(all), 1)
			e.requireCollected(slices.Collect(maps.Keys(forms))...)
		}
	}
}

func variantRing(e *env) {
	l := e.layer(compression.Uncompressed, file("a", "1"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	blobs := []digest.Digest{l.desc.Digest}
	for _, c := range []compression.Type{compression.Gzip, compression.Zstd, compression.EStargz, compression.Gzip, compression.Uncompressed} {
		desc := e.remoteOf(r, forced(c)).Descriptors[0]
		r = e.pull(layer{desc: desc}, nil, handlers)
		blobs = append(blobs, desc.Digest)
	}
	require.Len(e.t, e.variantsOf(l.desc.Digest), len(compressions))
	e.requireUsage(4, 0)
	e.releaseAll()
	require.Len(e.t, e.prune(all), 4)
	e.requireCollected(blobs...)
}

func allChains(e *env) {
	base := e.step(nil, file("a", "1"))
	top := e.step(base, file("b", "2"))
	made := [2]map[compression.Type]digest.Digest{{}, {}}
	for _, c := range compressions {
		for i, d := range e.remoteOf(top, forced(c)).Descriptors {
			made[i][c] = d.Digest
		}
	}
	for _, c := range compressions {
		cfg := cacheconfig.RefConfig{Compression: compression.New(c)}
		list, err := e.remotesOf(top, false, cfg, true)
		require.NoError(e.t, err)
		one, err := e.remotesOf(top, false, cfg, false)
		require.NoError(e.t, err)
		require.Equal(e.t, one[0].Descriptors, list[0].Descriptors, "the first one is as without all")
		var got []digest.Digest
		for _, r := range list[1:] {
			require.Len(e.t, r.Descriptors, 2)
			require.Equal(e.t, made[1][c], r.Descriptors[1].Digest)
			got = append(got, r.Descriptors[0].Digest)
			for _, d := range r.Descriptors {
				e.read(r.Provider, d)
			}
		}
		require.ElementsMatch(e.t, slices.Collect(maps.Values(made[0])), got, "each form of the base")
		list, err = e.remotesOf(top, true, cacheconfig.RefConfig{Compression: forced(c)}, true)
		require.NoError(e.t, err)
		require.Len(e.t, list, 1, "what is forced is the only one")
	}
	// Where there is no such variant the first one is all.
	plain := e.step(nil, file("c", "3"))
	e.remoteOf(plain, compression.New(compression.Gzip))
	list, err := e.remotesOf(plain, false, cacheconfig.RefConfig{Compression: compression.New(compression.Zstd)}, true)
	require.NoError(e.t, err)
	require.Len(e.t, list, 1)
}

func variantSizes(e *env) {
	r := e.final(nil, file("a", strings.Repeat("x", 10000)))
	snapshot := e.size(r)
	require.Positive(e.t, snapshot)
	var blobs int64
	for _, c := range compressions {
		blobs += e.remoteOf(r, forced(c)).Descriptors[0].Size
		// Who asks at once may get the answer to the question before.
		e.eventually("the size with "+c.String(), func() bool { return e.size(r) == snapshot+blobs })
	}
	e.releaseAll()
	e.restart()
	require.Equal(e.t, snapshot+blobs, e.size(e.get(r.ID())))
}

// requireCollected waits for blobs to be collected: temporary leases of the
// operations before may end in the background.
func (e *env) requireCollected(blobs ...digest.Digest) {
	e.t.Helper()
	for _, d := range blobs {
		e.eventually("blob "+d.String()+" is still there", func() bool {
			e.prune()
			return !e.hasBlob(d)
		})
	}
}

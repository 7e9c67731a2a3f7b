package cachetest

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	ctdcompression "github.com/containerd/containerd/v2/pkg/archive/compression"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/stargz-snapshotter/estargz"
	bkcache "github.com/moby/buildkit/cache"
	cacheconfig "github.com/moby/buildkit/cache/config"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/leaseutil"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

var blobTests = []test{
	{name: "layers of steps", run: blobsOfSteps},
	{name: "a blob brings the same tree back", run: blobRoundTrip},
	{name: "labels and annotations", run: blobLabels},
	{name: "without leave to create", run: noCreate},
	{name: "lazy blobs stay lazy", run: lazyRemotes},
	{name: "lazy blobs name their repositories", run: distributionSources},
	{name: "an export without extraction", run: exportWithoutExtraction},
	{name: "not distributable", run: nonDistributable},
	{name: "computed at the same time", run: computedAtOnce},
	{name: "blobs of merges and diffs", run: blobsOfMerges},
	{name: "created at", run: createdAt},
}

// config asks for a compression, by force.
func forced(c compression.Type) compression.Config { return compression.New(c).SetForce(true) }

// remotesOf asks for remotes under a temporary lease.
func (e *env) remotesOf(r bkcache.ImmutableRef, create bool, cfg cacheconfig.RefConfig, variants bool) ([]*solver.Remote, error) {
	e.t.Helper()
	ctx, done, err := leaseutil.WithLease(e.ctx, e.leases, leaseutil.MakeTemporary)
	require.NoError(e.t, err)
	defer func() { require.NoError(e.t, done(context.WithoutCancel(ctx))) }()
	return r.GetRemotes(ctx, create, cfg, variants, nil)
}

// remoteOf makes the blobs of a record.
func (e *env) remoteOf(r bkcache.ImmutableRef, c compression.Config) *solver.Remote {
	e.t.Helper()
	list, err := e.remotesOf(r, true, cacheconfig.RefConfig{Compression: c}, false)
	require.NoError(e.t, err)
	require.Len(e.t, list, 1)
	return list[0]
}

// read reads a blob of a remote, and checks what its descriptor says.
func (e *env) read(p content.Provider, desc ocispecs.Descriptor) (plain []byte) {
	e.t.Helper()
	ra, err := p.ReaderAt(e.ctx, desc)
	require.NoError(e.t, err)
	defer ra.Close()
	require.Equal(e.t, desc.Size, ra.Size())
	data, err := io.ReadAll(io.NewSectionReader(ra, 0, ra.Size()))
	require.NoError(e.t, err)
	require.Equal(e.t, desc.Digest, digest.FromBytes(data))
	r, err := ctdcompression.DecompressStream(io.NewSectionReader(ra, 0, ra.Size()))
	require.NoError(e.t, err)
	defer r.Close()
	plain, err = io.ReadAll(r)
	require.NoError(e.t, err)
	require.Equal(e.t, desc.Annotations[labels.LabelUncompressed], digest.FromBytes(plain).String())
	return plain
}

// namesIn lists the names in a layer of a remote, sorted.
func (e *env) namesIn(r *solver.Remote, i int) (names []string) {
	e.t.Helper()
	ra, err := r.Provider.ReaderAt(e.ctx, r.Descriptors[i])
	require.NoError(e.t, err)
	defer ra.Close()
	d, err := ctdcompression.DecompressStream(io.NewSectionReader(ra, 0, ra.Size()))
	require.NoError(e.t, err)
	defer d.Close()
	for tr := tar.NewReader(d); ; {
		h, err := tr.Next()
		if err == io.EOF {
			slices.Sort(names)
			return names
		}
		require.NoError(e.t, err)
		names = append(names, path.Clean(h.Name))
	}
}

// requireForm checks that a descriptor is of a blob in a compression.
func (e *env) requireForm(c compression.Type, desc ocispecs.Descriptor) {
	e.t.Helper()
	require.Equal(e.t, c.MediaType(), desc.MediaType)
	needs, err := c.NeedsConversion(e.ctx, e.content, desc)
	require.NoError(e.t, err)
	require.False(e.t, needs, "%s is not %s", desc.Digest, c)
	if c == compression.EStargz {
		require.NotEmpty(e.t, desc.Annotations[estargz.TOCJSONDigestAnnotation])
		require.NotEmpty(e.t, desc.Annotations[estargz.StoreUncompressedSizeAnnotation])
	}
}

func blobsOfSteps(e *env) {
	for _, c := range compressions {
		base := e.step(nil, file("a", c.String()))
		top := e.step(base, file("b", c.String()), gone("a"))
		remote := e.remoteOf(top, compression.New(c))
		require.Len(e.t, remote.Descriptors, 2)
		for i, r := range []bkcache.ImmutableRef{base, top} {
			desc := remote.Descriptors[i]
			e.requireForm(c, desc)
			e.read(remote.Provider, desc)
			require.Equal(e.t, desc.Digest, digestOf(r, keyBlob))
			require.Equal(e.t, c.MediaType(), r.GetString(keyMediaType))
			require.Equal(e.t, desc.Size, value[int64](r, keyBlobSize))
			require.Equal(e.t, idsOf(r).diffID, idsOf(r).identity)
			kept, _ := e.lease(r.ID())
			require.Contains(e.t, kept, desc.Digest.String())
		}
		require.Equal(e.t, []string{".wh.a", "b"}, e.namesIn(remote, 1))
		require.Equal(e.t, remote.Descriptors, e.remoteOf(top, compression.New(c)).Descriptors, "once more")
	}
	e.prune(all)
	require.Len(e.t, e.du(), 2*len(compressions))
}

func blobRoundTrip(e *env) {
	base := e.step(nil, file("d/keep", "1"), file("d/gone", "1"), file("e/x", "1"), file("f", "1"))
	top := e.step(base, gone("d/gone"), gone("e"), dir("e"), file("e/y", "2"), file("f", "22"), dir("empty"))
	want := files{"d/": "", "d/keep": "1", "e/": "", "e/y": "2", "f": "22", "empty/": ""}
	e.requireFiles(want, top)
	remote := e.remoteOf(top, compression.New(compression.Gzip))
	var layers []layer
	for _, desc := range remote.Descriptors {
		plain := e.read(remote.Provider, desc)
		// As other blobs, they are no records yet.
		data, diffID := e.compress(compression.Zstd, plain)
		l := layer{data: data, desc: ocispecs.Descriptor{
			MediaType:   compression.Zstd.MediaType(),
			Digest:      digest.FromBytes(data),
			Size:        int64(len(data)),
			Annotations: map[string]string{labels.LabelUncompressed: diffID.String()},
		}}
		layers = append(layers, l)
	}
	e.releaseAll()
	e.prune(all)
	_, handlers := e.remote(layers...)
	again := e.image(layers, handlers)
	e.requireFiles(want, again)
}

func blobLabels(e *env) {
	l := e.layer(compression.EStargz, file("a", "1")).
		annotated(estargz.TOCJSONDigestAnnotation, digest.FromString("toc").String()).
		annotated("of.no.interest", "x")
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	want := func(desc ocispecs.Descriptor) {
		e.t.Helper()
		require.Equal(e.t, digest.FromString("toc").String(), desc.Annotations[estargz.TOCJSONDigestAnnotation])
		require.Equal(e.t, l.diffID().String(), desc.Annotations[labels.LabelUncompressed])
		require.NotContains(e.t, desc.Annotations, "of.no.interest")
	}
	want(e.remoteOf(r, compression.New(compression.EStargz)).Descriptors[0])
	require.NoError(e.t, r.Extract(e.ctx, nil))
	info, err := e.content.Info(e.ctx, l.desc.Digest)
	require.NoError(e.t, err)
	require.Equal(e.t, l.desc.MediaType, info.Labels["buildkit.io/blob/mediatype"])
	require.Equal(e.t, digest.FromString("toc").String(), info.Labels["buildkit.io/blob/annotation."+estargz.TOCJSONDigestAnnotation])
	require.Equal(e.t, l.diffID().String(), info.Labels["buildkit.io/blob/annotation."+labels.LabelUncompressed])
	require.NotContains(e.t, info.Labels, "buildkit.io/blob/annotation.of.no.interest")
	e.releaseAll()
	e.restart()
	want(e.remoteOf(e.get(r.ID()), compression.New(compression.EStargz)).Descriptors[0])
}

func noCreate(e *env) {
	cfg := cacheconfig.RefConfig{Compression: compression.New(compression.Default)}
	base := e.final(nil, file("a", "1"))
	twin := e.step(base, file("b", "1"))
	_, err := e.remotesOf(twin, false, cfg, false)
	require.Error(e.t, err)
	for _, r := range []bkcache.ImmutableRef{base, e.merge(base, e.final(nil)), e.diff(base, e.final(nil))} {
		for _, variants := range []bool{false, true} {
			_, err := e.remotesOf(r, false, cfg, variants)
			require.ErrorIs(e.t, err, bkcache.ErrNoBlobs)
		}
	}
	e.remoteOf(twin, cfg.Compression)
	list, err := e.remotesOf(twin, false, cfg, false)
	require.NoError(e.t, err)
	require.Len(e.t, list[0].Descriptors, 2)
}

func lazyRemotes(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	reg, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	remote := e.remoteOf(top, compression.New(compression.Gzip))
	require.Equal(e.t, layers[0].desc.Digest, remote.Descriptors[0].Digest)
	info, err := remote.Provider.Info(e.ctx, layers[1].desc.Digest)
	require.NoError(e.t, err)
	require.Equal(e.t, layers[1].desc.Size, info.Size)
	remote = e.remoteOf(top, forced(compression.Gzip))
	require.Zero(e.t, reg.fetched(layers[0])+reg.fetched(layers[1]), "it is gzip already")

	e.read(remote.Provider, remote.Descriptors[0])
	require.Equal(e.t, 1, reg.fetched(layers[0]))
	require.Zero(e.t, reg.fetched(layers[1]))
	require.True(e.t, value[bool](top, keyBlobOnly))
	u, ok := remote.Provider.(bkcache.Unlazier)
	require.True(e.t, ok)
	require.NoError(e.t, u.Unlazy(e.ctx))
	require.NoError(e.t, u.Unlazy(e.ctx), "once more")
	require.Equal(e.t, 1, reg.fetched(layers[0]))
	require.Equal(e.t, 1, reg.fetched(layers[1]))
	require.False(e.t, e.hasSnapshot(snapshotID(top)))
	e.prune(all)
	require.True(e.t, e.hasBlob(layers[1].desc.Digest))
}

func distributionSources(e *env) {
	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers, bkcache.WithImageRef("docker.io/library/one:1"))
	e.pull(l, nil, handlers, bkcache.WithImageRef("docker.io/library/two:2"))
	e.pull(l, nil, handlers, bkcache.WithImageRef("example.com:5000/three@"+l.desc.Digest.String()))
	a := e.remoteOf(r, compression.New(compression.Gzip)).Descriptors[0].Annotations
	require.Equal(e.t, "library/one,library/two", a["containerd.io/distribution.source.docker.io"])
	require.Equal(e.t, "three", a["containerd.io/distribution.source.example.com"])
	require.NoError(e.t, r.Extract(e.ctx, nil))
	a = e.remoteOf(r, compression.New(compression.Gzip)).Descriptors[0].Annotations
	require.NotContains(e.t, a, "containerd.io/distribution.source.docker.io", "it is here now")
}

func exportWithoutExtraction(e *env) {
	l := e.layer(compression.Uncompressed, file("a", "1"))
	reg, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	remote := e.remoteOf(r, forced(compression.Zstd))
	e.requireForm(compression.Zstd, remote.Descriptors[0])
	e.read(remote.Provider, remote.Descriptors[0])
	require.Equal(e.t, 1, reg.fetched(l))
	require.True(e.t, value[bool](r, keyBlobOnly))
	require.False(e.t, e.hasSnapshot(snapshotID(r)))
}

func nonDistributable(e *env) {
	for _, c := range []struct{ foreign, plain string }{
		{ocispecs.MediaTypeImageLayerNonDistributable, ocispecs.MediaTypeImageLayer},         //nolint:staticcheck // deprecated, and in use
		{ocispecs.MediaTypeImageLayerNonDistributableGzip, ocispecs.MediaTypeImageLayerGzip}, //nolint:staticcheck // as above
		{ocispecs.MediaTypeImageLayerNonDistributableZstd, ocispecs.MediaTypeImageLayerZstd}, //nolint:staticcheck // as above
		{"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip"},
		{"application/vnd.docker.image.rootfs.foreign.diff.tar", "application/vnd.docker.image.rootfs.diff.tar"},
	} {
		l := e.gz(file("a", c.foreign))
		l.desc.MediaType, l.desc.URLs = c.foreign, []string{"https://example.com/a"}
		_, handlers := e.remote(l)
		r := e.pull(l, nil, handlers)
		for _, prefer := range []bool{true, false, true} {
			list, err := e.remotesOf(r, true, cacheconfig.RefConfig{PreferNonDistributable: prefer}, false)
			require.NoError(e.t, err)
			desc := list[0].Descriptors[0]
			if prefer {
				require.Equal(e.t, c.foreign, desc.MediaType)
				require.Equal(e.t, l.desc.URLs, desc.URLs)
			} else {
				require.Equal(e.t, c.plain, desc.MediaType)
				require.Empty(e.t, desc.URLs)
			}
		}
	}
}

func computedAtOnce(e *env) {
	base := e.step(nil, file("a", "1"))
	tops := []bkcache.ImmutableRef{e.step(base, file("b", "1")), e.step(base, file("b", "2"))}
	ctx, done, err := leaseutil.WithLease(e.ctx, e.leases, leases.WithExpiration(time.Hour), leaseutil.MakeTemporary)
	require.NoError(e.t, err)
	type result struct {
		top int
		c   compression.Type
		r   []*solver.Remote
		err error
	}
	results := make(chan result, 8)
	for i, top := range tops {
		for _, c := range compressions {
			go func() {
				r, err := top.GetRemotes(ctx, true, cacheconfig.RefConfig{Compression: forced(c)}, false, nil)
				results <- result{i, c, r, err}
			}()
		}
	}
	bases := map[string]map[digest.Digest]bool{}
	for range 8 {
		r := <-results
		require.NoError(e.t, r.err)
		descs := r.r[0].Descriptors
		require.Len(e.t, descs, 2)
		key := fmt.Sprint(r.c)
		if bases[key] == nil {
			bases[key] = map[digest.Digest]bool{}
		}
		bases[key][descs[0].Digest] = true
		for _, d := range descs {
			e.requireForm(r.c, d)
			e.read(r.r[0].Provider, d)
		}
	}
	for c, digests := range bases {
		require.Len(e.t, digests, 1, "the base as %s", c)
	}
	require.NoError(e.t, done(e.ctx))
}

func blobsOfMerges(e *env) {
	a, b := e.step(nil, file("a", "1")), e.step(nil, file("b", "2"))
	ab := e.step(a, file("ab", "3"))
	m := e.merge(ab, b, e.diff(a, ab), e.diff(b, a))
	remote := e.remoteOf(m, compression.New(compression.Gzip))
	require.Len(e.t, remote.Descriptors, 5)
	var got []digest.Digest
	for _, d := range remote.Descriptors {
		e.read(remote.Provider, d)
		got = append(got, d.Digest)
	}
	require.Equal(e.t, digestOf(a, keyBlob), got[0])
	require.Equal(e.t, digestOf(ab, keyBlob), got[1])
	require.Equal(e.t, digestOf(b, keyBlob), got[2])
	require.Equal(e.t, got[1], got[3], "a diff of one layer is that layer")
	require.Equal(e.t, []string{".wh.b", "a"}, e.namesIn(remote, 4))
	want := ids{}
	for _, d := range remote.Descriptors {
		want = want.with(layer{desc: d})
	}
	require.Equal(e.t, want.chain, idsOf(m).chain)
	require.Equal(e.t, want.blobs, idsOf(m).blobs)
	require.Empty(e.t, digestOf(m, keyBlob))
}

func createdAt(e *env) {
	r := e.step(nil, file("a", "1"))
	require.NoError(e.t, r.SetCreatedAt(time.Unix(1234, 0).UTC()))
	a := e.remoteOf(r, compression.New(compression.Gzip)).Descriptors[0].Annotations
	got, err := time.Parse(time.RFC3339Nano, a["buildkit/createdat"])
	require.NoError(e.t, err)
	require.True(e.t, time.Unix(1234, 0).Equal(got))
}

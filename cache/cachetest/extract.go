package cachetest

import (
	"context"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"
)

var extractTests = []test{
	{name: "layers of an image", run: extractImage},
	{name: "each compression", run: extractCompressions},
	{name: "whiteouts", run: extractWhiteouts},
	{name: "a layer on a computed one", run: extractOnComputed},
	{name: "blobs are fetched once", run: fetchedOnce},
	{name: "a wrong DiffID", run: wrongDiffID},
	{name: "a registry that fails", run: registryFails},
	{name: "a snapshot that was removed", run: snapshotRemoved},
	{name: "after a restart", run: extractAfterRestart},
	{name: "windows layers", run: windowsLayers},
	{name: "file list", run: fileList},
}

func extractImage(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	e.store(a, b)
	ra := e.pull(a, nil)
	rb := e.pull(b, ra)
	require.Equal(e.t, b.desc.Size, e.size(rb), "the blob only")
	require.False(e.t, e.hasSnapshot(snapshotID(rb)))
	require.NoError(e.t, rb.Extract(e.ctx, nil))
	require.NoError(e.t, rb.Extract(e.ctx, nil), "once more")
	for _, r := range []bkcache.ImmutableRef{ra, rb} {
		require.False(e.t, value[bool](r, keyBlobOnly))
		require.True(e.t, e.hasSnapshot(snapshotID(r)))
	}
	usage, err := e.snapshot.Usage(e.ctx, snapshotID(rb))
	require.NoError(e.t, err)
	require.Equal(e.t, b.desc.Size+usage.Size, e.size(rb))

	require.Empty(e.t, e.prune(all))
	e.release(ra)
	require.Empty(e.t, e.prune(all))
	e.requireUsage(2, 0)
	ra = e.get(ra.ID())
	e.release(rb)
	require.Len(e.t, e.prune(all), 1)
	require.False(e.t, e.hasSnapshot(snapshotID(rb)))
	require.False(e.t, e.hasBlob(b.desc.Digest))
	require.True(e.t, e.hasBlob(a.desc.Digest))
	e.requireFiles(files{"a": "1"}, ra)
}

func extractCompressions(e *env) {
	for _, c := range compressions {
		l := e.layer(c, file(c.String(), "1"))
		_, handlers := e.remote(l)
		e.requireFiles(files{c.String(): "1"}, e.pull(l, nil, handlers))
	}
}

func extractWhiteouts(e *env) {
	layers := []layer{
		e.gz(file("keep", "1"), file("drop", "1"), dir("d"), file("d/x", "1")),
		e.gz(gone("drop"), file("d/.wh..wh..opq", ""), file("d/y", "2")),
	}
	_, handlers := e.remote(layers...)
	e.requireFiles(files{"keep": "1", "d/": "", "d/y": "2"}, e.image(layers, handlers))
}

func extractOnComputed(e *env) {
	base := e.step(nil, file("a", "1"))
	l, top := e.gz(file("b", "2")), e.gz(file("c", "3"))
	e.store(l, top)
	e.remoteOf(base, compression.New(compression.Default))
	r := e.pull(l, base)
	n := e.pull(top, r)
	e.release(base, r)
	e.requireFiles(files{"a": "1", "b": "2", "c": "3"}, n)
	require.Empty(e.t, e.prune(all))
	e.requireUsage(3, 0)
	e.release(n)
	e.requireUsage(0, 3)
	require.Len(e.t, e.prune(all), 3)
}

func fetchedOnce(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2")), e.gz(file("c", "3"))}
	reg, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	var eg errgroup.Group
	for range 6 {
		eg.Go(func() error { return top.Extract(e.ctx, nil) })
	}
	require.NoError(e.t, eg.Wait())
	for _, l := range layers {
		require.Equal(e.t, 1, reg.fetched(l))
		require.True(e.t, e.hasBlob(l.desc.Digest))
	}
	e.prune(all)
	for _, l := range layers {
		require.True(e.t, e.hasBlob(l.desc.Digest), "the record keeps it")
	}
}

// active lists the snapshots of extractions that are under way.
func (e *env) active() (names []string) {
	e.t.Helper()
	require.NoError(e.t, e.snapshot.Walk(e.ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindActive && strings.HasPrefix(i.Name, "extract-") {
			names = append(names, i.Name)
		}
		return nil
	}))
	return names
}

func wrongDiffID(e *env) {
	evil := e.gz(file("a", "evil")).claiming(e.gz(file("a", "good")).diffID())
	_, handlers := e.remote(evil)
	r := e.pull(evil, nil, handlers)
	for range 2 {
		require.Error(e.t, r.Extract(e.ctx, nil))
		require.True(e.t, value[bool](r, keyBlobOnly))
		require.False(e.t, e.hasSnapshot(snapshotID(r)))
		require.Empty(e.t, e.active(), "what was extracted is left")
	}
	_, err := r.Mount(e.ctx, true, nil)
	require.Error(e.t, err)
}

func registryFails(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	reg, handlers := e.remote(layers...)
	top := e.image(layers, handlers)
	reg.fail(true)
	require.Error(e.t, top.Extract(e.ctx, nil))
	require.False(e.t, e.hasSnapshot(snapshotID(top)))
	ctx, cancel := context.WithCancel(e.ctx)
	cancel()
	require.Error(e.t, top.Extract(ctx, nil))
	reg.fail(false)
	e.requireFiles(files{"a": "1", "b": "2"}, top)
}

func snapshotRemoved(e *env) {
	a, b := e.gz(file("a", "1")), e.gz(file("b", "2"))
	e.store(a, b)
	ra, rb := e.pull(a, nil), e.pull(b, nil)
	require.NoError(e.t, ra.Extract(e.ctx, nil))
	require.NoError(e.t, rb.Extract(e.ctx, nil))
	d := e.diff(ra, rb)
	e.removeSnapshot(snapshotID(ra))
	require.False(e.t, e.hasSnapshot(snapshotID(ra)))
	require.NoError(e.t, d.Extract(e.ctx, nil))
	require.True(e.t, e.hasSnapshot(snapshotID(ra)))
	e.requireFiles(files{"b": "2"}, d)
}

func extractAfterRestart(e *env) {
	layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
	e.store(layers...)
	top := e.image(layers)
	e.restart()
	c := e.final(e.get(top.ID()), file("c", "3"))
	e.restart()
	e.requireFiles(files{"a": "1", "b": "2", "c": "3"}, e.get(c.ID()))
}

func windowsLayers(e *env) {
	l := e.gz(dir("Files"), file("Files/a", "1"), dir("Hives"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	require.NoError(e.t, r.SetLayerType("windows"))
	e.requireFiles(files{"a": "1"}, r)

	child := e.final(r, file("b", "2"))
	require.NoError(e.t, child.SetLayerType("windows"))
	remote := e.remoteOf(child, compression.New(compression.Gzip))
	names := e.namesIn(remote, 1)
	require.Contains(e.t, names, "Files/b")
	require.Contains(e.t, names, "Hives")
	list, err := child.FileList(e.ctx, nil)
	require.NoError(e.t, err)
	require.Equal(e.t, names, list)
}

func fileList(e *env) {
	l := e.gz(file("z", "1"), dir("d/"), file("d/x", "1"), gone("old"))
	reg, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	want := []string{".wh.old", "d", "d/x", "z"}
	for range 2 {
		got, err := r.FileList(e.ctx, nil)
		require.NoError(e.t, err)
		require.Equal(e.t, want, got)
	}
	require.Equal(e.t, 1, reg.fetched(l))
	e.releaseAll()
	e.restart()
	got, err := e.get(r.ID()).FileList(e.ctx, nil)
	require.NoError(e.t, err)
	require.Equal(e.t, want, got)

	base := e.final(nil, file("a", "1"), file("gone", "1"))
	top := e.step(base, gone("gone"), file("b", "2"))
	got, err = top.FileList(e.ctx, nil)
	require.NoError(e.t, err)
	require.Empty(e.t, got, "it has no blob")
	e.remoteOf(top, compression.New(compression.Zstd))
	got, err = top.FileList(e.ctx, nil)
	require.NoError(e.t, err)
	require.Equal(e.t, []string{".wh.gone", "b"}, got)
}

package cachetest

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/util/overlay"
	"github.com/stretchr/testify/require"
)

var mountTests = []test{
	{name: "who may write", run: whoMayWrite},
	{name: "mutable mounts are shared", run: sharedMounts, only: onOverlay},
	{name: "immutable mounts are raw", run: rawMounts, only: onOverlay},
	{name: "views are kept and ended", run: views},
	{name: "twins have one snapshot", run: mountTwins},
	{name: "mount points of an earlier process", run: earlierMountPoints},
}

// isReadonly says that a mount can't be written to.
func isReadonly(m mount.Mount) bool {
	if slices.Contains(m.Options, "ro") {
		return true
	}
	return overlay.IsOverlayMountType(m) &&
		!slices.ContainsFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "upperdir=") })
}

// mounts are those that a record is mounted by.
func (e *env) mounts(m bkcache.Mountable, readonly bool) (list []mount.Mount, release func()) {
	e.t.Helper()
	mountable, err := m.Mount(e.ctx, readonly, nil)
	require.NoError(e.t, err)
	list, done, err := mountable.Mount()
	require.NoError(e.t, err)
	require.Len(e.t, list, 1)
	return list, func() {
		e.t.Helper()
		if done != nil {
			require.NoError(e.t, done())
		}
	}
}

func whoMayWrite(e *env) {
	var parent bkcache.ImmutableRef
	for range 3 {
		m := e.newOn(parent)
		for _, readonly := range []bool{false, true, false} {
			list, release := e.mounts(m, readonly)
			require.Equal(e.t, readonly, isReadonly(list[0]), "%v", list)
			release()
		}
		r := e.commit(m)
		list, release := e.mounts(r, true)
		require.True(e.t, isReadonly(list[0]), "%v", list)
		release()
		_, twins := r.GetEqualMutable()
		require.True(e.t, twins)
		list, release = e.mounts(r, false)
		require.True(e.t, isReadonly(list[0]), "an immutable record is never written to: %v", list)
		release()
		_, twins = r.GetEqualMutable()
		require.False(e.t, twins)
		parent = r
	}
}

func sharedMounts(e *env) {
	m := e.newOn(e.final(nil, file("a", "1")))
	one, done1 := e.mounts(m, false)
	two, done2 := e.mounts(m, false)
	require.Equal(e.t, one, two)
	require.Equal(e.t, "bind", one[0].Type)
	require.Equal(e.t, filepath.Join(e.dir, mountsDir), filepath.Dir(one[0].Source))
	require.NoError(e.t, os.WriteFile(filepath.Join(one[0].Source, "b"), []byte("2"), 0o644))
	e.requireFiles(files{"a": "1", "b": "2"}, m)
	done1()
	require.Len(e.t, e.mountPoints(), 1)
	require.FileExists(e.t, filepath.Join(two[0].Source, "b"))
	done2()
	require.Empty(e.t, e.mountPoints())
	e.requireFiles(files{"a": "1", "b": "2"}, m)
	require.Empty(e.t, e.mountPoints())
}

func rawMounts(e *env) {
	base := e.final(nil, file("a", "1"))
	r := e.final(base, file("b", "2"))
	list, done := e.mounts(r, true)
	defer done()
	require.Equal(e.t, "overlay", list[0].Type, "the differ reads its options")
	lower, doneLower := e.mounts(base, true)
	defer doneLower()
	upper, err := overlay.GetUpperdir(lower, list)
	require.NoError(e.t, err)
	require.Equal(e.t, files{"b": "2"}, e.filesIn(upper))
}

func views(e *env) {
	r := e.final(nil, file("a", "1"))
	view := r.ID() + "-view"
	_, ok := e.lease(view)
	require.False(e.t, ok)
	e.requireFiles(files{"a": "1"}, r)
	kept, ok := e.lease(view)
	require.True(e.t, ok)
	require.Equal(e.t, []string{view}, kept)
	e.prune(all)
	require.True(e.t, e.hasSnapshot(view), "as long as there is a ref")
	c := keep(e, r.Clone())
	e.release(r)
	e.requireFiles(files{"a": "1"}, c)
	e.release(c)
	_, ok = e.lease(view)
	require.False(e.t, ok)
	e.prune()
	require.False(e.t, e.hasSnapshot(view))
	e.requireFiles(files{"a": "1"}, e.get(r.ID()))
}

func mountTwins(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	r := e.commit(m)
	e.requireFiles(files{"a": "1"}, r)
	require.True(e.t, e.hasSnapshot(m.ID()))
	e.finalize(r)
	e.requireFiles(files{"a": "1"}, r)
	require.True(e.t, e.hasSnapshot(r.ID()))
}

func earlierMountPoints(e *env) {
	e.close()
	root := filepath.Join(e.dir, mountsDir)
	require.NoError(e.t, os.MkdirAll(filepath.Join(root, "buildkit123"), 0o700))
	mounted := filepath.Join(root, "buildkit456")
	require.NoError(e.t, os.MkdirAll(mounted, 0o700))
	src := e.t.TempDir()
	require.NoError(e.t, mount.All([]mount.Mount{{Type: "bind", Source: src, Options: []string{"rbind"}}}, mounted))
	e.open()
	require.Empty(e.t, e.mountPoints())
}

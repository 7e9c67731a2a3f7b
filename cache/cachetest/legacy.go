package cachetest

import (
	"bytes"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/archive"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"
)

// Snapshots of BuildKits before the name was bound to what was verified have the
// chain id as their name. They may show another image's files, so nothing new may
// share them.
var legacyTests = []test{
	{name: "a snapshot is not shared", run: legacyNotShared},
	{name: "records above it are not addressed", run: legacyAncestry},
}

// poison gives a record a legacy snapshot with the files of its blob.
func (e *env) poison(r bkcache.ImmutableRef, l layer) {
	e.t.Helper()
	name := idsOf(r).chain.String()
	require.NoError(e.t, e.leases.AddResource(e.ctx, leases.Lease{ID: r.ID()}, leases.Resource{ID: name, Type: "snapshots/" + e.storage.Name}))
	ctx := leases.WithLease(e.namespaced(), r.ID())
	mounts, err := e.snapshot.Prepare(ctx, "poison", "")
	require.NoError(e.t, err)
	plain := e.tar(file("proof", "evil"))
	require.NotEqual(e.t, l.diffID().String(), string(plain))
	require.NoError(e.t, mount.WithTempMount(ctx, mounts, func(root string) error {
		_, err := archive.Apply(ctx, root, bytes.NewReader(plain))
		return err
	}))
	require.NoError(e.t, e.snapshot.Commit(ctx, name, "poison"))
	require.NoError(e.t, r.SetString(keySnapshot, name, ""))
}

func legacyNotShared(e *env) {
	good := e.gz(file("proof", "good"))
	evil := e.gz(file("proof", "evil")).claiming(good.diffID())
	e.store(good, evil)
	r := e.pull(evil, nil)
	e.poison(r, evil)
	g := e.pull(good, nil)
	require.Equal(e.t, snapshot.LayerSnapshotID(good.diffID()), snapshotID(g))
	e.requireFiles(files{"proof": "good"}, g)
	again := e.pull(evil, nil)
	require.NotEqual(e.t, r.ID(), again.ID(), "nor is the record itself")
}

func legacyAncestry(e *env) {
	base, good := e.gz(file("base", "1")), e.gz(file("proof", "good"))
	evil := e.gz(file("proof", "evil")).claiming(good.diffID())
	e.store(base, good, evil)
	b := e.pull(base, nil)
	legacy := e.pull(evil, b)
	upper := e.pull(good, legacy)
	require.NoError(e.t, legacy.SetString(keySnapshot, idsOf(legacy).chain.String(), ""))
	_, err := e.cache.GetByBlob(e.ctx, good.desc, legacy)
	require.Error(e.t, err)

	cfg := compression.New(compression.Default)
	var made []bkcache.ImmutableRef
	for _, d := range []bkcache.ImmutableRef{e.diff(legacy, upper), e.diff(b, legacy)} {
		made = append(made, d, e.merge(b, d))
	}
	for _, r := range made {
		e.remoteOf(r, cfg)
		require.Empty(e.t, idsOf(r).chain)
		require.Empty(e.t, idsOf(r).blobs)
	}
	// As an older daemon has indexed such a merge.
	want := idsOf(b).with(good)
	claimed := idsOf(b).with(evil)
	m := made[3]
	require.NoError(e.t, m.SetString(keyChainID, claimed.chain.String(), "chainid:"+claimed.chain.String()))
	require.NoError(e.t, m.SetString(keyBlobChainID, claimed.blobs.String(), "blobchainid:"+claimed.blobs.String()))
	g := e.pull(good, b)
	require.Equal(e.t, want, idsOf(g))
	require.NotEqual(e.t, m.ID(), g.ID())
	require.NotEqual(e.t, snapshotID(m), snapshotID(g))
	require.NotEqual(e.t, m.ID(), e.pull(evil, b).ID())
}

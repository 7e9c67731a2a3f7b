package cachetest

import (
	"github.com/containerd/containerd/v2/core/leases"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

var recoveryTests = []test{
	{name: "a crash in use", run: crashInUse},
	{name: "a record that was being deleted", run: deletedRecord},
	{name: "a twin that was being deleted", run: deletedTwin},
	{name: "half finalized", run: halfFinalized},
	{name: "finalized, the mutable record not yet erased", run: finalizedNotErased},
	{name: "a twin without data", run: twinWithoutData},
	{name: "a mutable record without a snapshot", run: mutableWithoutSnapshot},
	{name: "a parent that is missing", run: parentMissing},
	{name: "a broken parent of a merge", run: brokenMergeParent},
	{name: "merges of BuildKit v0.10", run: uncommittedMerge},
	{name: "a crash while a layer is extracted", run: crashWhileExtracting},
	{name: "after the mutable one was taken", run: crashAfterTaken},
	{name: "an empty store", run: func(e *env) { e.crash(); e.requireUsage(0, 0) }},
}

// set changes a key of a stored record; a nil value removes it.
func (e *env) set(s *metadata.Store, id, key string, v any) {
	e.t.Helper()
	si, ok := s.Get(id)
	require.True(e.t, ok)
	var val *metadata.Value
	if v != nil {
		var err error
		val, err = metadata.NewValue(v)
		require.NoError(e.t, err)
	}
	require.NoError(e.t, si.Update(func(b *bolt.Bucket) error { return si.SetValue(b, key, val) }))
}

func crashInUse(e *env) {
	base := e.final(nil, file("a", "1"))
	m := e.newOn(base)
	e.write(m, file("b", "2"))
	retained := e.newOn(base, bkcache.CachePolicyRetain)
	e.write(retained, file("c", "3"))
	twin := e.commit(retained)
	e.requireFiles(files{"a": "1"}, base)
	merged := e.merge(base, twin)
	e.crash()

	e.requireFiles(files{"a": "1"}, e.get(base.ID()))
	e.requireFiles(files{"a": "1", "b": "2"}, e.getMutable(m.ID()))
	e.requireFiles(files{"a": "1", "c": "3"}, e.get(twin.ID()))
	e.requireFiles(files{"a": "1", "c": "3"}, e.get(merged.ID()))
	e.requireUsage(4, 0)
	_, err := e.cache.GetMutable(e.ctx, retained.ID())
	require.True(e.t, bkcache.IsNotFound(err), "the merge has finalized it")
}

func deletedRecord(e *env) {
	base := e.final(nil, file("a", "1"))
	top := e.final(base)
	other := e.final(nil)
	e.tamper(func(s *metadata.Store) { e.set(s, top.ID(), keyDeleted, true) })
	e.requireUsage(0, 2)
	e.requireGone(top.ID())
	_, ok := e.lease(top.ID())
	require.False(e.t, ok)
	e.get(base.ID())
	e.get(other.ID())
	e.releaseAll()
	e.prune()
	require.False(e.t, e.hasSnapshot(top.ID()))
}

func deletedTwin(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	imm := e.commit(m)
	e.tamper(func(s *metadata.Store) { e.set(s, m.ID(), keyDeleted, true) })
	e.requireUsage(0, 0)
	e.requireGone(m.ID(), imm.ID())
}

// commitBehind commits the snapshot of a mutable record for its twin, as a
// manager does first when it finalizes.
func (e *env) commitBehind(m, imm string) {
	e.t.Helper()
	_, err := e.leases.Create(e.ctx, leases.WithID(imm), leases.WithLabels(map[string]string{"containerd.io/gc.flat": "x"}))
	require.NoError(e.t, err)
	require.NoError(e.t, e.leases.AddResource(e.ctx, leases.Lease{ID: imm}, leases.Resource{ID: imm, Type: "snapshots/" + e.storage.Name}))
	require.NoError(e.t, e.snapshot.Commit(e.ctx, imm, m))
}

func halfFinalized(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	imm := e.commit(m)
	e.commitBehind(m.ID(), imm.ID())
	e.crash()
	e.requireGone(m.ID())
	r := e.get(imm.ID())
	_, ok := r.GetEqualMutable()
	require.False(e.t, ok)
	require.NoError(e.t, r.Finalize(e.ctx))
	e.requireFiles(files{"a": "1"}, r)
	e.requireUsage(1, 0)
}

func finalizedNotErased(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	imm := e.commit(m)
	e.commitBehind(m.ID(), imm.ID())
	e.tamper(func(s *metadata.Store) { e.set(s, imm.ID(), keyTwin, nil) })
	e.requireGone(m.ID())
	e.requireFiles(files{"a": "1"}, e.get(imm.ID()))
	e.requireUsage(1, 0)
}

func twinWithoutData(e *env) {
	base := e.final(nil)
	m := e.newOn(base, bkcache.CachePolicyRetain)
	imm := e.commit(m)
	e.tamper(func(s *metadata.Store) { require.NoError(e.t, s.Clear(m.ID())) })
	e.requireGone(m.ID(), imm.ID())
	e.requireUsage(0, 1)
	e.endLease(m.ID())
}

// endLease ends a lease that a manager may, but need not, know to be nobody's.
func (e *env) endLease(id string) {
	if err := e.leases.Delete(e.ctx, leases.Lease{ID: id}); !cerrdefs.IsNotFound(err) {
		require.NoError(e.t, err)
	}
}

func mutableWithoutSnapshot(e *env) {
	base := e.final(nil)
	m := e.newOn(base, bkcache.CachePolicyRetain)
	withTwin := e.newOn(base, bkcache.CachePolicyRetain)
	imm := e.commit(withTwin)
	e.removeSnapshot(m.ID())
	e.removeSnapshot(withTwin.ID())
	e.crash()
	e.requireGone(m.ID(), withTwin.ID(), imm.ID())
	e.requireUsage(0, 1)
}

func parentMissing(e *env) {
	base := e.final(nil)
	mid := e.final(base)
	top := e.final(mid)
	m := e.newOn(top, bkcache.CachePolicyRetain)
	imm := e.commit(m)
	e.tamper(func(s *metadata.Store) { require.NoError(e.t, s.Clear(mid.ID())) })
	e.requireGone(mid.ID(), top.ID(), m.ID(), imm.ID())
	e.requireUsage(0, 1)
	e.endLease(mid.ID())
}

func brokenMergeParent(e *env) {
	a, b, c := e.final(nil), e.final(nil), e.final(nil)
	m, d := e.merge(a, b, c), e.diff(a, b)
	e.tamper(func(s *metadata.Store) { e.set(s, b.ID(), keyDeleted, true) })
	e.requireGone(b.ID(), m.ID(), d.ID())
	e.requireUsage(0, 2)
	require.Len(e.t, e.prune(all), 2, "nothing holds the other parents")
}

func uncommittedMerge(e *env) {
	a, b := e.final(nil, file("a", "1")), e.final(nil, file("b", "2"))
	m, d := e.merge(a, b), e.diff(a, b)
	e.tamper(func(s *metadata.Store) {
		e.set(s, m.ID(), keyCommitted, nil)
		e.set(s, d.ID(), keyCommitted, nil)
	})
	e.requireFiles(files{"a": "1", "b": "2"}, e.get(m.ID()))
	e.requireFiles(files{"b": "2"}, e.get(d.ID()))
	_, err := e.cache.GetMutable(e.ctx, m.ID())
	require.Error(e.t, err)
}

func crashWhileExtracting(e *env) {
	l := e.gz(file("a", "1"))
	_, handlers := e.remote(l)
	r := e.pull(l, nil, handlers)
	// The blob is here, the snapshot is committed, the record does not know yet.
	require.NoError(e.t, r.Extract(e.ctx, nil))
	e.tamper(func(s *metadata.Store) { e.set(s, r.ID(), keyBlobOnly, true) })
	again := e.get(r.ID())
	e.requireFiles(files{"a": "1"}, again)
	e.requireFiles(files{"a": "1", "b": "2"}, e.step(again, file("b", "2")))
}

func crashAfterTaken(e *env) {
	m := e.newOn(nil, bkcache.CachePolicyRetain)
	e.write(m, file("a", "1"))
	imm := e.commit(m)
	e.release(imm)
	m2 := e.getMutable(m.ID())
	e.write(m2, file("b", "2"))
	e.crash()
	e.requireGone2(imm.ID())
	e.requireFiles(files{"a": "1", "b": "2"}, e.getMutable(m.ID()))
}

package cachetest

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/snapshot"
	"github.com/stretchr/testify/require"
)

// change is what a step or a layer does to one file.
type change struct {
	name, body string
	gone, dir  bool
}

func file(name, body string) change { return change{name: name, body: body} }
func dir(name string) change        { return change{name: name, dir: true} }
func gone(name string) change       { return change{name: name, gone: true} }

// whiteout is the name in a tar that says that a file is gone.
func whiteout(name string) string { return path.Join(path.Dir(name), ".wh."+path.Base(name)) }

// New makes a mutable record.
func (e *env) newOn(parent bkcache.ImmutableRef, opts ...bkcache.RefOption) bkcache.MutableRef {
	e.t.Helper()
	m, err := e.cache.New(e.ctx, parent, nil, opts...)
	require.NoError(e.t, err)
	return keep(e, m)
}

// commit makes a mutable ref an immutable one.
func (e *env) commit(m bkcache.MutableRef) bkcache.ImmutableRef {
	e.t.Helper()
	r, err := m.Commit(e.ctx)
	require.NoError(e.t, err)
	e.forget(m)
	return keep(e, r)
}

// step is what a build does: a new record is written to and committed.
func (e *env) step(parent bkcache.ImmutableRef, changes ...change) bkcache.ImmutableRef {
	e.t.Helper()
	return e.stepWith(parent, nil, changes...)
}

// stepWith is step with options of the new record.
func (e *env) stepWith(parent bkcache.ImmutableRef, opts []bkcache.RefOption, changes ...change) bkcache.ImmutableRef {
	e.t.Helper()
	m := e.newOn(parent, opts...)
	e.write(m, changes...)
	return e.commit(m)
}

// final is a step whose snapshot is committed, too.
func (e *env) final(parent bkcache.ImmutableRef, changes ...change) bkcache.ImmutableRef {
	e.t.Helper()
	r := e.step(parent, changes...)
	e.finalize(r)
	return r
}

// finalize commits a record's snapshot, and waits for its twin to go, which may
// happen in the background.
func (e *env) finalize(r bkcache.ImmutableRef) {
	e.t.Helper()
	twin := r.GetString(keyTwin)
	require.NoError(e.t, r.Finalize(e.ctx))
	e.eventually("the mutable record is still there", func() bool {
		_, there := e.records.Get(twin)
		return !there
	})
}

// get holds a record.
func (e *env) get(id string, opts ...bkcache.RefOption) bkcache.ImmutableRef {
	e.t.Helper()
	r, err := e.cache.Get(e.ctx, id, nil, opts...)
	require.NoError(e.t, err)
	return keep(e, r)
}

// getMutable holds a mutable record.
func (e *env) getMutable(id string) bkcache.MutableRef {
	e.t.Helper()
	m, err := e.cache.GetMutable(e.ctx, id)
	require.NoError(e.t, err)
	return keep(e, m)
}

// pull makes the record of a layer.
func (e *env) pull(l layer, parent bkcache.ImmutableRef, opts ...bkcache.RefOption) bkcache.ImmutableRef {
	e.t.Helper()
	r, err := e.cache.GetByBlob(e.ctx, l.desc, parent, opts...)
	require.NoError(e.t, err)
	return keep(e, r)
}

// image makes the records of layers on top of each other, and holds the last one.
func (e *env) image(layers []layer, opts ...bkcache.RefOption) bkcache.ImmutableRef {
	e.t.Helper()
	var top bkcache.ImmutableRef
	for _, l := range layers {
		r := e.pull(l, top, opts...)
		if top != nil {
			e.release(top)
		}
		top = r
	}
	return top
}

// merge merges records.
func (e *env) merge(refs ...bkcache.ImmutableRef) bkcache.ImmutableRef {
	e.t.Helper()
	r, err := e.cache.Merge(e.ctx, refs, nil)
	require.NoError(e.t, err)
	return keep(e, r)
}

// diff makes the difference of records.
func (e *env) diff(lower, upper bkcache.ImmutableRef) bkcache.ImmutableRef {
	e.t.Helper()
	r, err := e.cache.Diff(e.ctx, lower, upper, nil)
	require.NoError(e.t, err)
	return keep(e, r)
}

// mounted calls f with a directory in which the record is mounted.
func (e *env) mounted(m bkcache.Mountable, readonly bool, f func(dir string)) {
	e.t.Helper()
	mountable, err := m.Mount(e.ctx, readonly, nil)
	require.NoError(e.t, err)
	mounter := snapshot.LocalMounter(mountable)
	dir, err := mounter.Mount()
	require.NoError(e.t, err)
	defer func() { require.NoError(e.t, mounter.Unmount()) }()
	f(dir)
}

// epoch is the time of all files, so that layers are the same each time.
var epoch = time.Unix(0, 0)

// write changes the files of a mutable record.
func (e *env) write(m bkcache.MutableRef, changes ...change) {
	e.t.Helper()
	if len(changes) == 0 {
		return
	}
	e.mounted(m, false, func(root string) {
		for _, c := range changes {
			p := filepath.Join(root, c.name)
			switch {
			case c.gone:
				require.NoError(e.t, os.RemoveAll(p))
			case c.dir:
				require.NoError(e.t, os.Mkdir(p, 0o755))
				require.NoError(e.t, os.Chtimes(p, epoch, epoch))
			default:
				require.NoError(e.t, os.MkdirAll(filepath.Dir(p), 0o755))
				require.NoError(e.t, os.WriteFile(p, []byte(c.body), 0o644))
				require.NoError(e.t, os.Chtimes(p, epoch, epoch))
			}
			for d := filepath.Dir(p); len(d) > len(root); d = filepath.Dir(d) {
				require.NoError(e.t, os.Chtimes(d, epoch, epoch))
			}
		}
	})
}

// files are the names and contents of a tree; directories end with a slash.
type files map[string]string

// requireFiles checks what a record shows.
func (e *env) requireFiles(want files, m bkcache.Mountable) {
	e.t.Helper()
	e.mounted(m, true, func(root string) { require.Equal(e.t, want, e.filesIn(root)) })
}

func (e *env) filesIn(root string) files {
	e.t.Helper()
	got := files{}
	require.NoError(e.t, filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		name := strings.TrimPrefix(p, root+"/")
		if d.IsDir() {
			got[name+"/"] = ""
			return nil
		}
		data, err := os.ReadFile(p)
		got[name] = string(data)
		return err
	}))
	return got
}

// du asks for the disk usage, by id.
func (e *env) du(filter ...string) map[string]*client.UsageInfo {
	e.t.Helper()
	list, err := e.cache.DiskUsage(e.ctx, client.DiskUsageInfo{Filter: filter})
	require.NoError(e.t, err)
	out := map[string]*client.UsageInfo{}
	for _, u := range list {
		out[u.ID] = u
	}
	require.Len(e.t, out, len(list), "a record is listed twice")
	return out
}

// requireUsage checks how many records are in use and not.
func (e *env) requireUsage(inUse, idle int) {
	e.t.Helper()
	e.settle()
	gotInUse, gotIdle := 0, 0
	for _, u := range e.du() {
		if u.InUse {
			gotInUse++
		} else {
			gotIdle++
		}
	}
	require.Equal(e.t, [2]int{inUse, idle}, [2]int{gotInUse, gotIdle}, "records in use, and not in use")
}

// size is what the disk usage says of a record.
func (e *env) size(r bkcache.Ref) int64 {
	e.t.Helper()
	u := e.du()[r.ID()]
	require.NotNil(e.t, u)
	return u.Size
}

// all is the policy that prunes whatever is not in use.
var all = client.PruneInfo{All: true}

// prune prunes and returns what was removed, by id.
func (e *env) prune(policies ...client.PruneInfo) map[string]client.UsageInfo {
	e.t.Helper()
	removed, err := e.tryPrune(policies...)
	require.NoError(e.t, err)
	return removed
}

func (e *env) tryPrune(policies ...client.PruneInfo) (map[string]client.UsageInfo, error) {
	e.t.Helper()
	ch := make(chan client.UsageInfo)
	done := make(chan map[string]client.UsageInfo)
	go func() {
		removed := map[string]client.UsageInfo{}
		for u := range ch {
			removed[u.ID] = u
		}
		done <- removed
	}()
	err := e.cache.Prune(e.ctx, ch, policies...)
	close(ch)
	return <-done, err
}

// requireGone checks that there is no such record.
func (e *env) requireGone(ids ...string) {
	e.t.Helper()
	for _, id := range ids {
		e.eventually("record "+id+" is still there", func() bool {
			r, err := e.cache.Get(e.ctx, id, nil)
			if err == nil {
				_ = r.Release(e.ctx)
			}
			return bkcache.IsNotFound(err)
		})
		_, err := e.cache.GetMutable(e.ctx, id)
		require.True(e.t, bkcache.IsNotFound(err), "%v", err)
	}
}

// requireLocked checks that an error says that a record is in use.
func (e *env) requireLocked(err error) {
	e.t.Helper()
	require.ErrorIs(e.t, err, bkcache.ErrLocked)
	require.False(e.t, bkcache.IsNotFound(err))
}

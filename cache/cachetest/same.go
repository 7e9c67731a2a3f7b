package cachetest

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/compression"
	"github.com/stretchr/testify/require"
)

// scenarios leave state directories of all kinds behind. They do one thing after
// the other, so that records are made in the same order each time.
var scenarios = map[string]func(*env){
	"steps": func(e *env) {
		base := e.stepWith(nil, []bkcache.RefOption{bkcache.WithDescription("base")}, file("a", "1"))
		e.finalize(base)
		e.step(base, file("b", "2"), gone("a"))
		e.release(e.get(base.ID()))
	},
	"mutable records and twins": func(e *env) {
		retain := []bkcache.RefOption{bkcache.CachePolicyRetain, bkcache.WithRecordType(client.UsageRecordTypeCacheMount)}
		e.write(e.newOn(nil, retain...), file("a", "1"))
		twin := e.stepWith(nil, retain, file("b", "2"))
		e.release(e.stepWith(twin, retain, file("c", "3")))
		e.release(e.newOn(nil))
		e.newOn(nil, bkcache.CachePolicyDefault, bkcache.WithDescription("in use"))
	},
	"an image that is extracted": func(e *env) {
		layers := []layer{e.gz(file("a", "1")), e.layer(compression.Zstd, file("b", "2")), e.layer(compression.EStargz, file("c", "3"))}
		e.store(layers...)
		_, handlers := e.remote(layers...)
		top := e.image(layers, handlers, bkcache.WithImageRef("docker.io/library/x:1"))
		require.NoError(e.t, top.Extract(e.ctx, nil))
		e.final(top, file("d", "4"))
	},
	"an image that is not extracted": func(e *env) {
		layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
		layers[1].desc.URLs = []string{"https://example.com/b"}
		e.store(layers...)
		e.image(layers, bkcache.WithDescription("an image"))
	},
	"pulled from a registry": func(e *env) {
		layers := []layer{e.gz(file("a", "1")), e.gz(file("b", "2"))}
		_, handlers := e.remote(layers...)
		top := e.image(layers, handlers, bkcache.WithImageRef("docker.io/library/x:1"))
		require.NoError(e.t, top.Extract(e.ctx, nil))
	},
	"merges and diffs": func(e *env) {
		a, b := e.final(nil, file("a", "1")), e.final(nil, file("b", "2"))
		c := e.final(e.final(b, file("c", "3")), file("d", "4"))
		m := e.merge(a, c)
		require.NoError(e.t, m.Extract(e.ctx, nil))
		require.NoError(e.t, e.diff(b, c).Extract(e.ctx, nil))
		require.NoError(e.t, e.diff(a, b).Extract(e.ctx, nil))
		e.diff(a, nil)
		e.merge(m, a)
	},
	"computed blobs": func(e *env) {
		for _, c := range compressions {
			base := e.final(nil, file("a", c.String()), dir("d"))
			e.remoteOf(e.final(base, file("b", c.String()), gone("d")), compression.New(c))
		}
	},
	"variants": func(e *env) {
		r := e.final(nil, file("a", "1"))
		for _, c := range compressions {
			e.remoteOf(r, forced(c))
		}
	},
	"blobs of merges and diffs": func(e *env) {
		a, b := e.final(nil, file("a", "1")), e.final(nil, file("b", "2"))
		ab := e.final(a, file("ab", "3"))
		// No diff of a layer from what it stands on: BuildKit gives it the chain of the
		// whole upper image, as which it can be found then.
		for _, r := range []bkcache.ImmutableRef{e.merge(ab, b), e.diff(b, a)} {
			e.remoteOf(r, compression.New(compression.Gzip))
		}
	},
	"lists of files": func(e *env) {
		r := e.final(nil, file("a", "1"))
		e.remoteOf(r, compression.New(compression.Gzip))
		_, err := r.FileList(e.ctx, nil)
		require.NoError(e.t, err)
	},
	"pruned": func(e *env) {
		base := e.final(nil, file("a", "1"))
		e.release(e.final(base, file("b", "2")))
		require.Len(e.t, e.prune(all), 1)
		e.du() // ours has measured the base for the prune
	},
}

// RunSame compares two managers: the same scenario leaves the same state, and what
// one has left the other one opens as it would its own. Keys of an implementation's
// own are left out.
func RunSame(t *testing.T, a, b Implementation, st Storage) {
	for _, name := range slices.Sorted(maps.Keys(scenarios)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			states := map[string]state{}
			for _, first := range []Implementation{a, b} {
				states[first.Name] = leave(t, first, st, scenarios[name])
			}
			require.Equal(t, states[a.Name].picture, states[b.Name].picture, "what %s and %s have left", a.Name, b.Name)
			want := states[b.Name].openedBy(t, b, st)
			for _, c := range [][2]Implementation{{a, a}, {a, b}, {b, a}} {
				got := states[c[0].Name].openedBy(t, c[1], st)
				require.Equal(t, want, got, "what %s has left, opened by %s", c[0].Name, c[1].Name)
			}
		})
	}
}

// state is a state directory that a scenario has left.
type state struct{ dir, picture string }

func leave(t *testing.T, impl Implementation, st Storage, scenario func(*env)) state {
	t.Helper()
	e := newEnv(t, impl, st)
	scenario(e)
	e.prune() // what no lease keeps
	e.settle()
	s := state{dir: e.copyState(), picture: e.picture()}
	e.finish()
	return s
}

// openedBy tells all of a copy of the state: the records, what they show, what they
// are said to need, and how it ends.
func (s state) openedBy(t *testing.T, impl Implementation, st Storage) string {
	t.Helper()
	e := newEnv(t, impl, st)
	e.close()
	from := &env{t: t, ctx: t.Context(), dir: s.dir}
	e.dir = from.copyFiles()
	e.open()
	lines := []string{e.picture()}
	items, err := e.records.All()
	require.NoError(t, err)
	for _, si := range byAge(items) {
		r, err := e.cache.Get(e.ctx, si.ID(), nil, bkcache.NoUpdateLastUsed)
		if bkcache.IsNotFound(err) {
			continue
		}
		require.NoError(t, err)
		keep(e, r)
		if mutable := si.Get(keyCommitted) == nil; mutable {
			continue // it is the twin that one gets
		}
		e.mounted(r, true, func(root string) {
			got := e.filesIn(root)
			for _, f := range slices.Sorted(maps.Keys(got)) {
				lines = append(lines, "shows "+si.ID()+" "+f+" "+got[f])
			}
		})
	}
	for id, u := range e.du() {
		lines = append(lines, fmt.Sprint("usage ", id, " ", u.Size, " bytes ", u.Parents, " ", u.RecordType, " ", u.Description))
	}
	// An idle mutable record has a twin now.
	items, err = e.records.All()
	require.NoError(t, err)
	names := nameRecords(items)
	for i, l := range lines[1:] {
		lines[i+1] = names.Replace(l)
	}
	e.finish()
	slices.Sort(lines[1:])
	return strings.Join(lines, "\n")
}

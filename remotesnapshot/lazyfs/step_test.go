package lazyfs

import (
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

var (
	stepOne = profile.StepDigest([]string{"one"}, "/")
	stepTwo = profile.StepDigest([]string{"two"}, "/")
)

// begin starts a step that may read the layers of srcs.
func (w *world) begin(step digest.Digest, srcs ...remotesnapshot.Source) *Step {
	s := w.BeginStep(StepOptions{ID: step, Broken: func() {}})
	var layers []digest.Digest
	for _, src := range srcs {
		layers = append(layers, src.Digest)
	}
	s.Reads(layers)
	return s
}

// known waits until something is known of what a step reads of a layer.
func known(t *testing.T, dir string, src remotesnapshot.Source, step digest.Digest) []profile.Range {
	t.Helper()
	s, err := profile.Open(dir)
	require.NoError(t, err)
	var got []profile.Range
	eventually(t, "the profile is written", func() bool {
		got, err = s.Get(src.Digest, step)
		return err == nil && len(got) > 0
	})
	return got
}

// What a step has read is fetched when it begins on another machine, from both
// layers, before it asks.
func TestStepIsReplayed(t *testing.T) {
	reg := blobtest.New(t)
	profiles := filepath.Join(t.TempDir(), "profiles")
	opts := Options{ProfileDir: profiles, Layer: layer.Options{Window: -1}}
	w := start(t, opts, reg)
	top := push(reg, "app:latest", layerOf(t, 1, "a", "b", "c", "d"))
	bottom := push(reg, "app:latest", layerOf(t, 50, "e", "f", "g"))
	dir, _ := w.resolved(top)
	low, _ := w.resolved(bottom)
	s := w.begin(stepOne, top, bottom)
	check(t, dir, "c", contents(1, 2))
	check(t, low, "e", contents(50, 0))
	check(t, dir, "a", contents(1, 0))
	s.End(true)
	known(t, profiles, top, stepOne)
	known(t, profiles, bottom, stepOne)

	other := start(t, opts, reg)
	dir, _ = other.resolved(top)
	low, _ = other.resolved(bottom)
	reg.Reset()
	s = other.begin(stepTwo, top, bottom)
	s.End(true)
	require.Zero(t, reg.Requests(), "nothing is known of another step")

	s = other.begin(stepOne, top, bottom)
	eventually(t, "fetched", func() bool {
		return other.Info(top.Digest).Prefetched > 200_000 && other.Info(bottom.Digest).Prefetched > 100_000
	})
	reg.Stop()
	check(t, dir, "a", contents(1, 0))
	check(t, dir, "c", contents(1, 2))
	check(t, low, "e", contents(50, 0))
	s.End(true)
}

// Connections for a step that is known are made while its layers are resolved.
func TestStepIsExpected(t *testing.T) {
	reg := blobtest.New(t)
	expected := make(chan int, 10)
	opts := Options{ProfileDir: filepath.Join(t.TempDir(), "profiles"), Layer: layer.Options{Window: -1}}
	opts.Blob.Expect = func(host string, u *url.URL, n int) {
		require.Equal(t, reg.Host(), host)
		require.Equal(t, host, u.Host)
		expected <- n
	}
	var names []string // every other one is read
	for i := range 40 {
		names = append(names, fmt.Sprintf("f%02d", i))
	}
	top := push(reg, "app:latest", layerOf(t, 1, names...))
	bottom := push(reg, "app:latest", layerOf(t, 50, "a", "b", "c"))
	bottom.Neighbours = []digest.Digest{bottom.Digest, top.Digest}
	w := start(t, opts, reg)
	dir, _ := w.resolved(top)
	low, _ := w.resolved(bottom)
	s := w.begin(stepOne, top, bottom)
	for i := 0; i < len(names); i += 2 {
		check(t, dir, names[i], contents(1, i))
	}
	check(t, low, "b", contents(50, 1))
	s.End(true)
	require.NoError(t, w.Close()) // it waits for the profile, and for who is told
	require.Equal(t, firstReads, <-expected)
	require.Empty(t, expected, "the layer above is open")

	other := start(t, opts, reg)
	require.NoError(t, other.Resolve(t.Context(), bottom)[0])
	require.Equal(t, max(firstReads, 1+len(names)/2), <-expected)
	require.NoError(t, other.Resolve(t.Context(), bottom)[0])
	require.NoError(t, other.Close())
	require.Empty(t, expected, "a layer that is open was read before")
}

// A step that fails has not shown all that it needs, and one that runs after
// others shows what they have not read: both add to what is known.
func TestStepAddsToItsProfile(t *testing.T) {
	reg := blobtest.New(t)
	profiles := filepath.Join(t.TempDir(), "profiles")
	opts := Options{ProfileDir: profiles, Layer: layer.Options{Window: -1}}
	src := push(reg, "app:latest", layerOf(t, 1, "a", "b", "c", "d"))
	run := func(ok bool, names ...string) []profile.Range {
		w := start(t, opts, reg)
		dir, _ := w.resolved(src)
		s := w.begin(stepOne, src)
		for _, name := range names {
			_, err := os.ReadFile(filepath.Join(dir, name))
			require.NoError(t, err)
		}
		s.End(ok)
		require.NoError(t, w.Close()) // it waits for the profile
		return known(t, profiles, src, stepOne)
	}
	sizeOf := func(ranges []profile.Range) (n int64) {
		for _, r := range ranges {
			n += r.Len
		}
		return n
	}
	two := sizeOf(run(true, "a", "c"))
	require.Greater(t, sizeOf(run(false, "b")), two, "it failed: b is added")
	require.Less(t, sizeOf(run(true, "d")), two, "it ran through: d is all that it needs now")
}

func TestStepWithoutProfiles(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{NoProfiles: true}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, _ := w.resolved(src)
	s := w.begin(stepOne, src)
	check(t, dir, "a", contents(1, 0))
	s.End(true)
	s.End(true)
	s.Reads([]digest.Digest{src.Digest}) // too late: nothing is held by it
	require.NoDirExists(t, filepath.Join(w.opts.Root, "profiles"))
}

// A damaged profile is told and costs nothing else; so does one that asks for
// bytes that the blob does not have.
func TestStepWithABadProfile(t *testing.T) {
	reg := blobtest.New(t)
	profiles := filepath.Join(t.TempDir(), "profiles")
	told := make(chan error, 9)
	w := start(t, Options{ProfileDir: profiles, OnError: func(err error) { told <- err }}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, _ := w.resolved(src)
	file := filepath.Join(profiles, "sha256", src.Digest.Encoded()+".json")
	require.NoError(t, os.MkdirAll(filepath.Dir(file), 0o700))
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	s := w.begin(stepOne, src)
	require.ErrorIs(t, <-told, profile.ErrInvalid)
	check(t, dir, "a", contents(1, 0))
	s.End(true)
	known(t, profiles, src, stepOne)

	p, err := profile.Open(profiles)
	require.NoError(t, err)
	require.NoError(t, p.Put(src.Digest, stepTwo, []profile.Range{{Off: 1 << 50, Len: 1 << 20}, {Off: 5, Len: 1 << 62}}, true))
	s = w.begin(stepTwo, src)
	s.End(true)
	check(t, dir, "d/small", []byte("a few bytes"))
}

// A layer that a running step uses is not closed under it, and a file system
// that is closed ends all steps.
func TestStepHoldsItsLayers(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{TTL: -1}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	require.NoError(t, w.Resolve(t.Context(), src)[0])
	l, err := w.Open(src, false)
	require.NoError(t, err)
	s := w.begin(stepOne, src)
	require.NoError(t, l.Close())
	time.Sleep(10 * time.Millisecond)
	require.True(t, w.Info(src.Digest).Open)
	s.End(true)
	eventually(t, "closed", func() bool { return !w.Info(src.Digest).Open })

	_, _ = w.resolved(src)
	s = w.begin(stepOne, src)
	require.NoError(t, w.Close())
	s.End(true)
}

// What a step runs is looked into for what it names in the layers, unless a profile says more.
func TestStepRunsSources(t *testing.T) {
	reg := blobtest.New(t)
	opts := Options{ProfileDir: filepath.Join(t.TempDir(), "profiles")}
	w := start(t, opts, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "usr/include/a.h", "usr/include/b.h", "usr/include/c.h"))
	read := func() []layer.Source {
		return []layer.Source{{Name: "main.c", Text: []byte("#include <b.h>\n")}}
	}
	never := func() []layer.Source {
		t.Error("sources are read")
		return nil
	}
	s := w.BeginStep(StepOptions{ID: stepOne, Broken: func() {}})
	s.Runs(never) // no layer of it is lazy
	dir, _ := w.resolved(src)
	reg.Reset()
	s.Reads([]digest.Digest{src.Digest})
	s.Runs(read)
	eventually(t, "fetched", func() bool { return w.Info(src.Digest).Prefetched > 100_000 })
	reg.Stop()
	check(t, dir, "usr/include/b.h", contents(1, 1))
	s.End(true)
	s.Runs(never)
	known(t, opts.ProfileDir, src, stepOne)

	s = w.begin(stepOne, src)
	s.Runs(never)
	s.End(true)
	require.NoError(t, w.Close()) // it waits for what would read them
}

// A step that will read fetches ahead, and nothing is put down to it until it reads.
func TestStepThatWillRead(t *testing.T) {
	reg := blobtest.New(t)
	opts := Options{ProfileDir: filepath.Join(t.TempDir(), "profiles"), Layer: layer.Options{Window: -1}}
	w := start(t, opts, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a", "b", "c"))
	s := w.begin(stepOne)
	s.WillRead([]digest.Digest{src.Digest}) // it can't be read yet
	dir, _ := w.resolved(src)
	s.WillRead([]digest.Digest{src.Digest})
	check(t, dir, "a", contents(1, 0))
	require.NoError(t, s.ReadError(), "it reads nothing")
	idle := w.begin(stepTwo)
	idle.WillRead([]digest.Digest{src.Digest})
	idle.End(false)

	s.Reads([]digest.Digest{src.Digest})
	check(t, dir, "b", contents(1, 1))
	require.NoError(t, s.ReadError())
	s.End(true)
	ranges := known(t, opts.ProfileDir, src, stepOne)
	require.Len(t, ranges, 1)
	require.InDelta(t, 100_000, ranges[0].Len, 2000)
	require.NoError(t, w.Close()) // it waits for what is written
	profiles, err := profile.Open(opts.ProfileDir)
	require.NoError(t, err)
	ranges, err = profiles.Get(src.Digest, stepTwo)
	require.NoError(t, err)
	require.Empty(t, ranges)

	other := start(t, opts, reg)
	other.resolved(src)
	s = other.begin(stepOne)
	s.WillRead([]digest.Digest{src.Digest})
	eventually(t, "fetched", func() bool { return other.Info(src.Digest).Prefetched >= 90_000 })
	s.End(false)
}

// Of a file that several layers have, the topmost one's is fetched ahead.
func TestTopmostCopyIsFetched(t *testing.T) {
	reg := blobtest.New(t)
	top := push(reg, "app:latest", layerOf(t, 3, "a", "b"))
	one := push(reg, "app:latest", layerOf(t, 1, "etc/group", "b"))
	two := push(reg, "app:latest", layerOf(t, 2, "etc/group", "b"))
	for range 12 { // the order of a map would do half of the time
		for _, order := range [][]remotesnapshot.Source{{top, one, two}, {top, two, one}} {
			w := start(t, Options{NoProfiles: true}, reg)
			for _, src := range order {
				w.resolved(src)
			}
			s := w.BeginStep(StepOptions{ID: stepOne, Broken: func() {}})
			s.WillRead([]digest.Digest{order[0].Digest, order[1].Digest, order[2].Digest})
			eventually(t, "fetched", func() bool {
				return w.Info(order[1].Digest).Prefetched+w.Info(order[2].Digest).Prefetched > 50_000
			})
			require.Zero(t, w.Info(order[2].Digest).Prefetched)
			s.End(false)
			require.NoError(t, w.Close())
		}
	}
}

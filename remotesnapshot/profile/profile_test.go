package profile

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var (
	layerA = digest.FromString("layer a")
	layerB = digest.FromString("layer b")
	stepA  = StepDigest([]string{"/bin/sh", "-c", "a"}, "/")
	stepB  = StepDigest([]string{"/bin/sh", "-c", "b"}, "/")
)

func open(t *testing.T) *Store {
	s, err := Open(filepath.Join(t.TempDir(), "profiles"))
	require.NoError(t, err)
	return s
}

func TestStepDigest(t *testing.T) {
	require.NotEqual(t, stepA, stepB)
	require.NotEqual(t, stepA, StepDigest([]string{"/bin/sh", "-c", "a"}, "/src"))
	require.NotEqual(t, StepDigest([]string{"a", "b"}, "/"), StepDigest([]string{"a b"}, "/"))
	require.Equal(t, stepA, StepDigest([]string{"/bin/sh", "-c", "a"}, "/"))
	require.NoError(t, stepA.Validate())
}

func TestPutAndGet(t *testing.T) {
	s := open(t)
	got, err := s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Empty(t, got)

	first := []Range{{5000, 100}, {0, 10}}
	require.NoError(t, s.Put(layerA, stepA, first, true))
	require.NoError(t, s.Put(layerA, stepB, []Range{{1, 2}}, true))
	got, err = s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, first, got, "in the order in which they were read")

	require.NoError(t, s.Put(layerA, stepA, []Range{{5010, 20}, {7000, 1}}, false))
	got, err = s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, []Range{{5000, 100}, {0, 10}, {7000, 1}}, got, "a part of the reads adds to what is known")

	require.NoError(t, s.Put(layerA, stepA, []Range{{9, 9}}, true))
	got, err = s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, []Range{{9, 9}}, got, "all of the reads replace it")

	require.NoError(t, s.Put(layerA, stepA, nil, false))
	got, err = s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, []Range{{9, 9}}, got, "a step that the kernel answered alone forgets nothing")

	again, err := Open(s.dir)
	require.NoError(t, err)
	got, err = again.Get(layerA, stepB)
	require.NoError(t, err)
	require.Equal(t, []Range{{1, 2}}, got)
	got, err = again.Get(layerB, stepB)
	require.NoError(t, err)
	require.Empty(t, got)
}

func TestRequests(t *testing.T) {
	s := open(t)
	require.Zero(t, s.Requests(layerA, layerB))
	far := func(n int) (ranges []Range) {
		for i := range n {
			ranges = append(ranges, Range{int64(i) << 24, 1000})
		}
		return ranges
	}
	require.NoError(t, s.Put(layerA, stepA, far(5), true))
	require.NoError(t, s.Put(layerB, stepA, far(7), true))
	require.NoError(t, s.Put(layerB, stepB, far(9), true))
	require.Equal(t, 5, s.Requests(layerA))
	require.Equal(t, 9, s.Requests(layerB))
	require.Equal(t, 12, s.Requests(layerA, layerB), "a step reads both")
	require.NoError(t, s.Put(layerA, stepB, []Range{{0, 1}}, true))
	require.Equal(t, 12, s.Requests(layerA, layerB))
	require.NoError(t, os.WriteFile(s.path(layerA), []byte("{"), 0o600))
	require.Equal(t, 9, s.Requests(layerA, layerB), "what is damaged counts for nothing")
	for i := range recentSteps {
		require.NoError(t, s.Put(layerB, StepDigest([]string{fmt.Sprint(i)}, "/"), far(2), true))
	}
	require.Equal(t, 2, s.Requests(layerB), "of steps that ran long ago nobody expects anything")
}

func TestBounds(t *testing.T) {
	s := open(t)
	for i := range MaxSteps + 3 {
		require.NoError(t, s.Put(layerA, StepDigest([]string{fmt.Sprint(i)}, "/"), []Range{{1, 1}}, true))
	}
	l, err := s.load(layerA)
	require.NoError(t, err)
	require.Len(t, l.Steps, MaxSteps)

	many := make([]Range, MaxRanges+5)
	for i := range many {
		many[i] = Range{int64(i) * 10, 1}
	}
	require.NoError(t, s.Put(layerB, stepA, many, true))
	got, err := s.Get(layerB, stepA)
	require.NoError(t, err)
	require.Equal(t, many[:MaxRanges], got)
	require.NoError(t, s.Put(layerB, stepA, many, false))
	got, err = s.Get(layerB, stepA)
	require.NoError(t, err)
	require.Equal(t, many[:MaxRanges], got)
}

func TestOldLayersGo(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Put(layerA, stepA, []Range{{1, 1}}, true))
	dir := filepath.Join(s.dir, "sha256")
	old := time.Now().Add(-time.Hour)
	for i := range MaxLayers {
		path := filepath.Join(dir, digest.FromString(fmt.Sprint(i)).Encoded()+".json")
		require.NoError(t, os.WriteFile(path, []byte("{}"), 0o600))
		require.NoError(t, os.Chtimes(path, old, old))
	}
	require.NoError(t, s.Put(layerB, stepA, []Range{{1, 1}}, true))
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, MaxLayers)
	for _, l := range []digest.Digest{layerA, layerB} {
		got, err := s.Get(l, stepA)
		require.NoError(t, err)
		require.NotEmpty(t, got)
	}
}

func TestDamage(t *testing.T) {
	for name, text := range map[string]string{
		"half of it":          `{"layer":"` + layerA.String() + `","steps":[{"st`,
		"another layer's":     `{"layer":"` + layerB.String() + `"}`,
		"no digest":           `{"layer":"../../etc/passwd"}`,
		"a negative offset":   `{"layer":"` + layerA.String() + `","steps":[{"step":"` + stepA.String() + `","ranges":[[-1,5]]}]}`,
		"an empty range":      `{"layer":"` + layerA.String() + `","steps":[{"step":"` + stepA.String() + `","ranges":[[1,0]]}]}`,
		"an endless range":    `{"layer":"` + layerA.String() + `","steps":[{"step":"` + stepA.String() + `","ranges":[[9223372036854775807,1]]}]}`,
		"half a range":        `{"layer":"` + layerA.String() + `","steps":[{"step":"` + stepA.String() + `","ranges":[[1]]}]}`,
		"a step twice":        `{"layer":"` + layerA.String() + `","steps":[{"step":"` + stepA.String() + `"},{"step":"` + stepA.String() + `"}]}`,
		"a step that is none": `{"layer":"` + layerA.String() + `","steps":[{"step":"x"}]}`,
		"too much":            strings.Repeat(" ", maxFile+1),
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			require.NoError(t, os.MkdirAll(filepath.Dir(s.path(layerA)), 0o700))
			require.NoError(t, os.WriteFile(s.path(layerA), []byte(text), 0o600))
			_, err := s.Get(layerA, stepA)
			require.ErrorIs(t, err, ErrInvalid)
			require.ErrorContains(t, err, layerA.Encoded(), "it names the file")
			_, err = s.Layers()
			require.ErrorIs(t, err, ErrInvalid)

			require.NoError(t, s.Put(layerA, stepA, []Range{{1, 1}}, false), "it is made again")
			got, err := s.Get(layerA, stepA)
			require.NoError(t, err)
			require.Equal(t, []Range{{1, 1}}, got)
		})
	}
}

func TestBadNames(t *testing.T) {
	s := open(t)
	_, err := s.Get("../x", stepA)
	require.Error(t, err)
	require.Error(t, s.Put("sha256:../../x", stepA, []Range{{1, 1}}, true))
}

func TestExportAndImport(t *testing.T) {
	from, to := open(t), open(t)
	require.NoError(t, from.Put(layerA, stepA, []Range{{3, 4}}, true))
	require.NoError(t, from.Put(layerB, stepB, []Range{{5, 6}}, true))
	require.NoError(t, to.Put(layerA, stepB, []Range{{7, 8}}, true))

	var all, one bytes.Buffer
	n, err := from.Export(&all)
	require.NoError(t, err)
	require.Equal(t, 2, n)
	n, err = from.Export(&one, layerB)
	require.NoError(t, err)
	require.Equal(t, 1, n)
	require.NotContains(t, one.String(), layerA.String())

	n, err = to.Import(bytes.NewReader(all.Bytes()))
	require.NoError(t, err)
	require.Equal(t, 2, n)
	for _, c := range []struct {
		layer, step digest.Digest
		want        Range
	}{{layerA, stepA, Range{3, 4}}, {layerA, stepB, Range{7, 8}}, {layerB, stepB, Range{5, 6}}} {
		got, err := to.Get(c.layer, c.step)
		require.NoError(t, err)
		require.Equal(t, []Range{c.want}, got)
	}

	_, err = to.Import(strings.NewReader(one.String() + "\n{\n"))
	require.ErrorIs(t, err, ErrInvalid)
	require.ErrorContains(t, err, "line 3")
	_, err = to.Import(strings.NewReader(strings.Repeat("x", maxFile+1)))
	require.ErrorIs(t, err, ErrInvalid)
}

// What was used last is kept on both sides.
func TestImportKeepsWhatIsNewer(t *testing.T) {
	s := open(t)
	require.NoError(t, s.Put(layerA, stepA, []Range{{3, 4}}, true))
	old := fmt.Sprintf(`{"layer":%q,"steps":[{"step":%q,"used":"2001-01-01T00:00:00Z","ranges":[[1,1]]}]}`, layerA, stepA)
	_, err := s.Import(strings.NewReader(old))
	require.NoError(t, err)
	got, err := s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, []Range{{3, 4}}, got)
	_, err = s.Import(strings.NewReader(strings.Replace(old, "2001", "2901", 1)))
	require.NoError(t, err)
	got, err = s.Get(layerA, stepA)
	require.NoError(t, err)
	require.Equal(t, []Range{{1, 1}}, got)
}

func TestPutsAtTheSameTime(t *testing.T) {
	s := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			if err := s.Put(layerA, StepDigest([]string{fmt.Sprint(i)}, "/"), []Range{{int64(i), 1}}, true); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	l, err := s.load(layerA)
	require.NoError(t, err)
	require.Len(t, l.Steps, 20, "none is lost")
}

// covered says how many bytes of ranges plan brings, and how many it fetches.
func covered(plan []Fetch, layer digest.Digest, ranges []Range) (useful, fetched int64) {
	var have []Range
	for _, f := range plan {
		if f.Layer == layer {
			have = append(have, f.Range)
			fetched += f.Len
		}
	}
	have = sorted(have)
	for _, r := range sorted(ranges) {
		for _, h := range have {
			if lo, hi := max(r.Off, h.Off), min(r.end(), h.end()); lo < hi {
				useful += hi - lo
			}
		}
	}
	return useful, fetched
}

func sum(ranges []Range) (n int64) {
	for _, r := range ranges {
		n += r.Len
	}
	return n
}

func TestPlan(t *testing.T) {
	require.Empty(t, Plan(nil))
	require.Empty(t, Plan([]Wanted{{Layer: layerA}}))
	require.Equal(t, []Fetch{{layerA, Range{10, 5}}}, Plan([]Wanted{{layerA, []Range{{10, 5}}}}))

	// What touches or overlaps is one request; what is needed first comes first.
	require.Equal(t, []Fetch{{layerA, Range{100_000, 10}}, {layerA, Range{0, 30}}},
		Plan([]Wanted{{layerA, []Range{{100_000, 10}, {10, 10}, {0, 10}, {15, 15}}}}))

	// A large range goes over several connections.
	plan := Plan([]Wanted{{layerA, []Range{{0, 40 << 20}}}})
	require.Len(t, plan, planRequests)
	_, fetched := covered(plan, layerA, nil)
	require.EqualValues(t, 40<<20, fetched)
}

// Whatever was read, a plan brings all of it, nothing twice, and no more besides
// than it may.
func TestPlanOfAnything(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		var wanted []Wanted
		for _, l := range []digest.Digest{layerA, layerB}[:1+rnd.IntN(2)] {
			w := Wanted{Layer: l}
			for range rnd.IntN(planMost / 2) {
				w.Ranges = append(w.Ranges, Range{rnd.Int64N(400 << 20), 1 + rnd.Int64N(1<<(4+rnd.IntN(18)))})
			}
			wanted = append(wanted, w)
		}
		before := fmt.Sprint(wanted)
		plan := Plan(wanted)
		require.Equal(t, before, fmt.Sprint(wanted), "the argument stays as it is")
		var all, got int64
		for _, w := range wanted {
			useful, fetched := covered(plan, w.Layer, w.Ranges)
			want := sum(sorted(w.Ranges))
			require.Equal(t, want, useful, "seed %d: all of it", seed)
			all, got = all+want, got+fetched
		}
		require.LessOrEqual(t, float64(got), float64(all)*(1+planWaste), "seed %d", seed)
		if len(plan) > planRequests { // only where bytes forbid to do better
			require.Greater(t, float64(got), float64(all)*(1+planWaste)-400*float64(1<<20)/planRequests, "seed %d", seed)
		}
		ranges := map[digest.Digest][]Range{}
		for _, f := range plan {
			ranges[f.Layer] = append(ranges[f.Layer], f.Range)
		}
		for _, r := range ranges {
			require.Equal(t, sum(r), sum(sorted(slices.Clone(r))), "seed %d: nothing twice", seed)
		}
	}
}

func TestUnion(t *testing.T) {
	known := []Range{{100, 50}, {0, 10}, {150, 10}}
	require.Equal(t, known, Union(known, []Range{{0, 10}, {2, 3}, {140, 20}}), "what is known in parts is known")
	require.Equal(t, append(slices.Clone(known), Range{5, 10}, Range{200, 1}), Union(known, []Range{{5, 10}, {200, 1}}))
	require.Equal(t, []Range{{1, 1}}, Union(nil, []Range{{1, 1}}))
}

// FuzzParse: whatever a file holds, it is taken or refused, and what was taken can
// be written, read again and planned.
func FuzzParse(f *testing.F) {
	f.Add([]byte(fmt.Sprintf(`{"layer":%q,"steps":[{"step":%q,"used":"2026-01-01T00:00:00Z","ranges":[[0,5],[7,9]]}]}`, layerA, stepA)))
	f.Add([]byte(fmt.Sprintf(`{"layer":%q,"steps":[{"step":%q,"ranges":[[0,9223372036854775807],[1,9223372036854775806]]}]}`, layerA, stepA)))
	f.Add([]byte(`{"layer":"sha256:x"}`))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parse(b)
		if err != nil {
			require.ErrorIs(t, err, ErrInvalid)
			return
		}
		written, err := json.Marshal(l)
		require.NoError(t, err)
		again, err := parse(written)
		require.NoError(t, err)
		require.Equal(t, l.Layer, again.Layer)
		for i, st := range l.Steps {
			require.ElementsMatch(t, st.Ranges, again.Steps[i].Ranges)
			var bytes int64
			for _, f := range Plan([]Wanted{{l.Layer, st.Ranges}}) {
				require.Positive(t, f.Len)
				require.GreaterOrEqual(t, f.Off, int64(0))
				bytes += f.Len
			}
			require.LessOrEqual(t, bytes, int64(2*planBytes))
		}
	})
}

package layer

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// place of the file that member m of a recorded layer belongs to.
func (r *recorded) place(m uint32) place {
	first, n, _ := r.FileChunks(r.files[m])
	return place{r.files[m], first, first + n - 1}
}

// dirPath are the directories from the root to dir.
func (r *recorded) holds(dir, file uint32) bool { return within(r, dir, r.parents[file]) }

// TestBuildsAreNoScans replays the recorded builds.
func TestBuildsAreNoScans(t *testing.T) {
	layers, builds := recordings(t)
	for name, reads := range builds {
		t.Run(name, func(t *testing.T) {
			for i, l := range layers {
				w := &walks{toc: l}
				for _, r := range reads {
					if r.layer != i {
						continue
					}
					for m := r.first; m <= r.last; m++ {
						x := w.note(l.place(m), m, time.Time{})
						require.False(t, x.scan, "layer %d: %+v", i, x)
					}
				}
			}
		})
	}
}

// TestBuildsAreNotDense takes all requests of the recorded builds for as slow as
// requests can be.
func TestBuildsAreNotDense(t *testing.T) {
	layers, builds := recordings(t)
	for name, reads := range builds {
		t.Run(name, func(t *testing.T) {
			for i, l := range layers {
				var alone []wanted
				for _, r := range reads {
					if r.layer == i {
						alone = append(alone, r)
					}
				}
				w := &walks{toc: l}
				end := l.members[len(l.members)-1]
				sum := replay(layers, alone, Options{}.withDefaults().Window, near)
				for range sum.requests {
					require.False(t, w.missed(time.Minute, 0, time.Unix(0, 0), end.Offset+end.Size-sum.bytes))
				}
			}
		})
	}
}

// walkOf returns the files of a layer below dir, in the order of the blob, each
// with a chance.
func walkOf(l *recorded, dir uint32, share float64) (files []place) {
	r := rand.New(rand.NewPCG(1, 2))
	for m := uint32(0); int(m) < len(l.members); m++ {
		p := l.place(m)
		if p.first == m && l.holds(dir, p.file) && r.Float64() < share {
			files = append(files, p)
		}
	}
	return files
}

// scanned says after how many files, and bytes, a walk is seen to be a scan.
func scanned(l *recorded, files []place) (n int, bytes int64) {
	w := &walks{toc: l}
	for i, p := range files {
		bytes += p.span(l).size()
		if w.note(p, p.first, time.Time{}).scan {
			return i + 1, bytes
		}
	}
	return -1, bytes
}

func TestScansAreSeenSoon(t *testing.T) {
	layers, _ := recordings(t)
	for _, share := range []float64{1, 0.5, 0.25, 0.1, 0.05} {
		for i, l := range layers {
			n, bytes := scanned(l, walkOf(l, 0, share))
			t.Logf("layer %d, %3.0f%% of the files: after %d files, %.2f MB", i, 100*share, n, float64(bytes)/1e6)
			require.Positive(t, n)
			require.LessOrEqual(t, n, 300)
			require.LessOrEqual(t, bytes, int64(16<<20))
		}
	}
}

// TestScansBesideABuild mixes a walk with the reads of a build.
func TestScansBesideABuild(t *testing.T) {
	layers, builds := recordings(t)
	l := layers[1]
	w := &walks{toc: l}
	files := walkOf(l, 0, 1)
	n := 0
	for _, r := range builds["go"] {
		if r.layer != 1 {
			continue
		}
		n++
		x := w.note(files[n], files[n].first, time.Time{})
		w.note(l.place(r.first), r.first, time.Time{})
		if x.scan {
			break
		}
	}
	require.LessOrEqual(t, n, 300)
}

// TestScanOfADirectory goes through each directory of some size, and looks at what
// is fetched ahead.
func TestScanOfADirectory(t *testing.T) {
	layers, _ := recordings(t)
	l := layers[1]
	seen := 0
	for dir := range uint32(len(l.parents) - len(l.first)) {
		files := walkOf(l, dir, 1)
		if len(files) < 500 || len(files) > 10_000 {
			continue
		}
		w := &walks{toc: l}
		there := make([]bool, len(l.members))
		present := func(off, _ int64) bool { return there[l.at(off)] }
		scan := false
		for _, p := range files {
			for m := p.first; m <= p.last; m++ {
				there[m] = true
			}
			scan = scan || w.note(p, p.first, time.Time{}).scan
			for s := w.piece(present); s.size() > 0; s = w.piece(present) {
				for m := l.at(s.lo); int(m) < len(l.members) && l.members[m].Offset < s.hi; m++ {
					require.True(t, l.holds(dir, l.files[m]), "fetched from outside of what is walked")
					require.False(t, there[m])
					there[m] = true
				}
			}
		}
		if scan {
			seen++
		}
	}
	require.Greater(t, seen, 10)
}

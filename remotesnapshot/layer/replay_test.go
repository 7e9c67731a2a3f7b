package layer

import (
	"bufio"
	"compress/gzip"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// testdata/reads.txt.gz has the members of two layers (a minimal Debian, and gcc,
// g++, python3-numpy, nodejs, golang-go, git, cmake and curl on it) and which of
// them four builds read first, in their order: those of hack/bench. They were
// recorded by noting the calls of ReadAt of a daemon with a fast registry. The
// builds wait for one read at a time but for a few of go's, so a replay one after
// the other asks for what a build does. Lines of numbers:
//
//	layer DIRECTORIES MEMBERS
//	  the parent of each directory, by its number; 0 is the root
//	  of each member its size, its file's directory, or "=" for the file of the
//	  member before, and the gap before it where there is one
//	build NAME READS
//	  of each read the layer, the first and the last member

// recorded is a table of contents from the file. Inodes are the directories,
// then the files; chunks are members.
type recorded struct {
	parents []uint32 // of inodes
	members []estargz.Member
	files   []uint32 // of members
	first   []uint32 // members of files
}

func (r *recorded) Member(m uint32) (estargz.Member, error) {
	if int(m) >= len(r.members) {
		return estargz.Member{}, estargz.ErrNotExist
	}
	return r.members[m], nil
}

func (r *recorded) MemberFile(m uint32) (uint32, error) {
	if int(m) >= len(r.files) {
		return 0, estargz.ErrNotExist
	}
	return r.files[m], nil
}

func (r *recorded) Parent(i uint32) (uint32, error) { return r.parents[i], nil }

func (r *recorded) FileChunks(i uint32) (first, n uint32, err error) {
	f := int(i) - (len(r.parents) - len(r.first))
	end := uint32(len(r.members))
	if f+1 < len(r.first) {
		end = r.first[f+1]
	}
	return r.first[f], end - r.first[f], nil
}

func (r *recorded) Chunk(c uint32, out *estargz.Chunk) error {
	*out = estargz.Chunk{Member: c}
	return nil
}

// wanted is a read of a recorded build.
type wanted struct {
	layer       int
	first, last uint32
}

// recordings reads the file.
func recordings(t *testing.T) (layers []*recorded, builds map[string][]wanted) {
	t.Helper()
	f, err := os.Open("testdata/reads.txt.gz")
	require.NoError(t, err)
	defer f.Close()
	z, err := gzip.NewReader(f)
	require.NoError(t, err)
	builds = map[string][]wanted{}
	lines := bufio.NewScanner(z)
	for lines.Scan() {
		var name string
		var n, k int
		if _, err := fmt.Sscanf(lines.Text(), "layer %d %d", &k, &n); err == nil {
			layers = append(layers, readLayer(t, lines, k, n))
			continue
		}
		_, err := fmt.Sscanf(lines.Text(), "build %s %d", &name, &n)
		require.NoError(t, err)
		for range n {
			var w wanted
			require.True(t, lines.Scan())
			_, err := fmt.Sscanf(lines.Text(), "%d %d %d", &w.layer, &w.first, &w.last)
			require.NoError(t, err)
			builds[name] = append(builds[name], w)
		}
	}
	require.NoError(t, lines.Err())
	return layers, builds
}

func readLayer(t *testing.T, lines *bufio.Scanner, dirs, members int) *recorded {
	t.Helper()
	r := &recorded{}
	for range dirs {
		var p uint32
		require.True(t, lines.Scan())
		_, err := fmt.Sscan(lines.Text(), &p)
		require.NoError(t, err)
		r.parents = append(r.parents, p)
	}
	end := int64(0)
	for m := range uint32(members) {
		var size, gap int64
		var dir string
		require.True(t, lines.Scan())
		if n, err := fmt.Sscan(lines.Text(), &size, &dir, &gap); n < 2 {
			require.NoError(t, err)
		}
		if dir != "=" {
			var parent uint32
			_, err := fmt.Sscan(dir, &parent)
			require.NoError(t, err)
			r.parents = append(r.parents, parent)
			r.first = append(r.first, m)
		}
		r.files = append(r.files, uint32(len(r.parents)-1))
		r.members = append(r.members, estargz.Member{Offset: end + gap, Size: size})
		end += gap + size
	}
	return r
}

// replayed is what a build has come to.
type replayed struct {
	requests     int
	bytes, read  int64         // asked for, and of the members that were read
	near, far    time.Duration // spent waiting at 0.2 ms and 30 ms a round trip, 40 MB/s
	asked, reads []bool
}

func near() time.Duration { return 0 }

func far() time.Duration { return farWait }

// replay lets windows choose the requests of a build.
func replay(layers []*recorded, reads []wanted, limit int64, wait func() time.Duration) (sum replayed) {
	type state struct {
		*windows
		there, read []bool
	}
	states := make([]state, len(layers))
	for i, l := range layers {
		states[i] = state{newWindows(l, limit, wait), make([]bool, len(l.members)), make([]bool, len(l.members))}
	}
	for _, r := range reads {
		l, s := layers[r.layer], states[r.layer]
		present := func(off, _ int64) bool { return s.there[l.at(off)] }
		for m := r.first; m <= r.last; m++ {
			if !s.there[m] {
				last := m
				for last < r.last && !s.there[last+1] {
					last++
				}
				off, size, done := s.plan(m, last, span{l.members[m].Offset, l.members[last].Offset + l.members[last].Size}, present)
				done()
				for n := l.at(off); int(n) < len(l.members) && l.members[n].Offset < off+size; n++ {
					s.there[n] = true
				}
				sum.requests++
				sum.bytes += size
				body := time.Duration(size) * time.Second / 40e6
				sum.near += 200*time.Microsecond + body
				sum.far += 30*time.Millisecond + body
			}
			if !s.read[m] {
				s.read[m] = true
				sum.read += l.members[m].Size
			}
			s.use(m)
		}
	}
	return sum
}

// at returns the member at an offset of the blob.
func (r *recorded) at(off int64) uint32 {
	lo, hi := 0, len(r.members)
	for lo < hi {
		if mid := (lo + hi) / 2; r.members[mid].Offset < off {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return uint32(lo)
}

// TestReplays bounds what the recorded builds ask for. It is no surprise when a
// change of what is learned moves a figure by some percent: look at all of them.
func TestReplays(t *testing.T) {
	layers, builds := recordings(t)
	for _, tc := range []struct {
		name     string
		requests int
		wasted   int64
		farther  int // requests where answers take long
		lost     int64
	}{
		{"python", 72, 9_000_000, 59, 12_500_000},
		{"g++", 51, 4_700_000, 46, 6_500_000},
		{"go", 143, 5_700_000, 124, 7_800_000},
		{"node", 37, 3_600_000, 36, 5_000_000},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := replay(layers, builds[tc.name], Options{}.withDefaults().Window, near)
			alone := replay(layers, builds[tc.name], -1, near)
			away := replay(layers, builds[tc.name], Options{}.withDefaults().Window, far)
			t.Logf("%4d requests, %5.2f MB, %.2f MB of it not read; waits %.2f s near, %.2f s far; members alone: %d requests, %.2f s, %.2f s",
				got.requests, float64(got.bytes)/1e6, float64(got.bytes-got.read)/1e6, got.near.Seconds(), got.far.Seconds(),
				alone.requests, alone.near.Seconds(), alone.far.Seconds())
			require.Equal(t, alone.bytes, alone.read)
			require.Equal(t, alone.read, got.read)
			require.LessOrEqual(t, got.requests, tc.requests)
			require.LessOrEqual(t, got.bytes-got.read, tc.wasted)
			require.LessOrEqual(t, away.requests, tc.farther)
			require.LessOrEqual(t, away.bytes-away.read, tc.lost)
		})
	}
}

package layer

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// givenFiles is a layer with so many small files that a walk through them is seen by its
// marks only, and some that are marks for their size.
func givenFiles(t *testing.T) (built, []file) {
	var files []file
	for i := range 150 {
		for k := range 20 {
			files = append(files, file{fmt.Sprintf("d%03d/f%02d", i, k), noise(uint64(i*100+k), 500)})
		}
		if i%50 == 30 {
			files = append(files, file{fmt.Sprintf("d%03d/z", i), noise(uint64(i), largeSize+1000)})
		}
	}
	return build(t, estargz.FormatEStargz, files), files
}

// shelf is a Taker that keeps what it was given, as the kernel does.
type shelf struct {
	mu    sync.Mutex
	files map[uint32][]byte
	calls int
	full  bool
}

func (s *shelf) take(parts []Given) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.calls++
	if s.full {
		return false
	}
	for _, p := range parts {
		if p.Off == int64(len(s.files[p.Inode])) {
			s.files[p.Inode] = append(s.files[p.Inode], p.Data...)
		}
	}
	return true
}

func (s *shelf) asked() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

func (s *shelf) has(inode uint32, size int) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.files[inode]; len(b) == size {
		return b
	}
	return nil
}

// walkPast reads what is not on the shelf, and returns how many files that were.
func (o *opened) walkPast(s *shelf, files []file) (read int) {
	o.t.Helper()
	for _, f := range files {
		if b := s.has(o.inode(f.name), len(f.data)); b != nil {
			require.True(o.t, bytes.Equal(f.data, b), f.name)
			continue
		}
		read++
		o.walk([]file{f})
		time.Sleep(20 * time.Microsecond) // what it is read for
	}
	return read
}

func TestScansAreGivenAway(t *testing.T) {
	b, files := givenFiles(t)
	o := b.open(t, Options{})
	s := &shelf{files: map[uint32][]byte{}}
	o.SetTaker(s.take)
	rec := o.Record()
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, 0, int64(len(b.blob))))
	read := o.walkPast(s, files)
	t.Logf("%d of %d files were read", read, len(files))
	// Those up to where it is a scan, the marks, and what the reader came to first.
	require.Less(t, read, len(files)/2)
	for _, f := range files {
		m, err := o.toc.FindMember(o.member(f.name, 0).Offset)
		require.NoError(t, err)
		if isMark(o.toc, m) {
			require.Nil(t, s.has(o.inode(f.name), len(f.data)), "%s is a mark", f.name)
		}
	}
	size := int64(0)
	ranges, _ := rec.Stop()
	for _, r := range ranges {
		size += r.Size
	}
	last := o.member(files[len(files)-1].name, 0)
	first := o.member(files[0].name, 0)
	require.Equal(t, last.Offset+last.Size-first.Offset, size, "what was given away counts as read")
}

// One who takes nothing gets no more, and readers what they ask for.
func TestNobodyTakes(t *testing.T) {
	b, files := givenFiles(t)
	o := b.open(t, Options{})
	s := &shelf{full: true}
	o.SetTaker(s.take)
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, 0, int64(len(b.blob))))
	o.walk(files)
	require.Positive(t, s.asked())
	o.SetTaker(nil)
	eventually(t, "what is under way has ended", func() bool { return o.unpacking.Load() == 0 })
	calls := s.asked()
	o.walk(files)
	require.Equal(t, calls, s.asked())
}

// The walk of one who reads a part of what it passes is no scan for being given things.
func TestSparseWalksAreSeen(t *testing.T) {
	b, files := givenFiles(t)
	o := b.open(t, Options{})
	s := &shelf{files: map[uint32][]byte{}}
	o.SetTaker(s.take)
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, 0, int64(len(b.blob))))
	for i, f := range files {
		if i%40 == 0 && s.has(o.inode(f.name), len(f.data)) == nil {
			o.walk([]file{f})
		}
	}
	require.Zero(t, s.asked())
}

func TestCountOfWhatIsAhead(t *testing.T) {
	size := func(n uint32) (uint32, int64, bool) { return n, int64(n), true }
	sum := func(lo, hi uint32) (s int64) { // lo not included, nor hi
		for n := lo + 1; n < hi; n++ {
			s += int64(n)
		}
		return s
	}
	x := &walk{place: place{file: 1}}
	for _, step := range []struct{ at, unpack uint32 }{
		{10, 11}, {10, 30}, {12, 30}, {29, 30}, {30, 31}, {5, 31}, {5, 20}, {19, 60}, {100, 101}, {100, 140}, {110, 120}, {3, 4},
	} {
		x.at, x.unpack = step.at, step.unpack
		x.count(size)
		require.Equal(t, sum(step.at, step.unpack), x.aheadBytes, "%+v", step)
	}
}

func TestGiven(t *testing.T) {
	var g given
	require.False(t, g.has(5))
	for _, n := range []uint32{0, 5, 63, 64, 1000} {
		g.add(n)
		require.True(t, g.has(n))
	}
	require.Equal(t, 5, g.count(0, 1001))
	require.Equal(t, 2, g.count(5, 64))
	g.asked(5)
	require.False(t, g.has(5))
	g.asked(6)
	require.Zero(t, g.lost)
	for n := range uint32(lostMost + 1) {
		g.add(2000 + n)
		g.asked(2000 + n)
	}
	require.False(t, g.has(1000), "nothing was kept")
}

// What one walk had given away is not left out by another that comes through it.
func TestWalksThroughWhatWasGiven(t *testing.T) {
	b, files := givenFiles(t)
	o := b.open(t, Options{})
	s := &shelf{files: map[uint32][]byte{}}
	o.SetTaker(s.take)
	require.NoError(t, o.blob.Fetch(t.Context(), Prefetch, 0, int64(len(b.blob))))
	o.walk(files[:20*treeDirs+1])
	for n := range o.toc.Members() {
		if !isMark(o.toc, n) {
			o.walks.gave([]uint32{n})
		}
	}
	for i, f := range files {
		m, err := o.toc.FindMember(o.member(f.name, 0).Offset)
		require.NoError(t, err)
		if isMark(o.toc, m) {
			o.walk(files[i : i+1])
		}
	}
	o.walks.mu.Lock()
	list := o.walks.mu.list
	o.walks.mu.Unlock()
	for _, x := range list {
		if x.files > 50 {
			require.True(t, x.scan && x.complete(), "%d files read, %d left out", x.files, x.passed)
			return
		}
	}
	t.Fatal("no walk")
}

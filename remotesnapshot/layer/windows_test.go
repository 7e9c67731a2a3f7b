package layer

import (
	"fmt"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
)

// A tree is described by its files, in the order of the blob: paths and the sizes
// of their members.
func tree(files ...any) *recorded {
	r := &recorded{parents: []uint32{0}}
	dirs := map[string]uint32{"": 0}
	for i := 0; i < len(files); i += 2 {
		dir, _, _ := cutLast(files[i].(string))
		addDir(r, dirs, dir)
	}
	end := int64(0)
	for i := 0; i < len(files); i += 2 {
		dir, _, _ := cutLast(files[i].(string))
		r.parents = append(r.parents, dirs[dir])
		r.first = append(r.first, uint32(len(r.members)))
		for _, size := range files[i+1].([]int64) {
			r.members = append(r.members, estargz.Member{Offset: end, Size: size})
			r.files = append(r.files, uint32(len(r.parents)-1))
			end += size
		}
	}
	return r
}

func cutLast(path string) (dir, name string, ok bool) {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[:i], path[i+1:], true
		}
	}
	return "", path, false
}

func addDir(r *recorded, dirs map[string]uint32, dir string) {
	if _, ok := dirs[dir]; ok {
		return
	}
	parent, _, _ := cutLast(dir)
	addDir(r, dirs, parent)
	dirs[dir] = uint32(len(r.parents))
	r.parents = append(r.parents, dirs[parent])
}

// row is a tree of one directory with n files of a size.
func row(n int, size int64) *recorded {
	var files []any
	for i := range n {
		files = append(files, fmt.Sprintf("d/%05d", i), []int64{size})
	}
	return tree(files...)
}

// asker asks for members, and reads them.
type asker struct {
	t *testing.T
	*windows
	tree  *recorded
	there map[uint32]bool
}

func newAsker(t *testing.T, r *recorded, limit int64) *asker {
	return &asker{t, newWindows(r, limit, near), r, map[uint32]bool{}}
}

func (a *asker) need(first, last uint32) span {
	end := a.tree.members[last]
	return span{a.tree.members[first].Offset, end.Offset + end.Size}
}

func (a *asker) present(off, _ int64) bool { return a.there[a.tree.at(off)] }

// ask says which members are asked for when m is read.
func (a *asker) ask(m uint32) (first, last int) {
	a.t.Helper()
	off, size, done := a.plan(m, m, a.need(m, m), a.present)
	done()
	a.use(m)
	first, last = int(a.tree.at(off)), int(a.tree.at(off+size))-1
	require.LessOrEqual(a.t, first, int(m))
	require.GreaterOrEqual(a.t, last, int(m))
	require.Equal(a.t, a.need(uint32(first), uint32(last)), span{off, off + size}, "whole members")
	for n := first; n <= last; n++ {
		require.False(a.t, a.there[uint32(n)], "member %d was asked for before", n)
		a.there[uint32(n)] = true
	}
	return first, last
}

// read reads members one after the other and says how many requests that takes.
func (a *asker) read(members ...uint32) (requests int) {
	for _, m := range members {
		if a.there[m] {
			a.use(m)
			continue
		}
		a.ask(m)
		requests++
	}
	return requests
}

func every(n, from, to int) (out []uint32) {
	for ; from < to; from += n {
		out = append(out, uint32(from))
	}
	return out
}

const kb = 1 << 10

// small is the size of a file of which a request is worth 32.
const small = requestWorth / 32

func TestWindowsGrowWhereTheyAreOfUse(t *testing.T) {
	a := newAsker(t, row(3000, 8*kb), 1<<20)
	require.Less(t, a.read(every(1, 0, 1000)...), 60)
	require.Less(t, a.read(every(1, 1000, 3000)...), 30, "up to 1 MB each, or 16 in all")
}

func TestWindowsDoNotGrowWhereTheyAreOfNoUse(t *testing.T) {
	r := row(6000, 2*small)
	a := newAsker(t, r, 8<<20)
	for _, m := range every(60, 30, 6000) {
		if a.there[m] {
			a.use(m)
			continue
		}
		first, last := a.ask(m)
		require.LessOrEqual(t, (last-first)*2*small, mayWaste*2, "%d to %d", first, last)
	}
	first, last := a.ask(5999)
	require.Less(t, last-first, 30)
}

// TestHabitsAreOfDirectories: what one directory teaches holds for those beside it
// and not for others.
func TestHabitsAreOfDirectories(t *testing.T) {
	var files []any
	for _, dir := range []string{"src/a", "src/b", "doc/a", "doc/b"} {
		for i := range 400 {
			files = append(files, fmt.Sprintf("%s/%03d", dir, i), []int64{8 * small})
		}
	}
	a := newAsker(t, tree(files...), 8<<20)
	a.read(every(1, 0, 400)...)     // all of src/a
	a.read(every(40, 800, 1200)...) // little of doc/a
	first, last := a.ask(400 + 50)  // in src/b
	require.Greater(t, last-first, 100)
	first, last = a.ask(1200 + 50) // in doc/b
	require.Less(t, last-first, 50)
}

// TestWindowEndsWithTheDirectory: where nothing was read from the directory
// beside it.
func TestWindowEndsWithTheDirectory(t *testing.T) {
	var files []any
	for d := range 40 {
		for i := range 20 {
			files = append(files, fmt.Sprintf("d%02d/%02d", d, i), []int64{8 * small})
		}
	}
	a := newAsker(t, tree(files...), 8<<20)
	for d := range 20 { // every second one, and all of it
		a.read(every(1, 40*d, 40*d+20)...)
	}
	a = &asker{t, a.windows, a.tree, map[uint32]bool{}} // evicted
	for d := range 20 {
		first, last := a.ask(uint32(40*d + 10))
		require.GreaterOrEqual(t, first, 40*d-20)
		require.LessOrEqual(t, last, 40*d+39)
	}
}

func TestWindowStopsAtWhatIsThere(t *testing.T) {
	a := newAsker(t, row(100, kb), 1<<20)
	a.there[49], a.there[52] = true, true
	first, last := a.ask(50)
	require.Equal(t, 50, first)
	require.Equal(t, 51, last)
}

func TestWindowStopsAtGaps(t *testing.T) {
	r := row(100, kb)
	for i := 51; i < 100; i++ {
		r.members[i].Offset++
	}
	first, last := newAsker(t, r, 1<<20).ask(50)
	require.Less(t, first, 50)
	require.Equal(t, 50, last)
}

func TestWindowTakesNoLargeNeighbours(t *testing.T) {
	r := tree("d/a", []int64{kb}, "d/b", []int64{asideSize + 1}, "d/c", []int64{kb}, "d/d", []int64{kb, kb}, "d/e", []int64{kb})
	first, last := newAsker(t, r, 1<<20).ask(2)
	require.Equal(t, 2, first)
	require.Equal(t, 2, last, "no file of several members either")
}

func TestWindowCrossesWhatIsOfNoUse(t *testing.T) {
	var files []any
	for i := range 400 {
		files = append(files, fmt.Sprintf("d/%03d", i), []int64{small})
	}
	files = append(files, "d/large", []int64{15 * small})
	for i := range 100 {
		files = append(files, fmt.Sprintf("d/x%03d", i), []int64{small})
	}
	a := newAsker(t, tree(files...), 1<<20)
	a.read(every(2, 0, 60)...)
	_, last := a.ask(398)
	require.Greater(t, last, 405)
}

func TestFileThatFitsIsAskedForAsAWhole(t *testing.T) {
	for m := range uint32(4) {
		r := tree("bin/a", []int64{kb}, "bin/b", []int64{900 * kb, 800 * kb, 700 * kb, 100 * kb}, "bin/c", []int64{kb})
		first, last := newAsker(t, r, 8<<20).ask(1 + m)
		require.Equal(t, 1, first)
		require.Equal(t, 4, last)
	}
}

func TestLargeFileGrowsFromPartToPart(t *testing.T) {
	sizes := make([]int64, 12)
	for i := range sizes {
		sizes[i] = 1 << 20
	}
	a := newAsker(t, tree("bin/a", sizes), 8<<20)
	for _, want := range []struct{ ask, first, last int }{
		{0, 0, 0}, // a part alone tells nothing
		{11, 11, 11},
		{5, 5, 5},   // nor does one far from others
		{1, 1, 4},   // beside one that was fetched: as much again
		{10, 6, 10}, // backwards
	} {
		first, last := a.ask(uint32(want.ask))
		require.Equal(t, want, struct{ ask, first, last int }{want.ask, first, last})
	}
}

func TestWindowsDoNotOverlapWhatIsComing(t *testing.T) {
	r := row(2000, small)
	a := newAsker(t, r, 1<<20)
	a.read(every(1, 0, 400)...)
	off, _, done := a.plan(1500, 1539, a.need(1500, 1539), a.present)
	coming := int(r.at(off))
	first, last := a.ask(uint32(coming - 5))
	require.Less(t, first, coming-5)
	require.Equal(t, coming-1, last)
	off, size, doneToo := a.plan(1510, 1510, a.need(1510, 1510), a.present)
	require.Equal(t, a.need(1510, 1510), span{off, off + size}, "it is coming: nothing is added")
	doneToo()
	done()
	require.Empty(t, a.mu.coming)
}

func TestWindowCanBeTurnedOff(t *testing.T) {
	first, last := newAsker(t, row(100, 8*kb), -1).ask(50)
	require.Equal(t, 50, first)
	require.Equal(t, 50, last)
}

func TestPlanOfFirstAndLastMember(t *testing.T) {
	for _, m := range []uint32{0, 2} {
		first, last := newAsker(t, row(3, kb), 1<<20).ask(m)
		require.Equal(t, 0, first)
		require.Equal(t, 2, last)
	}
}

// TestHabitsAreBounded: what is remembered does not grow with what is read.
func TestHabitsAreBounded(t *testing.T) {
	var files []any
	for d := range 2 * habitDirs {
		files = append(files, fmt.Sprintf("d%d/f", d), []int64{kb})
	}
	a := newAsker(t, tree(files...), 1<<20)
	for m := range 2 * habitDirs {
		a.read(uint32(m))
		require.LessOrEqual(t, len(a.mu.habits.dirs), habitDirs+asideCount*2+2)
		require.LessOrEqual(t, len(a.mu.habits.asides), habitAsides+asideCount*2)
	}
}

// The rest of a large file comes when a third of it was read, in two requests: nobody waits
// for what lies before the part that is wanted.
func TestRestOfALargeFile(t *testing.T) {
	const part = 1 << 20
	l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: part, Level: 1},
		estargztest.File("large", noise(1, 11*part)), alone("last", ""))
	hints, err := estargz.ParseHints(l.Annotations)
	require.NoError(t, err)
	o := built{l.Blob, hints}.open(t, Options{})
	at := func(n int64) int64 { return o.member("large", n*part).Offset }
	read := func(n int64) (asked []span) {
		o.blob.forget()
		_, err := o.read(t.Context(), "large", n*part, 1)
		require.NoError(t, err)
		for _, r := range o.blob.requests() {
			if s := (span{r.off, r.off + r.size}); !slices.Contains(asked, s) && r.size > part/2 {
				asked = append(asked, s)
			}
		}
		return asked
	}
	require.Contains(t, read(0), span{at(0), at(1)})
	require.Contains(t, read(1), span{at(1), at(4)}, "twice what it needs, and as much as was fetched")
	eventually(t, "the window has come", func() bool { return o.blob.Present(at(0), at(4)-at(0)) })
	asked := read(9)
	end := o.member("large", 11*part-1)
	require.Contains(t, asked, span{at(9), end.Offset + end.Size})
	eventually(t, "the rest", func() bool { return o.blob.Present(at(5), at(9)-at(5)) })
}

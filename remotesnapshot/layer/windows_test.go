package layer

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
)

// row is a blob of members of the given sizes, one after the other.
type row []int64

func (r row) Member(m uint32) (estargz.Member, error) {
	if int(m) >= len(r) {
		return estargz.Member{}, estargz.ErrNotExist
	}
	var off int64
	for _, n := range r[:m] {
		off += n
	}
	return estargz.Member{Offset: off, Size: r[m]}, nil
}

func evenRow(n int, size int64) (r row) {
	for range n {
		r = append(r, size)
	}
	return r
}

// ask plans a window for member m and says which members it has.
func (r row) ask(t *testing.T, w *windows, m uint32, present func(off, size int64) bool) (first, last int64) {
	t.Helper()
	at, err := r.Member(m)
	require.NoError(t, err)
	off, size, done := w.plan(r, m, m, at.Offset, at.Offset+at.Size, present)
	done()
	w.use(at)
	require.LessOrEqual(t, off, at.Offset)
	require.GreaterOrEqual(t, off+size, at.Offset+at.Size)
	return off / r[0], (off+size)/r[0] - 1
}

func nothing(off, size int64) bool { return false }

func TestFirstWindowIsSmallAndLooksForward(t *testing.T) {
	first, last := evenRow(100, 8<<10).ask(t, newWindows(1<<20), 50, nothing)
	require.EqualValues(t, 50-2, first)
	require.EqualValues(t, 50+3, last)
}

func TestWindowStopsAtWhatIsThere(t *testing.T) {
	r := evenRow(100, 8<<10)
	first, last := r.ask(t, newWindows(1<<20), 50, func(off, size int64) bool { return off == 52*(8<<10) || off == 49*(8<<10) })
	require.EqualValues(t, 50, first)
	require.EqualValues(t, 51, last)
}

func TestWindowTakesNoPartsOfLargeNeighbours(t *testing.T) {
	r := row{1 << 20, 8 << 10, 1 << 20}
	off, size, done := newWindows(1<<20).plan(r, 1, 1, 1<<20, 1<<20+8<<10, nothing)
	done()
	require.EqualValues(t, 1<<20, off)
	require.EqualValues(t, 8<<10, size)
}

func TestWindowTakesOnlySmallNeighbours(t *testing.T) {
	r := row{8 << 10, 8 << 10, 20 << 10, 8 << 10}
	off, size, done := newWindows(1<<20).plan(r, 1, 1, 8<<10, 16<<10, nothing)
	done()
	require.EqualValues(t, 0, off)
	require.EqualValues(t, 16<<10, size, "what is too large for it is not asked for on the way to others")
}

func TestWindowsDoNotGrowWhereTheyAreOfNoUse(t *testing.T) {
	r := evenRow(4000, 2<<10)
	w := newWindows(1 << 20)
	for m := uint32(30); m < 4000; m += 50 { // one of 24
		first, last := r.ask(t, w, m, nothing)
		require.LessOrEqual(t, (last-first+1)*(2<<10), int64(firstWindow))
	}
}

func TestLargeMemberGoesAlone(t *testing.T) {
	r := row{8 << 10, 300 << 10, 8 << 10}
	off, size, done := newWindows(1<<20).plan(r, 1, 1, 8<<10, 308<<10, nothing)
	done()
	require.EqualValues(t, 8<<10, off)
	require.EqualValues(t, 300<<10, size)
}

func TestWindowsGrowWhereTheyAreOfUse(t *testing.T) {
	r := evenRow(2000, 8<<10)
	w := newWindows(1 << 20)
	requests, next := 0, int64(0)
	for m := range int64(2000) {
		if m < next {
			at, _ := r.Member(uint32(m))
			w.use(at)
			continue
		}
		requests++
		_, last := r.ask(t, w, uint32(m), nothing)
		require.LessOrEqual(t, last-m, int64(128), "the limit holds")
		next = last + 1
	}
	require.Less(t, requests, 30, "2000 members read in order")
}

func TestWindowsStaySmallWhereReadsAreFarApart(t *testing.T) {
	r := evenRow(5000, 8<<10)
	w := newWindows(1 << 20)
	for m := uint32(40); m < 5000; m += 500 {
		first, last := r.ask(t, w, m, nothing)
		require.LessOrEqual(t, last-first, int64(8))
	}
}

func TestWindowsDoNotOverlapWhatIsComing(t *testing.T) {
	r := evenRow(200, 8<<10)
	for _, here := range []bool{false, true} {
		w := newWindows(1 << 20)
		_, _, done := w.plan(r, 50, 89, 50*(8<<10), 90*(8<<10), nothing)
		w.use(estargz.Member{Offset: 50 * (8 << 10), Size: 20 * (8 << 10)})
		if here {
			done()
		}
		_, last := r.ask(t, w, 45, nothing)
		if here {
			require.Greater(t, last, int64(49))
		} else {
			require.EqualValues(t, 49, last)
		}
	}
}

func TestWindowCanBeTurnedOff(t *testing.T) {
	first, last := evenRow(100, 8<<10).ask(t, newWindows(-1), 50, nothing)
	require.EqualValues(t, 50, first)
	require.EqualValues(t, 50, last)
}

func TestPlanOfFirstAndLastMember(t *testing.T) {
	r := evenRow(3, 8<<10)
	first, last := r.ask(t, newWindows(1<<20), 0, nothing)
	require.EqualValues(t, 0, first)
	require.EqualValues(t, 2, last)
	first, last = r.ask(t, newWindows(1<<20), 2, nothing)
	require.EqualValues(t, 0, first)
	require.EqualValues(t, 2, last)
}

package layer

import (
	"sync"

	"github.com/lazykit/lazykit/estargz"
)

// A round trip costs as much as hundreds of kilobytes, and files that are used
// together lie together: a package's modules are neighbours in the tar. So a
// request asks for a window around the member that somebody waits for. How large
// a window pays is learned from what came of those nearby. The figures are the
// best that a replay of four builds' reads (python with numpy, g++, go build, node
// on Debian) has found: a quarter of the requests of members alone, at 1.1 times
// their bytes.
const (
	// firstWindow is what a request asks for where nothing is known.
	firstWindow = 48 << 10
	// warmWindow is the largest one where only some of the bytes are of use.
	warmWindow = 256 << 10
	// windowMemory is how many windows are remembered.
	windowMemory = 32
	// nearWindows: a read is in the surroundings of a window when it is no
	// further away than this many times its length.
	nearWindows = 4
	// smallPart: a neighbour is taken if it is no larger than this part of the
	// window. A large one is a bet on its own, and a bad one.
	smallPart = 4
)

// window is a range of the blob that was asked for at once.
type window struct {
	lo, hi int64
	room   int64 // how long it was allowed to be
	used   int64 // bytes of members that were read
	busy   bool  // on its way
}

// warm says that the bytes of a window were worth asking for, hot that nearly
// all of them are read: the reads walk through the blob.
func (v *window) warm() bool { return v.used*4 >= v.hi-v.lo }
func (v *window) hot() bool  { return v.used*4 >= (v.hi-v.lo)*3 }

// windows remembers the last windows of a layer.
type windows struct {
	limit int64 // longest window; not positive: members alone

	mu struct {
		sync.Mutex
		last [windowMemory]window
		next int
	}
}

func newWindows(limit int64) *windows { return &windows{limit: limit} }

// members is what plan needs of a TOC.
type members interface {
	Member(m uint32) (estargz.Member, error)
}

// plan chooses the range to ask for, so that the members first to last (in the
// order of the blob) become present: [lo, hi) grown by whole neighbours up to
// what is present already. Call done when the request has ended.
func (w *windows) plan(t members, first, last uint32, lo, hi int64, present func(off, size int64) bool) (off, size int64, done func()) {
	room, before, after := w.room(lo, hi)
	free := func(m estargz.Member) bool {
		return m.Size > 0 && m.Size <= room/smallPart && !present(m.Offset, m.Size) && !w.coming(m.Offset, m.Offset+m.Size)
	}
	for m, err := t.Member(last + 1); err == nil && m.Offset == hi && m.Size <= after && free(m); {
		hi, after, last = m.Offset+m.Size, after-m.Size, last+1
		m, err = t.Member(last + 1)
	}
	for first > 0 {
		m, err := t.Member(first - 1)
		if err != nil || m.Offset+m.Size != lo || m.Size > before || !free(m) {
			break
		}
		lo, before, first = m.Offset, before-m.Size, first-1
	}
	return lo, hi - lo, w.remember(lo, hi, room)
}

// room says how long a window around [lo, hi) may be, and how much of it may lie
// before lo and after hi.
func (w *windows) room(lo, hi int64) (room, before, after int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	near := w.nearestLocked(lo, hi)
	room, before, after = firstWindow, 2, 3
	if near != nil {
		room, before, after = near.next(), 1, 1
	}
	switch {
	case near == nil || !near.hot():
	case lo >= near.hi: // reads move on
		before, after = 1, 9
	case hi <= near.lo:
		before, after = 9, 1
	}
	room = min(room, w.limit)
	left := max(room-(hi-lo), 0)
	before = left * before / (before + after)
	return room, before, left - before
}

// next is how long the next window in the surroundings of v may be.
func (v *window) next() int64 {
	switch {
	case v.hot() && v.room*2 > warmWindow:
		return v.room * 2
	case v.warm():
		return min(max(v.room*3, firstWindow), warmWindow)
	}
	return min(v.room, warmWindow)
}

// nearestLocked returns the window in whose surroundings [lo, hi) lies; nil for none.
func (w *windows) nearestLocked(lo, hi int64) (near *window) {
	distance := int64(-1)
	for i := range w.mu.last {
		v := &w.mu.last[i]
		length := v.hi - v.lo
		d := max(lo-v.hi, v.lo-hi, 0)
		if length == 0 || d > nearWindows*max(length, firstWindow) || near != nil && d > distance {
			continue
		}
		near, distance = v, d
	}
	return near
}

// remember keeps a window in place of the oldest that has come.
func (w *windows) remember(lo, hi, room int64) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.mu.next
	w.mu.next = (w.mu.next + 1) % windowMemory
	w.mu.last[i] = window{lo: lo, hi: hi, room: room, busy: true}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if v := &w.mu.last[i]; v.lo == lo && v.hi == hi {
			v.busy = false
		}
	}
}

// use counts a member that was read to the window that brought it.
func (w *windows) use(m estargz.Member) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.mu.last {
		if v := &w.mu.last[i]; v.lo <= m.Offset && m.Offset+m.Size <= v.hi {
			v.used += m.Size
			return
		}
	}
}

// coming says whether a window on its way holds a part of [lo, hi).
func (w *windows) coming(lo, hi int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.mu.last {
		if v := &w.mu.last[i]; v.busy && v.lo < hi && lo < v.hi {
			return true
		}
	}
	return false
}

package layer

import (
	"sync"

	"github.com/lazykit/lazykit/estargz"
)

// A round trip costs as much as hundreds of kilobytes, and files that are used
// together lie together: a package's modules are neighbours in the tar. So a
// request asks for a window around the member that somebody waits for. How large
// a window pays is learned: it starts small, and doubles where reads come back to
// the surroundings of an earlier window whose bytes have been of use.

const (
	// firstWindow is what a request asks for where nothing is known.
	firstWindow = 64 << 10
	// windowMemory is how many windows are remembered.
	windowMemory = 32
	// usedShare: a window was worth its bytes if one in so many was used.
	usedShare = 3
	// nearWindows: a read is in the surroundings of a window when it is no
	// further away than this many times its length.
	nearWindows = 4
)

// window is a range of the blob that was asked for at once.
type window struct {
	lo, hi int64
	used   int64 // bytes of members that were read
	busy   bool  // on its way
}

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
	before, after := w.room(lo, hi)
	free := func(m estargz.Member) bool {
		return m.Size > 0 && !present(m.Offset, m.Size) && !w.coming(m.Offset, m.Offset+m.Size)
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
	return lo, hi - lo, w.remember(lo, hi)
}

// room says how many bytes before lo and after hi are worth asking for.
func (w *windows) room(lo, hi int64) (before, after int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	room, near := w.roomLocked(lo, hi)
	room = min(room, w.limit) - (hi - lo)
	switch {
	case room <= 0:
		return 0, 0
	case near == nil:
		return room / 4, room - room/4
	case lo >= near.hi: // reads move on
		return room / 8, room - room/8
	case hi <= near.lo:
		return room - room/8, room / 8
	}
	return room / 2, room / 2
}

// roomLocked returns the length of window that the surroundings of [lo, hi) have
// earned, and the window that is nearest.
func (w *windows) roomLocked(lo, hi int64) (int64, *window) {
	room, distance := int64(firstWindow), int64(-1)
	var near *window
	for i := range w.mu.last {
		v := &w.mu.last[i]
		length := v.hi - v.lo
		if length == 0 {
			continue
		}
		d := max(lo-v.hi, v.lo-hi, 0)
		if d > nearWindows*max(length, firstWindow) || near != nil && d > distance {
			continue
		}
		near, distance = v, d
	}
	if near == nil {
		return room, nil
	}
	room = max(room, near.hi-near.lo)
	if near.used*usedShare >= near.hi-near.lo {
		room *= 2
	}
	return room, near
}

// remember keeps a window in place of the oldest that has come.
func (w *windows) remember(lo, hi int64) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	i := w.mu.next
	w.mu.next = (w.mu.next + 1) % windowMemory
	w.mu.last[i] = window{lo: lo, hi: hi, busy: true}
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

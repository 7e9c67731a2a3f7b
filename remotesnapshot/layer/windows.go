package layer

import (
	"slices"
	"sync"
	"time"

	"github.com/lazykit/lazykit/estargz"
)

// A round trip costs as much as some tens of kilobytes, and mostly more. So a
// request asks for a window: the member that somebody waits for, and neighbours
// of it in the blob that will probably be read. There are two kinds of members,
// and two ways to choose.
//
// Four builds were recorded (python with numpy, g++, go build, node on Debian;
// see replay_test.go), where half to nine tenths of the bytes are programs and
// libraries of more than 64 KiB, compressed, and most of the members are small
// files:
//
//	          members read      of them in files    data requests with
//	                            of several members  members alone
//	python    318, 17.6 MB      8, 10.0 MB          318
//	g++       253, 24.3 MB      9, 13.9 MB          252
//	go       2948, 38.0 MB     14, 16.5 MB         2948
//	node       43, 24.4 MB     14, 18.2 MB           43
//
// Libraries lie all over the blob and each needs its own request: 25 to 40 of
// each build. What can be saved are requests for small files (habits.go) and for
// the parts of large ones (below).

// limits of what is asked for around a member.
const (
	// asideSize is the largest member that is fetched for its directory's sake. A
	// larger one is a bet on its own: of the libraries beside one that was read,
	// one in thirty was read too.
	asideSize = 64 << 10
	// asideCount bounds the members that are looked at on each side.
	asideCount = 512
	// wholeFrom: of a larger file than a window the rest is fetched when one part in so many
	// is there, or on its way.
	wholeFrom = 3
	// maxParts: of a file of more members none is fetched ahead here.
	maxParts = 1024
)

// windows chooses what the requests of a layer ask for.
type windows struct {
	toc   table
	limit int64 // longest window; not positive: members alone
	// wait is how long an answer takes to begin; 0: not known
	wait func() time.Duration

	mu struct {
		sync.Mutex
		habits habits
		coming []span // windows on their way
	}
}

// table is what choosing needs of a TOC.
type table interface {
	Member(m uint32) (estargz.Member, error)
	MemberFile(m uint32) (inode uint32, err error)
	Parent(inode uint32) (dir uint32, err error)
	FileChunks(inode uint32) (first, n uint32, err error)
	Chunk(c uint32, out *estargz.Chunk) error
}

var _ table = (*estargz.TOC)(nil)

func newWindows(toc table, limit int64, wait func() time.Duration) *windows {
	return &windows{toc: toc, limit: limit, wait: wait}
}

// span is a range of the blob.
type span struct{ lo, hi int64 }

// window is a row of members without gaps.
type window struct {
	first, last uint32
	span
}

// plan chooses the range to ask for, so that the members first to last, which
// lie in need, become present: need grown by whole neighbours, none of them
// present already or on its way. Call done when the request has ended.
func (w *windows) plan(first, last uint32, need span, present func(off, size int64) bool) (off, size int64, done func()) {
	v := window{first, last, need}
	if w.limit > need.hi-need.lo && !w.comes(need) {
		free := func(m estargz.Member) bool {
			return !present(m.Offset, m.Size) && !w.touches(span{m.Offset, m.Offset + m.Size})
		}
		v = w.grow(v, free)
	}
	return v.lo, v.hi - v.lo, w.start(v.span)
}

func (w *windows) grow(v window, free func(estargz.Member) bool) window {
	file, err := w.toc.MemberFile(v.first)
	if err != nil {
		return v
	}
	if first, last, ok := w.parts(file); ok {
		return w.growInFile(v, first, last, free)
	}
	return w.growAround(v, file, free)
}

// step adds the next member on one side, if it lies there without a gap.
func (w *windows) step(v window, forward bool) (next window, m estargz.Member, ok bool) {
	if !forward && v.first == 0 {
		return v, m, false
	}
	next = v
	n := v.last + 1
	if !forward {
		n = v.first - 1
	}
	m, err := w.toc.Member(n)
	switch {
	case err != nil || m.Size <= 0:
		return v, m, false
	case forward:
		next.last, next.hi = n, m.Offset+m.Size
		return next, m, m.Offset == v.hi
	}
	next.first, next.lo = n, m.Offset
	return next, m, m.Offset+m.Size == v.lo
}

// parts returns the members of a file that has several, which follow one another.
func (w *windows) parts(file uint32) (first, last uint32, ok bool) {
	c, n, err := w.toc.FileChunks(file)
	if err != nil || n < 2 {
		return 0, 0, false
	}
	var from, to estargz.Chunk
	if w.toc.Chunk(c, &from) != nil || w.toc.Chunk(c+n-1, &to) != nil || from.Zeros || to.Zeros {
		return 0, 0, false
	}
	return from.Member, to.Member, to.Member > from.Member && to.Member-from.Member < maxParts
}

// growInFile adds parts of the file of the members first to last. In the recorded
// builds each of the nine files that fit into a window was read to its last
// part in the end (programs, libraries, archives), so all of such a file is
// asked for. Of larger ones it may be a half: cc1plus was read as a whole,
// libnode.so in nine parts of twelve, the data of libicu in three of eight. There
// a window grows from a part beside one that was fetched before, and by as much
// as has been fetched of the file: at worst it doubles that. Who wants more when a third
// was fetched gets the rest, as far as it fits.
func (w *windows) growInFile(v window, first, last uint32, free func(estargz.Member) bool) window {
	forward, back, room := true, true, w.limit
	if size, fetched := w.fetched(first, last, free); size > w.limit && wholeFrom*fetched < size {
		forward = v.first > first && !w.isFree(v.first-1, free)
		back = v.last < last && !w.isFree(v.last+1, free)
		room = min(room, fetched+2*(v.hi-v.lo))
	}
	grow := func(forward bool) {
		for {
			next, m, ok := w.step(v, forward)
			if !ok || next.first < first || next.last > last || next.hi-next.lo > room || !free(m) {
				return
			}
			v = next
		}
	}
	if forward {
		grow(true)
	}
	if back {
		grow(false)
	}
	return v
}

// fetched returns the size of the members first to last, and how much of it is
// there or on its way.
func (w *windows) fetched(first, last uint32, free func(estargz.Member) bool) (size, fetched int64) {
	for n := first; n <= last; n++ {
		m, err := w.toc.Member(n)
		if err != nil {
			break
		}
		size += m.Size
		if !free(m) {
			fetched += m.Size
		}
	}
	return size, fetched
}

func (w *windows) isFree(n uint32, free func(estargz.Member) bool) bool {
	m, err := w.toc.Member(n)
	return err == nil && free(m)
}

// growAround adds small files beside the one that is asked for.
func (w *windows) growAround(v window, file uint32, free func(estargz.Member) bool) window {
	after, before := w.side(v, true, free), w.side(v, false, free)
	times := 1.0
	if w.wait() >= farWait {
		times = farTimes
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	h := &w.mu.habits
	if dir, err := w.toc.Parent(file); err == nil {
		h.asked(w.toc, dir, v.hi-v.lo)
	}
	na, nb := h.choose(w.toc, after, before, times)
	for _, x := range slices.Concat(after[:na], before[:nb]) {
		h.fetched(w.toc, x)
	}
	if na > 0 {
		v.last, v.hi = after[na-1].member, after[na-1].edge
	}
	if nb > 0 {
		v.first, v.lo = before[nb-1].member, before[nb-1].edge
	}
	return v
}

// neighbour is a member beside a window, in the row of those between.
type neighbour struct {
	member, dir uint32
	size        int64
	edge        int64 // of a window that goes up to it
}

// side lists the members on one side of v that may be fetched with it.
func (w *windows) side(v window, forward bool, free func(estargz.Member) bool) (out []neighbour) {
	room := w.limit - (v.hi - v.lo)
	for len(out) < asideCount {
		next, m, ok := w.step(v, forward)
		if room -= m.Size; !ok || m.Size > asideSize || room < 0 || !free(m) {
			break
		}
		n, edge := next.last, next.hi
		if !forward {
			n, edge = next.first, next.lo
		}
		file, err := w.toc.MemberFile(n)
		if err != nil {
			break
		}
		dir, err := w.toc.Parent(file)
		if err != nil {
			break
		}
		if _, _, several := w.parts(file); several {
			break
		}
		out = append(out, neighbour{n, dir, m.Size, edge})
		v = next
	}
	return out
}

// use takes note that member m was read.
func (w *windows) use(m uint32) {
	file, err := w.toc.MemberFile(m)
	if err != nil {
		return
	}
	dir, err := w.toc.Parent(file)
	if err != nil {
		return
	}
	_, _, several := w.parts(file)
	w.mu.Lock()
	defer w.mu.Unlock()
	if !several {
		w.mu.habits.used(w.toc, m, dir)
	}
}

// start notes that s is on its way.
func (w *windows) start(s span) (done func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.coming = append(w.mu.coming, s)
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if i := slices.Index(w.mu.coming, s); i >= 0 {
			w.mu.coming = slices.Delete(w.mu.coming, i, i+1)
		}
	}
}

// comes says whether a window on its way holds all of s, touches whether one
// holds a part of it.
func (w *windows) comes(s span) bool {
	return w.anyComing(func(c span) bool { return c.lo <= s.lo && s.hi <= c.hi })
}

func (w *windows) touches(s span) bool {
	return w.anyComing(func(c span) bool { return c.lo < s.hi && s.lo < c.hi })
}

func (w *windows) anyComing(f func(span) bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.mu.coming, f)
}

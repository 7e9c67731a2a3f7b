package layer

import (
	"cmp"
	"context"
	"hash/maphash"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lazykit/lazykit/estargz"
)

// A wish is a file that will probably be read soon, since another one that was
// read names it (follow.go). Wishes are fetched side by side, while the process
// that will read them goes on, and are looked into for more. Blocked reads come
// first: they take connections that wishes don't get (package blob).

const (
	// wishPause is how long wishes are gathered: those of one file, or of some
	// that arrived together, go into common requests.
	wishPause = 2 * time.Millisecond
	// wishGap is how many bytes that nobody asked for may lie between two wishes
	// of one request.
	wishGap = 192 << 10
	// manyWishes is how many requests the first wishes of a layer may take before wider
	// gaps are closed, of maxWishGap at most, and of maxWishRoom together.
	manyWishes  = 8
	maxWishGap  = 3 << 19
	maxWishRoom = 2 << 20
	// smallWish is the size of a request that is sent before larger ones.
	smallWish = 1 << 20
	// maxWished bounds the files of a layer that are wished for, in its life.
	maxWished = 32 << 10
)

// clue is how a file named another one.
type clue uint8

const (
	byProgram clue = iota // a loader or a library
	byInclude             // a header
	byImport              // a module
	bySource              // the source beside a compiled module
	byPackage             // a package of sources
	byHabit               // what every container reads
	byCommand             // what a command line names
	byDriver              // what a compiler runs and links
	clues
)

// allowance is how many bytes may have been wished for by a clue without being
// read, beyond as many as were: so a clue that proves wrong ends by itself, and
// one that proves right has no bound.
var allowance = [clues]int64{
	byProgram: 24 << 20,
	byInclude: 1 << 20,
	byImport:  4 << 20,
	bySource:  256 << 10,
	byPackage: 8 << 20,
	byHabit:   1 << 20,
	byCommand: 32 << 20,
	byDriver:  10 << 20,
}

// wish is a file, or parts of it.
type wish struct {
	inode       uint32
	first, last uint32 // members
}

// wishes of a layer.
type wishes struct {
	begun atomic.Bool // some were granted
	mu    struct {
		sync.Mutex
		seen    map[uint32]struct{} // files wished for or followed
		unread  map[uint32]wished
		balance [clues]int64        // bytes read, less those that were not
		names   map[uint64]struct{} // names looked for, by their hashes
		waiting []wish
		running bool
		imports []string            // packages of Go that sources import
		decoded map[uint32]struct{} // members decompressed that nobody has read yet
	}
}

// wished is what is remembered of a file until it is read.
type wished struct {
	clue clue
	size int64
}

// followed says, once for each file, that it is to be looked into.
func (w *wishes) followed(inode uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.seeLocked(inode | followedBit)
}

// wasFollowed says whether a file was looked into.
func (w *wishes) wasFollowed(inode uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.mu.seen[inode|followedBit]
	return ok
}

// followedBit tells files that were looked into from files wished for.
const followedBit = 1 << 31

func (w *wishes) seeLocked(key uint32) bool {
	if w.mu.seen == nil {
		w.mu.seen = map[uint32]struct{}{}
		w.mu.unread = map[uint32]wished{}
		w.mu.decoded = map[uint32]struct{}{}
	}
	if _, ok := w.mu.seen[key]; ok || len(w.mu.seen) >= 2*maxWished {
		return false
	}
	w.mu.seen[key] = struct{}{}
	return true
}

// mayLocked says whether a clue that names size bytes is followed.
func (w *wishes) mayLocked(c clue, size int64) bool {
	return size-w.mu.balance[c] <= allowance[c]
}

// may is mayLocked.
func (w *wishes) may(c clue, size int64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mayLocked(c, size)
}

var nameSeed = maphash.MakeSeed()

// named says, once for each name of a package or a header, that it is to be looked
// for.
func (w *wishes) named(name string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	key := maphash.String(nameSeed, name)
	if _, ok := w.mu.names[key]; ok || len(w.mu.names) >= maxWished {
		return false
	}
	if w.mu.names == nil {
		w.mu.names = map[uint64]struct{}{}
	}
	w.mu.names[key] = struct{}{}
	return true
}

// imported notes that sources import a package.
func (w *wishes) imported(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.mu.imports) < maxPackage {
		w.mu.imports = append(w.mu.imports, name)
	}
}

// packages lists them, once.
func (w *wishes) packages() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.mu.imports
	w.mu.imports = nil
	return out
}

// add queues a wish for a file of size bytes, once. start is true when nobody
// works on the queue.
func (w *wishes) add(c clue, v wish, size int64) (added, start bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.mayLocked(c, size) || !w.seeLocked(v.inode) {
		return false, false
	}
	w.mu.unread[v.inode] = wished{c, size}
	w.mu.balance[c] -= size
	return true, w.queueLocked(v)
}

// addPart queues parts of a file that is being read.
func (w *wishes) addPart(v wish) (start bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queueLocked(v)
}

func (w *wishes) queueLocked(v wish) (start bool) {
	w.mu.waiting = append(w.mu.waiting, v)
	start = !w.mu.running
	w.mu.running = true
	return start
}

// take empties the queue; the work on it is over when nothing is there.
func (w *wishes) take() []wish {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := w.mu.waiting
	w.mu.waiting = nil
	w.mu.running = len(out) > 0
	return out
}

// wasRead notes that a file was read.
func (w *wishes) wasRead(inode uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if v, ok := w.mu.unread[inode]; ok {
		delete(w.mu.unread, inode)
		w.mu.balance[v.clue] += 2 * v.size
	}
}

// decoded notes that a member was decompressed before somebody asked for it.
func (w *wishes) decoded(m uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.decoded != nil && len(w.mu.decoded) < maxWished {
		w.mu.decoded[m] = struct{}{}
	}
}

// takeDecoded says whether this is the first read of such a member.
func (w *wishes) takeDecoded(m uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, ok := w.mu.decoded[m]
	delete(w.mu.decoded, m)
	return ok
}

// wish asks for a file ahead of its reader. l is held by the caller.
func (l *Layer) wish(c clue, inode uint32) {
	if l.blob.Local() || l.pool.opts.Window <= 0 {
		return
	}
	v, size, ok := l.wholeFile(inode)
	if !ok {
		return
	}
	added, start := l.wishes.add(c, v, size)
	if start {
		l.startWishes()
	}
	if added && isLoaded(c) {
		l.wishEnd(inode)
	}
}

// wishAll is wish for a program of which all is needed, though it is larger than a window.
func (l *Layer) wishAll(c clue, inode uint32) {
	if l.blob.Local() || l.pool.opts.Window <= 0 {
		return
	}
	first, last, ok := l.windows.parts(inode)
	size, err := l.sizeOf(first, last)
	if !ok || err != nil || size <= l.pool.opts.Window || size > wholeProgram {
		l.wish(c, inode)
		return
	}
	if added, start := l.wishes.add(c, wish{inode, first, first}, size); added {
		if start {
			l.startWishes()
		}
		l.wishProgram(inode)
	}
}

// isLoaded says whether a clue names programs and libraries.
func isLoaded(c clue) bool { return c == byProgram || c == byCommand || c == byDriver }

// endSize is how much of the end of a large program is wished for with its beginning: its
// dynamic section lies there, which names its libraries.
const endSize = 64 << 10

// wishEnd wishes for the end of a program or library that does not fit into a window.
func (l *Layer) wishEnd(inode uint32) {
	var node estargz.Inode
	if l.toc.Inode(inode, &node) != nil {
		return
	}
	if p, ok := l.pathOf(inode); ok && (node.Mode&0o111 != 0 || strings.Contains(path.Base(p), ".so")) {
		l.wishParts(inode, []span{{max(0, node.Size-endSize), node.Size}})
	}
}

func (l *Layer) startWishes() {
	if !l.start(l.grant) {
		l.wishes.take()
	}
}

// wholeFile is the wish for a file: all of it, or its beginning when it is larger
// than a window.
func (l *Layer) wholeFile(inode uint32) (v wish, size int64, ok bool) {
	c, n, err := l.toc.FileChunks(inode)
	if err != nil || n == 0 {
		return v, 0, false
	}
	var from, to estargz.Chunk
	if l.toc.Chunk(c, &from) != nil || l.toc.Chunk(c+n-1, &to) != nil || from.Zeros || to.Zeros || to.Member < from.Member {
		return v, 0, false
	}
	v = wish{inode, from.Member, to.Member}
	lo, err1 := l.toc.Member(v.first)
	hi, err2 := l.toc.Member(v.last)
	if err1 != nil || err2 != nil || hi.Offset < lo.Offset {
		return v, 0, false
	}
	if size = hi.Offset + hi.Size - lo.Offset; size > l.pool.opts.Window {
		v.last, size = v.first, lo.Size
	}
	return v, size, true
}

// grant fetches what is wished for until nothing is left.
func (l *Layer) grant() {
	for sleep(l.ctx, wishPause) {
		waiting := l.wishes.take()
		if len(waiting) == 0 {
			return
		}
		ranges := l.planWishes(waiting)
		if l.wishes.begun.CompareAndSwap(false, true) {
			ranges = l.joinMany(ranges)
		}
		// What is small is mostly needed first, and delays the rest the least.
		slices.SortStableFunc(ranges, func(a, b wishRange) int { return cmp.Compare(a.size(), b.size()) })
		for i, r := range ranges {
			if i > 0 && r.size() > smallWish && ranges[i-1].size() <= smallWish {
				sleep(l.ctx, wishPause) // let them have the connections
			}
			l.fetchWishes(r)
		}
	}
}

// wishRange is one request for several wishes.
type wishRange struct {
	span
	files []uint32 // to be looked into
	done  func()
}

// planWishes chooses the requests.
func (l *Layer) planWishes(waiting []wish) []wishRange {
	var ranges []wishRange
	nothing := func() {}
	slices.SortStableFunc(waiting, func(a, b wish) int { return cmp.Compare(a.first, b.first) })
	var row window // of wishes side by side, and their files
	var files []uint32
	flush := func() {
		if row.hi > row.lo {
			off, size, done := l.windows.plan(row.first, row.last, row.span, l.blob.Present)
			ranges = append(ranges, wishRange{span: span{off, off + size}, files: files, done: done})
		}
		row, files = window{}, nil
	}
	for _, v := range waiting {
		r, ok := l.missing(v)
		switch {
		case !ok:
		case r.hi == 0:
			ranges = append(ranges, wishRange{files: []uint32{v.inode}, done: nothing})
		case row.hi == r.lo && r.hi-row.lo <= l.pool.opts.Window:
			row.last, row.hi, files = r.last, r.hi, append(files, v.inode)
		default:
			flush()
			row, files = r, []uint32{v.inode}
		}
	}
	flush()
	return joinRanges(ranges, l.windows, l.blob.Present)
}

// missing is the part of a wish that is not present, empty when all is.
func (l *Layer) missing(v wish) (w window, ok bool) {
	w = window{first: v.first, last: v.last}
	for n := v.first; n <= v.last; n++ {
		m, err := l.toc.Member(n)
		if err != nil {
			return w, false
		}
		if l.blob.Present(m.Offset, m.Size) {
			continue
		}
		if w.hi == 0 {
			w.first, w.lo = n, m.Offset
		}
		if m.Offset < w.lo {
			return w, false
		}
		w.last, w.hi = n, m.Offset+m.Size
	}
	return w, true
}

// joinRanges makes one request of neighbours, where nothing between them is
// present or on its way.
func joinRanges(ranges []wishRange, w *windows, present func(off, size int64) bool) (out []wishRange) {
	slices.SortStableFunc(ranges, func(a, b wishRange) int { return cmp.Compare(a.lo, b.lo) })
	for _, r := range ranges {
		if n := len(out) - 1; n >= 0 && out[n].canJoin(r, wishGap, w, present) {
			out[n] = out[n].join(r, w)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// canJoin says whether r, which does not begin before a, may go into one request with it.
func (a wishRange) canJoin(r wishRange, gap int64, w *windows, present func(off, size int64) bool) bool {
	if a.hi == 0 || r.hi == 0 || r.lo-a.hi > gap || max(r.hi, a.hi)-a.lo > w.limit {
		return false
	}
	return r.lo <= a.hi || !w.touches(span{a.hi, r.lo}) && !present(a.hi, r.lo-a.hi)
}

func (a wishRange) join(r wishRange, w *windows) wishRange {
	between := func() {}
	if r.lo > a.hi {
		between = w.start(span{a.hi, r.lo})
	}
	return wishRange{
		span:  span{a.lo, max(a.hi, r.hi)},
		files: append(a.files, r.files...),
		done:  func() { a.done(); r.done(); between() },
	}
}

// joinMany joins the nearest of ranges, which are in order, while there are more than
// manyWishes: a gap is closed when its bytes take no longer than a request on a new connection,
// and are not much more than those beside it.
func (l *Layer) joinMany(ranges []wishRange) []wishRange {
	rate, wait := l.blob.Link()
	gap := min(int64(2*float64(rate)*wait.Seconds()), maxWishGap)
	requests := 0
	for _, r := range ranges {
		if r.hi > r.lo {
			requests++
		}
	}
	for room := min(2*gap, maxWishRoom); requests > manyWishes; requests-- {
		best := -1
		for i := range len(ranges) - 1 {
			a, r := ranges[i], ranges[i+1]
			if 2*(r.lo-a.hi) > 3*(a.size()+r.size()) {
				continue
			}
			if (best < 0 || r.lo-a.hi < ranges[best+1].lo-ranges[best].hi) && a.canJoin(r, min(gap, room), l.windows, l.blob.Present) {
				best = i
			}
		}
		if best < 0 {
			break
		}
		room -= max(ranges[best+1].lo-ranges[best].hi, 0)
		ranges[best] = ranges[best].join(ranges[best+1], l.windows)
		ranges = slices.Delete(ranges, best+1, best+2)
	}
	return ranges
}

// fetchWishes asks for a range and has its files looked into when it has come. Errors are
// left to the reads that will need the bytes.
func (l *Layer) fetchWishes(r wishRange) {
	wait := func(context.Context) error { return nil }
	if r.hi > r.lo {
		wait = l.blob.Start(Prefetch, Range{r.lo, r.size()})
	}
	come := func() {
		err := wait(l.ctx)
		r.done()
		if err != nil {
			return
		}
		l.stats.prefetched.Add(r.size())
		for _, inode := range r.files {
			if l.ctx.Err() == nil {
				l.look(inode)
			}
		}
	}
	if !l.start(come) {
		come() // the layer is closed, and its context has ended
	}
}

package layer

import (
	"slices"
	"sync"
	"time"
)

// Whoever reads everything (tar, cp -r, grep -r, a COPY and the hash of what it
// copies) goes through directories in order, and that is the order in which
// image builders write files into a layer. So a walk shows as files that lie one
// behind the other in the blob; some may be left out. Builds do not look like that:
// in the four recorded ones (replay_test.go, 3,561 members in all) no files in
// order came from more than 12 directories, and where most files of a row were
// read (a package of Go), none but one of them was large.
const (
	// walksWatched is how many walks may be under way in a layer at the same time.
	walksWatched = 8
	// walkGap is how many members a walk may leave out between two files.
	walkGap = 256
	// A walk is a scan when it came through treeDirs directories, read treeFiles
	// files, and one member in treeSparse of those that it passed, at least.
	treeFiles, treeDirs, treeSparse = 32, 24, 64
	// It is one too when it read rowFiles files, of which rowLarge have more than
	// largeFile bytes, compressed; twice as many when it left out every other
	// member, and so on. One file in rowFiles is large, at least: go build came through 350
	// sources of seven packages in a row, five of them tables.
	rowFiles, rowLarge = 16, 3
	largeFile          = 32 << 10
	// In the directory of a scan heirFiles in a row are enough: where layers lie
	// above one another, their common directories are gone through first.
	heirFiles = 4
	// So many are enough, too, while another layer of the same image is scanned, or was
	// within besidePause: whoever reads all of a tree goes from one layer to the other. Of
	// the members that such a walk has passed it read one in besideSparse, at least.
	besidePause, besideSparse = time.Second, 8
	// walkPause without a read ends all walks.
	walkPause = 5 * time.Second
)

// A layer of which many small parts are asked for, in whatever order, is better
// fetched whole once readers have waited for as long as the rest takes. The
// recorded builds wait 128 times at most for a layer of 381 MB, and 14 times for
// one of 52 MB: three quarters of what makes them dense on any link, since what a wait
// counts for has a bound. A build that reads all of 435 MB in no order, 30 ms away, waited
// for 10 s when the rest was taken to come over one connection.
const (
	// missRate is the bytes per second of a connection of which nothing is known,
	// missSide how many connections' worth the rest would come with at least, and
	// missWorth the most that a wait counts for, however long it was.
	missRate  = 32 << 20
	missSide  = 2
	missWorth = 2 << 20
	// missCount is the least number of waits, for small layers.
	missCount = 16
	// missPause without a wait starts the count anew: builds one after the other
	// that read a little each are no reason to fetch all.
	missPause = 5 * time.Second
)

// walks finds the scans among the reads of a layer, and the layers that are
// better fetched whole.
type walks struct {
	toc table

	mu struct {
		sync.Mutex
		list  [walksWatched]walk
		turn  uint64
		last  time.Time // of the last read
		dense dense
		given given
	}
}

// walk is a way through files in the order of the blob.
type walk struct {
	id   uint64 // 0: unused
	turn uint64 // when it was gone on with
	ran  int64  // bytes of the blob that it has passed, those left out included

	place        // of the file that was read last
	at    uint32 // its member that was read last
	dir   uint32 // in which it lies
	root  uint32 // the directory that holds all files of the walk

	files, dirs, large, passed int
	scan                       bool

	next   uint32 // the first member that was not asked for
	end    bool   // there is nothing more to ask for below root
	unpack uint32 // the first member that was not taken to be decompressed ahead

	// aheadBytes is the decompressed size of the members behind aheadFrom and before
	// aheadTo; see count.
	aheadFrom, aheadTo uint32
	aheadBytes         int64
}

// place is a file in the order of the blob.
type place struct {
	file        uint32
	first, last uint32 // members
}

// note takes the read of a member of a file into account, and returns the walk
// that it belongs to.
func (w *walks) note(p place, member uint32, now time.Time) walk {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now.Sub(w.mu.last) > walkPause {
		w.mu.list = [walksWatched]walk{}
		w.mu.given = given{}
	}
	w.mu.last = now
	w.mu.turn++
	w.mu.given.asked(member)
	x := w.findLocked(p)
	if x == nil {
		x = w.beginLocked(p)
	}
	x.turn = w.mu.turn
	if x.files == 0 || x.file != p.file {
		x.step(w.toc, p, &w.mu.given)
		w.inheritLocked(x)
	}
	x.at = member
	x.unpack = max(x.unpack, member+1)
	return *x
}

// findLocked returns the walk that p belongs to, the nearest one.
func (w *walks) findLocked(p place) (best *walk) {
	for i := range w.mu.list {
		x := &w.mu.list[i]
		switch {
		case x.id == 0:
		case x.file == p.file:
			return x
		case p.first >= x.last && p.first-x.last <= walkGap && (best == nil || x.last > best.last):
			best = x
		}
	}
	return best
}

// beginLocked starts a walk at p, in place of the one that was left for longest;
// of a scan only where all are.
func (w *walks) beginLocked(p place) *walk {
	old := &w.mu.list[0]
	for i := range w.mu.list {
		x := &w.mu.list[i]
		if x.scan == old.scan && x.turn < old.turn || !x.scan && old.scan {
			old = x
		}
	}
	*old = walk{id: w.mu.turn, place: place{last: p.first}}
	return old
}

// inheritLocked makes x a scan when it is in the directory of one.
func (w *walks) inheritLocked(x *walk) {
	if x.scan || x.files < heirFiles || !x.complete() {
		return
	}
	for i := range w.mu.list {
		if y := &w.mu.list[i]; y.scan && within(w.toc, y.root, x.root) {
			x.scan = true
			x.ran = max(x.ran, y.ran)
		}
	}
}

// promote makes x a scan beside one in another layer, which has passed ran bytes.
func (w *walks) promote(x walk, ran int64) walk {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := w.withLocked(x.id)
	if v == nil || v.passed > besideSparse*v.files {
		return x
	}
	v.scan = true
	v.ran = max(v.ran, ran)
	v.passed = min(v.passed, v.files) // what lay between its first files was no part of it
	return *v
}

// step goes on to another file.
func (x *walk) step(toc table, p place, g *given) {
	dir, err := toc.Parent(p.file)
	if err != nil {
		return
	}
	if x.files == 0 {
		x.dir, x.root, x.dirs = dir, dir, 1
	}
	if dir != x.dir {
		x.dir = dir
		x.dirs++
		if root := common(toc, x.root, dir); root != x.root {
			x.root, x.next, x.end = root, 0, false // what was left out is inside now
		}
	}
	s := p.span(toc)
	if x.files++; x.files == 1 {
		x.ran = s.size()
	} else {
		x.ran += s.hi - x.span(toc).hi
	}
	if gap := p.first - x.last; gap > 0 {
		x.passed += int(gap) - g.count(x.last+1, p.first)
	}
	if s.size() > largeFile {
		x.large++
	}
	x.place, x.next = p, max(x.next, p.last+1)
	x.scan = x.scan ||
		x.files >= treeFiles && x.dirs >= treeDirs && x.passed <= treeSparse*x.files ||
		x.files >= rowFiles && x.files <= rowFiles*x.large && x.large*x.files >= rowLarge*x.passed
}

// complete says that most of what was passed was read.
func (x *walk) complete() bool { return x.passed <= 2*x.files }

// span is where the file lies in the blob.
func (p place) span(toc table) span {
	a, err := toc.Member(p.first)
	if err != nil {
		return span{}
	}
	b, err := toc.Member(p.last)
	if err != nil {
		return span{}
	}
	return span{a.Offset, b.Offset + b.Size}
}

func (s span) size() int64 { return s.hi - s.lo }

// common returns the directory nearest to a and b that holds both. A directory's
// number is lower than those of what it holds.
func common(toc table, a, b uint32) uint32 {
	for a != b {
		var err error
		if a < b {
			a, b = b, a
		}
		if a, err = toc.Parent(a); err != nil {
			return b
		}
	}
	return a
}

// within says whether root holds dir, or is it.
func within(toc table, root, dir uint32) bool {
	for dir > root {
		var err error
		if dir, err = toc.Parent(dir); err != nil {
			return false
		}
	}
	return dir == root
}

// scans returns those that have more to be fetched, the one read last first.
func (w *walks) scans() (list []walk) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, x := range w.mu.list {
		if x.id > 0 && x.scan && !x.end {
			list = append(list, x)
		}
	}
	slices.SortFunc(list, func(a, b walk) int { return int(int64(b.turn - a.turn)) })
	return list
}

// asked notes up to where members were asked for, for x as it was then.
func (w *walks) asked(was walk, next uint32, end bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.withLocked(was.id); x != nil {
		x.next, x.end = max(x.next, next), end && x.root == was.root
	}
}

// withLocked returns the walk of an id, nil when it was given up.
func (w *walks) withLocked(id uint64) *walk {
	for i := range w.mu.list {
		if x := &w.mu.list[i]; x.id == id {
			return x
		}
	}
	return nil
}

// rewind lets what was asked for and did not come be asked for again.
func (w *walks) rewind() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.dense.next = 0
	for i := range w.mu.list {
		x := &w.mu.list[i]
		x.next, x.end = x.last+1, false
	}
}

// dense counts the waits for a layer, by what could have come meanwhile.
type dense struct {
	n    int
	sum  int64
	last time.Time
	is   bool
	next uint32 // the first member that was not asked for
}

// missed notes that a reader has waited for a request, of a connection that brings
// rate bytes a second (0: not known), and says whether the layer, of which so many
// bytes are absent, should be fetched whole.
func (w *walks) missed(waited time.Duration, rate int64, now time.Time, absent int64) bool {
	if rate <= 0 {
		rate = missRate
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	d := &w.mu.dense
	if now.Sub(d.last) > missPause {
		*d = dense{}
	}
	d.last = now
	d.n++
	d.sum += min(missWorth, int64(waited.Seconds()*float64(missSide*rate)))
	d.is = d.is || d.n >= missCount && d.sum >= absent
	return d.is
}

// rest says whether the layer is to be fetched whole, and from which member on.
func (w *walks) rest() (next uint32, is bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.dense.next, w.mu.dense.is
}

// askedRest notes up to where the layer was asked for.
func (w *walks) askedRest(next uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.dense.next = max(w.mu.dense.next, next)
}

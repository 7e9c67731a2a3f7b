package layer

import (
	"context"
	"time"

	"github.com/lazykit/lazykit/estargz"
)

const (
	// How far ahead of a scan is fetched: scanRatio times what it has passed of the
	// blob, scanStart at least. The walk may have ended already; then so much is
	// for nothing.
	scanStart, scanRatio = 8 << 20, 4
	// scanFetches is how many ranges are asked for at the same time, scanPiece and
	// leastPiece what one of them has at most and, when there is more, at least.
	scanFetches           = 8
	scanPiece, leastPiece = 8 << 20, 1 << 20
	// strangers is how many members of other directories may lie between those of
	// the directory that is walked.
	strangers = 256
)

// watch takes a read into account, before it is done.
func (l *Layer) watch(inode uint32, off int64) {
	c, err := l.toc.FindChunk(inode, off)
	if err != nil {
		return
	}
	p, member, ok := l.placeOf(inode, c)
	if !ok {
		return
	}
	now := time.Now()
	x := l.walks.note(p, member, now)
	if !x.scan && x.files >= heirFiles {
		if ran := l.besideScan(now); ran > 0 {
			x = l.walks.promote(x, ran)
		}
	}
	if !x.scan {
		return
	}
	l.scanned.Store(now.UnixNano())
	l.scannedRoot.Store(x.root)
	l.scannedBytes.Store(x.ran)
	l.pool.scanned.Store(now.UnixNano())
	l.unpackAhead(x)
	if l.walks.hungry(x) {
		l.fetchScans()
	}
}

// isScanned says whether a file lies where a scan goes through.
func (l *Layer) isScanned(inode uint32) bool {
	if time.Since(time.Unix(0, l.scanned.Load())) >= walkPause {
		return false
	}
	dir, err := l.toc.Parent(inode)
	return err == nil && within(l.toc, l.scannedRoot.Load(), dir)
}

// besideScan returns how many bytes a scan has passed that reads another layer of the
// same image at present, 0 for none.
func (l *Layer) besideScan(now time.Time) (ran int64) {
	recent := func(t int64) bool { return now.Sub(time.Unix(0, t)) < besidePause }
	siblings := l.siblings.Load()
	if siblings == nil || !recent(l.pool.scanned.Load()) {
		return 0
	}
	for _, o := range (*siblings)() {
		if o != l && recent(o.scanned.Load()) {
			ran = max(ran, o.scannedBytes.Load())
		}
	}
	return ran
}

// placeOf returns where a file lies in the blob, and the member of its chunk c.
func (l *Layer) placeOf(inode, c uint32) (p place, member uint32, ok bool) {
	first, n, err := l.toc.FileChunks(inode)
	if err != nil || n == 0 {
		return p, 0, false
	}
	var here, from, to estargz.Chunk
	if l.toc.Chunk(c, &here) != nil || l.toc.Chunk(first, &from) != nil || l.toc.Chunk(first+n-1, &to) != nil ||
		here.Zeros || from.Zeros || to.Zeros || to.Member < from.Member {
		return p, 0, false
	}
	return place{inode, from.Member, to.Member}, here.Member, true
}

// missed takes note that a reader has waited for a request.
func (l *Layer) missed(waited time.Duration) {
	rate, _ := l.blob.Link()
	if l.walks.missed(waited, rate, time.Now(), l.toc.BlobSize()-l.blob.Fetched()) {
		l.fetchScans()
	}
}

// fetchScans starts, unless it is under way, what fetches ahead of the scans.
func (l *Layer) fetchScans() {
	if l.scanning.Swap(true) {
		return
	}
	if !l.start(func() { defer l.scanning.Store(false); l.fetchPieces() }) {
		l.scanning.Store(false)
	}
}

// fetchPieces fetches ahead of the scans until there is nothing more to fetch,
// or until nothing was read for a while. What fails is left to readers.
func (l *Layer) fetchPieces() {
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	tick := time.NewTicker(max(l.pool.opts.IdleTime/4, time.Millisecond))
	defer tick.Stop()
	var failed error
	ended := make(chan error, scanFetches)
	busy := 0
	for {
		if failed == nil && l.stats.idle(l.pool.opts.IdleTime) {
			failed = context.Canceled
		}
		if failed != nil {
			cancel()
		}
		for failed == nil && busy < scanFetches {
			s := l.walks.piece(l.blob.Present)
			if s.size() == 0 {
				break
			}
			busy++
			go func() { ended <- l.fetchPiece(ctx, s) }()
		}
		if busy == 0 {
			break
		}
		select {
		case err := <-ended:
			busy--
			if failed == nil {
				failed = err
			}
		case <-tick.C:
		}
	}
	if failed != nil {
		l.walks.rewind()
	}
}

func (l *Layer) fetchPiece(ctx context.Context, s span) error {
	defer l.windows.start(s)()
	err := l.blob.Fetch(ctx, Prefetch, s.lo, s.size())
	if err == nil {
		l.stats.prefetched.Add(s.size())
	}
	return err
}

// hungry says whether half of what may be fetched ahead of x was not asked for.
func (w *walks) hungry(x walk) bool {
	if x.end {
		return false
	}
	end, limit := w.reach(x)
	m, err := w.toc.Member(x.next)
	return err == nil && m.Offset < end+(limit-end)/2
}

// reach returns the end of what x has passed, and up to where to fetch ahead of it.
func (w *walks) reach(x walk) (end, limit int64) {
	end = x.span(w.toc).hi
	return end, end + max(scanStart, scanRatio*x.ran)
}

// piece returns the range of the blob to fetch next; an empty one for nothing.
func (w *walks) piece(present func(off, size int64) bool) span {
	for _, x := range w.scans() {
		end, limit := w.reach(x)
		// What is near is wanted in order: a large range there would keep the reader
		// waiting for its end, while those behind it come.
		near := int64(0)
		if m, err := w.toc.Member(x.next); err == nil {
			near = m.Offset - end
		}
		a := advance{toc: w.toc, root: x.root, present: present, limit: limit,
			most: min(max(near/scanFetches, leastPiece), scanPiece)}
		s, next, ended := a.from(x.next)
		w.asked(x, next, ended)
		if s.size() > 0 {
			return s
		}
	}
	next, is := w.rest()
	if !is {
		return span{}
	}
	a := advance{toc: w.toc, present: present, most: scanPiece}
	s, next, _ := a.from(next)
	w.askedRest(next)
	return s
}

// advance looks for what to fetch next.
type advance struct {
	toc     table
	root    uint32 // a directory that the files should be in
	present func(off, size int64) bool
	limit   int64 // end of the blob's part that may be fetched; 0: all
	most    int64 // bytes of a range
}

// from returns the first range behind member n that is absent, the member to go on
// from, and whether there is nothing behind it.
func (a *advance) from(n uint32) (s span, next uint32, end bool) {
	var dir uint32
	known, inside, others := false, true, 0
	for ; ; n++ {
		m, err := a.toc.Member(n)
		if err != nil {
			return s, n, true
		}
		if a.limit > 0 && m.Offset+m.Size > a.limit || s.size() >= a.most {
			return s, n, false
		}
		if file, err := a.toc.MemberFile(n); err == nil {
			if d, err := a.toc.Parent(file); err == nil && (!known || d != dir) {
				dir, known = d, true
				inside = within(a.toc, a.root, d)
			}
		}
		if others++; inside {
			others = 0
		}
		if others > strangers {
			return s, n, true
		}
		wanted := inside && !a.present(m.Offset, m.Size)
		switch {
		case wanted && s.size() == 0:
			s = span{m.Offset, m.Offset + m.Size}
		case wanted && m.Offset == s.hi:
			s.hi += m.Size
		case s.size() > 0:
			return s, n, false
		}
	}
}

package layer

import (
	"sync"

	"github.com/lazykit/lazykit/estargz"
)

// A file that is read from one end to the other should not wait for each of its
// chunks. Once a run of reads, each where the last one ended, is aheadStart bytes
// long, as many bytes again as the run has are fetched ahead of it, up to
// aheadLimit. Programs are mapped and read here and there: they make no such
// runs, and nothing is fetched ahead for them.
const (
	aheadStart = 1 << 20
	aheadLimit = 8 << 20
	// aheadFiles is how many files are watched at the same time.
	aheadFiles = 16
	// aheadSlack is how far a read may be from where a run ends and still belong
	// to it: the kernel's own read-ahead sends requests side by side.
	aheadSlack = 256 << 10
)

// readAhead finds runs of reads in the files read last.
type readAhead struct {
	mu struct {
		sync.Mutex
		runs [aheadFiles]run
		next int
		busy int // fetches under way
	}
}

// run of reads in one file.
type run struct {
	inode   uint32
	size    int64 // of the file; 0: unused
	end     int64 // where the next read is expected
	length  int64 // bytes read in the run
	fetched int64 // up to where the file was asked for ahead
	kept    int64 // up to where the kernel has the file, behind end
}

// note takes a read into account and returns the range of the file that should
// be fetched ahead; hi is 0 for none. The caller calls done after a fetch.
func (r *readAhead) note(inode uint32, off int64, n int, size int64) (lo, hi int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v := r.runLocked(inode, off, size)
	end := off + int64(n)
	if end > v.end {
		v.length += end - max(v.end, off)
		v.end = end
	}
	if v.length < aheadStart || r.mu.busy >= aheadFiles {
		return 0, 0
	}
	want := min(v.end+min(v.length, aheadLimit), size)
	// Not for every few bytes: half of what can be ahead is asked for at once.
	if want <= v.fetched || v.fetched > v.end+min(v.length, aheadLimit)/2 {
		return 0, 0
	}
	lo, v.fetched = max(v.fetched, v.end), want
	if lo >= want {
		return 0, 0
	}
	r.mu.busy++
	return lo, want
}

// goesOn says whether a read at off goes on where a run ends.
func goesOn(off, end int64) bool { return off-end <= aheadSlack && end-off <= aheadSlack }

// keep takes note that the kernel has bytes lo to hi of a file. A run that comes to them
// goes on at hi: nothing between is asked for.
func (r *readAhead) keep(inode uint32, lo, hi int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if v := r.findLocked(inode); v != nil && lo-aheadSlack <= v.end && v.end < hi {
		v.kept = hi
	}
}

func (r *readAhead) done() {
	r.mu.Lock()
	r.mu.busy--
	r.mu.Unlock()
}

// findLocked returns the run in a file, or nil; there is one at most.
func (r *readAhead) findLocked(inode uint32) *run {
	for i := range r.mu.runs {
		if v := &r.mu.runs[i]; v.size != 0 && v.inode == inode {
			return v
		}
	}
	return nil
}

// runLocked returns the run that a read at off belongs to, or a new one.
func (r *readAhead) runLocked(inode uint32, off, size int64) *run {
	if v := r.findLocked(inode); v != nil {
		switch {
		case off > v.end && goesOn(off, v.kept):
			v.length += off - v.end
			v.end = off
		case !goesOn(off, v.end):
			*v = run{inode: inode, size: size, end: off}
		}
		return v
	}
	v := &r.mu.runs[r.mu.next]
	r.mu.next = (r.mu.next + 1) % aheadFiles
	*v = run{inode: inode, size: size, end: off}
	return v
}

// readAhead fetches what a run of reads will need next, behind the caller's back.
func (l *Layer) readAhead(inode uint32, off int64, n int, size int64) {
	lo, hi := l.ahead.note(inode, off, n, size)
	if hi == 0 {
		return
	}
	if !l.start(func() { defer l.ahead.done(); l.fetchFile(inode, lo, hi) }) {
		l.ahead.done()
	}
}

// fetchFile makes the members present that hold [lo, hi) of a file; neighbours
// go into one request. Errors are left to the read that will need the bytes.
func (l *Layer) fetchFile(inode uint32, lo, hi int64) {
	c, err := l.toc.FindChunk(inode, lo)
	if err != nil {
		return
	}
	var from, to int64 // of the blob, not asked for yet
	for lo < hi && l.ctx.Err() == nil {
		var chunk estargz.Chunk
		if l.toc.Chunk(c, &chunk) != nil || chunk.Size <= 0 || chunk.FileOffset > lo {
			return
		}
		c, lo = c+1, chunk.FileOffset+chunk.Size
		if chunk.Zeros {
			continue
		}
		m, err := l.toc.Member(chunk.Member)
		if err != nil {
			return
		}
		if m.Offset < from || m.Offset > to {
			l.fetchAhead(from, to-from)
			from = m.Offset
		}
		to = max(to, m.Offset+m.Size)
	}
	l.fetchAhead(from, to-from)
}

// fetchAhead makes a range present that nobody waits for yet.
func (l *Layer) fetchAhead(off, size int64) {
	if size <= 0 || l.blob.Present(off, size) {
		return
	}
	if l.blob.Fetch(l.ctx, Prefetch, off, size) == nil {
		l.stats.prefetched.Add(size)
	}
}

package layer

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
)

// maxRecorded bounds the ranges of one recording.
const maxRecorded = 16 << 10

// Range is a part of the blob, in bytes.
type Range struct{ Off, Size int64 }

// Recording notes what reads need of a layer, once each, in their order. Safe
// for concurrent use.
type Recording struct {
	l     *Layer
	whole bool

	mu     sync.Mutex
	ended  bool     // a read that began before Stop may come after it
	seen   []uint64 // members, a bit each
	ranges []Range
	failed failures
}

// failures are reads that have failed and were not repeated with success.
type failures struct {
	some  atomic.Bool // there are some
	first uint32      // the member that failed first
	of    map[uint32]error
	tell  func() // see WhenFailed
}

// Record begins to note the members that are read. Stop it.
func (l *Layer) Record() *Recording {
	r := &Recording{l: l, whole: l.stats.reads.Load() == 0}
	l.recorders.change(func(all []*Recording) []*Recording { return append(all, r) })
	return r
}

// Stop ends the recording. whole says that nothing was read of the layer before:
// what the kernel remembers of earlier reads is not asked for again, and so not
// noted.
func (r *Recording) Stop() (ranges []Range, whole bool) {
	r.l.recorders.change(func(all []*Recording) []*Recording {
		return slices.DeleteFunc(all, func(o *Recording) bool { return o == r })
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ended = true
	return r.ranges, r.whole
}

// Failed returns the error of the first read that failed since Record, and how many
// members could not be read; nil when all was read in the end. A reader that left
// before its bytes were there has no error.
func (r *Recording) Failed() (n int, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.failed.of), r.failed.of[r.failed.first]
}

// WhenFailed calls f, once and in a goroutine of a read, when a read has failed while no
// other recording ran: whoever is recorded was given the error. f must not block.
func (r *Recording) WhenFailed(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed.tell = f
}

// outcome takes the end of a read of a member into account; alone says that no other
// recording runs.
func (r *Recording) outcome(member uint32, err error, alone bool) {
	if err == nil && !r.failed.some.Load() {
		return
	}
	if tell := r.noteOutcome(member, err, alone); tell != nil {
		tell()
	}
}

func (r *Recording) noteOutcome(member uint32, err error, alone bool) (tell func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f := &r.failed
	if err != nil && alone {
		tell, f.tell = f.tell, nil
	}
	switch {
	case err == nil:
		delete(f.of, member)
		for f.first = range f.of { // whichever: there is a first no more
			break
		}
	case len(f.of) == 0:
		f.of, f.first = map[uint32]error{member: err}, member
	case len(f.of) < maxRecorded:
		f.of[member] = err
	}
	f.some.Store(len(f.of) > 0)
	return tell
}

// note takes a read of a member into account.
func (r *Recording) note(member uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	word, bit := int(member/64), uint64(1)<<(member%64)
	if r.ended || word < len(r.seen) && r.seen[word]&bit != 0 {
		return
	}
	m, err := r.l.toc.Member(member)
	if err != nil || m.Size <= 0 {
		return
	}
	if word >= len(r.seen) {
		r.seen = append(r.seen, make([]uint64, word+1-len(r.seen))...)
	}
	r.seen[word] |= bit
	if n := len(r.ranges); n > 0 && r.ranges[n-1].Off+r.ranges[n-1].Size == m.Offset {
		r.ranges[n-1].Size += m.Size
		return
	}
	if len(r.ranges) < maxRecorded {
		r.ranges = append(r.ranges, Range{m.Offset, m.Size})
	}
}

// recorders are the recordings of a layer; replaced as a whole, since reads look at them without a lock.
type recorders struct {
	changing sync.Mutex
	list     atomic.Pointer[[]*Recording]
}

func (r *recorders) all() []*Recording {
	if p := r.list.Load(); p != nil {
		return *p
	}
	return nil
}

func (r *recorders) change(f func([]*Recording) []*Recording) {
	r.changing.Lock()
	defer r.changing.Unlock()
	all := f(slices.Clone(r.all()))
	r.list.Store(&all)
}

// note tells all recordings of a read of a member.
func (r *recorders) note(member uint32) {
	for _, rec := range r.all() {
		rec.note(member)
	}
}

// outcome tells all recordings how a read of a member ended.
func (r *recorders) outcome(member uint32, err error) {
	if errors.Is(err, ErrClosed) {
		return
	}
	all := r.all()
	for _, rec := range all {
		rec.outcome(member, err, len(all) == 1)
	}
}

// Has says whether a range of the blob needs no request. Never blocks.
func (l *Layer) Has(off, size int64) bool { return l.blob.Present(off, size) }

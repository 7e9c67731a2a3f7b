package layer

import (
	"cmp"
	"runtime"
	"slices"

	"github.com/lazykit/lazykit/estargz"
)

// Members that a scan will come to are decompressed before, on all processors,
// into the pool's cache, or for a taker (give.go).
const (
	// unpackBytes and unpackMembers bound what is ahead of a walk: decompressed
	// bytes, a fraction of the cache, and members.
	unpackBytes, unpackMembers = 8 << 20, 64
	// unpackBatch is how many members a goroutine takes at a time, and batchBytes how many
	// decompressed bytes, or one member: then it looks where the reader is.
	unpackBatch, batchBytes = 16, 1 << 20
	// unpackChunks is the most chunks of a member that is worth it; one of more is
	// mostly kept in part only.
	unpackChunks = 64
)

// unpackAhead starts to decompress what x comes to next, as far as nobody does.
func (l *Layer) unpackAhead(x walk) {
	if !x.complete() || l.taker.Load() == nil && x.unpack-x.at > unpackMembers/2 {
		return
	}
	if int(l.unpacking.Add(1)) > runtime.GOMAXPROCS(0) {
		l.unpacking.Add(-1)
		return
	}
	if !l.start(func() { defer l.unpacking.Add(-1); l.unpackBatches() }) {
		l.unpacking.Add(-1)
	}
}

// unpackBatches decompresses members ahead of scans until enough of them are.
func (l *Layer) unpackBatches() {
	g := l.giver()
	absent := map[uint64]uint64{} // the turns of walks whose next bytes were not there
	for l.ctx.Err() == nil {
		x, from, to := l.walks.takeBatch(l.unpacked, g != nil && !g.full, absent)
		if from == to {
			return
		}
		for n := from; n < to; n++ {
			// The cache would have forgotten a large one when its reader comes.
			if g != nil && !g.full && isMark(l.toc, n) && isLarge(l.toc, n) {
				continue
			}
			done, here := l.unpackMember(n)
			if done {
				g.add(n)
				continue
			}
			l.walks.putBack(x.id, n)
			if here {
				g.flush()
				return
			}
			absent[x.id] = x.turn
			break
		}
		g.flush()
	}
}

// unpacked returns the first chunk of a member and its decompressed size.
func (l *Layer) unpacked(n uint32) (first uint32, size int64, ok bool) {
	first, last, err := l.toc.MemberChunks(n)
	if err != nil || last-first >= unpackChunks {
		return 0, 0, false
	}
	var c estargz.Chunk
	for i := first; i <= last; i++ {
		if l.toc.Chunk(i, &c) == nil && c.Member == n && !c.Zeros {
			size += c.Size
		}
	}
	return first, size, true
}

// unpackMember decompresses a member into the cache. It is not done when its bytes are not
// here, or when memory is short: readers come first.
func (l *Layer) unpackMember(n uint32) (done, here bool) {
	first, _, ok := l.unpacked(n)
	if !ok || l.walks.wasGiven(n) {
		return true, true
	}
	var c estargz.Chunk
	m, err := l.toc.Member(n)
	if err != nil || l.toc.Chunk(first, &c) != nil || c.Member != n {
		return true, true
	}
	if b := l.pool.cache.get(chunkKey{l.id, first}); b != nil {
		b.release()
		return true, true
	}
	if !l.blob.Present(m.Offset, m.Size) {
		return false, false
	}
	f, own, _ := l.join(need{chunk: first, size: c.Size, member: n, upTo: n, ahead: true})
	defer l.leave(f)
	if !own || l.flyHere(f) {
		return true, true
	}
	l.launch(f) // for a reader that has joined
	return false, true
}

// takeBatch takes members ahead of a scan that should be decompressed: of the one that
// was read last, first, and as far as leastGiven or unpackBytes reach. given says that
// they are given away; absent are those that can't go on unless they were read since.
func (w *walks) takeBatch(unpacked func(n uint32) (uint32, int64, bool), given bool, absent map[uint64]uint64) (of walk, from, to uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var scans []*walk
	for i := range w.mu.list {
		x := &w.mu.list[i]
		if turn, is := absent[x.id]; x.id > 0 && x.scan && x.complete() && !(is && turn == x.turn) {
			scans = append(scans, x)
		}
	}
	slices.SortFunc(scans, func(a, b *walk) int { return cmp.Compare(b.turn, a.turn) })
	for _, far := range []bool{false, true} {
		for _, x := range scans {
			members, bytes := uint32(unpackMembers), int64(unpackBytes)
			switch {
			case given && far:
				members, bytes = givenMembers, x.givenBytes()
			case given:
				members, bytes = givenMembers, leastGiven
			case far:
				continue
			}
			if from, to := w.batchLocked(x, unpacked, members, bytes); from < to {
				return *x, from, to
			}
		}
	}
	return walk{}, 0, 0
}

// batchLocked takes the next members of x, as long as no more than members and bytes are
// ahead of it.
func (w *walks) batchLocked(x *walk, unpacked func(n uint32) (uint32, int64, bool), members uint32, bytes int64) (from, to uint32) {
	x.count(unpacked)
	from, to = x.unpack, x.unpack
	taken := int64(0)
	for to-from < unpackBatch && to-x.at <= members {
		file, err := w.toc.MemberFile(to)
		if err != nil {
			break
		}
		if dir, err := w.toc.Parent(file); err != nil || !within(w.toc, x.root, dir) {
			break
		}
		_, size, _ := unpacked(to)
		if x.aheadBytes+size > bytes || to > from && taken+size > batchBytes {
			break
		}
		taken += size
		x.aheadBytes += size
		to++
	}
	x.unpack, x.aheadTo = to, to
	return from, to
}

// count brings aheadBytes up to date: the decompressed bytes of the members between the
// one that was read last and unpack.
func (x *walk) count(unpacked func(n uint32) (uint32, int64, bool)) {
	if x.at < x.aheadFrom || x.aheadTo < x.at {
		x.aheadFrom, x.aheadTo, x.aheadBytes = x.at, x.at+1, 0
	}
	for ; x.aheadTo < x.unpack; x.aheadTo++ {
		_, size, _ := unpacked(x.aheadTo)
		x.aheadBytes += size
	}
	for ; x.aheadTo > x.unpack; x.aheadTo-- {
		_, size, _ := unpacked(x.aheadTo - 1)
		x.aheadBytes -= size
	}
	for ; x.aheadFrom < x.at; x.aheadFrom++ {
		if x.aheadFrom+1 < x.aheadTo {
			_, size, _ := unpacked(x.aheadFrom + 1)
			x.aheadBytes -= size
		}
	}
}

// putBack gives member n of a batch, and those behind it, back.
func (w *walks) putBack(id uint64, n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.withLocked(id); x != nil {
		x.unpack = max(min(x.unpack, n), x.at+1)
	}
}

package layer

import (
	"runtime"

	"github.com/lazykit/lazykit/estargz"
)

// Members that a scan will come to are decompressed before, on all processors,
// into the pool's cache, or for a taker (give.go).
const (
	// unpackBytes and unpackMembers bound what is ahead of a walk: decompressed
	// bytes, a fraction of the cache, and members.
	unpackBytes, unpackMembers = 8 << 20, 64
	// unpackBatch is how many members a goroutine takes at a time.
	unpackBatch = 16
	// unpackChunks is the most chunks of a member that is worth it; one of more is
	// mostly kept in part only.
	unpackChunks = 64
)

// unpackAhead starts to decompress what x comes to next, as far as nobody does.
func (l *Layer) unpackAhead(x walk) {
	most := uint32(unpackMembers)
	if l.taker.Load() != nil {
		most = givenMembers
	}
	if !x.complete() || x.unpack-x.at > most/2 {
		return
	}
	if int(l.unpacking.Add(1)) > runtime.GOMAXPROCS(0) {
		l.unpacking.Add(-1)
		return
	}
	if !l.start(func() { defer l.unpacking.Add(-1); l.unpackBatches(x.id) }) {
		l.unpacking.Add(-1)
	}
}

// unpackBatches decompresses members ahead of a walk until enough of them are.
func (l *Layer) unpackBatches(id uint64) {
	g := l.giver()
	for l.ctx.Err() == nil {
		members, bytes := uint32(unpackMembers), int64(unpackBytes)
		if g != nil && !g.full {
			members, bytes = givenMembers, givenBytes
		}
		from, to := l.walks.takeBatch(id, l.unpacked, members, bytes)
		if from == to {
			return
		}
		for n := from; n < to; n++ {
			if !l.unpackMember(n) {
				g.flush()
				l.walks.putBack(id, n)
				return
			}
			g.add(n)
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

// unpackMember decompresses a member into the cache. False when its bytes are not
// there, or when memory is short: readers come first.
func (l *Layer) unpackMember(n uint32) bool {
	first, _, ok := l.unpacked(n)
	if !ok {
		return true
	}
	var c estargz.Chunk
	m, err := l.toc.Member(n)
	if err != nil || l.toc.Chunk(first, &c) != nil || c.Member != n {
		return true
	}
	if b := l.pool.cache.get(chunkKey{l.id, first}); b != nil {
		b.release()
		return true
	}
	if !l.blob.Present(m.Offset, m.Size) {
		return false
	}
	f, own, _ := l.join(need{chunk: first, size: c.Size, member: n, upTo: n, ahead: true})
	defer l.leave(f)
	if !own || l.flyHere(f) {
		return true
	}
	l.launch(f) // for a reader that has joined
	return false
}

// takeBatch takes members ahead of a walk that should be decompressed: no more than
// members and bytes are to be.
func (w *walks) takeBatch(id uint64, unpacked func(n uint32) (uint32, int64, bool), members uint32, bytes int64) (from, to uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.withLocked(id)
	if x == nil {
		return 0, 0
	}
	ahead := int64(0)
	for n := x.at + 1; n < x.unpack; n++ {
		_, size, _ := unpacked(n)
		ahead += size
	}
	from, to = x.unpack, x.unpack
	for to-from < unpackBatch && to-x.at <= members {
		file, err := w.toc.MemberFile(to)
		if err != nil {
			break
		}
		if dir, err := w.toc.Parent(file); err != nil || !within(w.toc, x.root, dir) {
			break
		}
		_, size, _ := unpacked(to)
		if ahead += size; ahead > bytes {
			break
		}
		to++
	}
	x.unpack = to
	return from, to
}

// putBack gives member n of a batch, and those behind it, back.
func (w *walks) putBack(id uint64, n uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if x := w.withLocked(id); x != nil {
		x.unpack = max(min(x.unpack, n), x.at+1)
	}
}

package layer

import "github.com/lazykit/lazykit/estargz"

// Given is a part of a file, in memory and verified, for a Taker.
type Given struct {
	Inode uint32
	Off   int64
	Data  []byte // not to be changed, nor kept
}

// Taker takes what a scan will read before it is asked for, in the order of the blob,
// and keeps it where a read of it does not come back here. False: it does not at
// present, and nothing more is given for a while. It is called from several goroutines,
// and returns soon.
type Taker func(parts []Given) bool

// SetTaker makes the layer give what is decompressed ahead of scans to t, but for the
// marks; nil: readers come for it. It can be called at any time.
func (l *Layer) SetTaker(t Taker) {
	if t == nil {
		l.taker.Store(nil)
		return
	}
	l.taker.Store(&t)
}

// A scan of which everything is given away would be seen no more. So one member in
// markEvery is not given, nor are large ones, which their first read brings as a whole:
// they are the marks by which a walk is followed.
const (
	markEvery = 32
	markSize  = 256 << 10 // compressed bytes

	// leastGiven, mostGiven and givenMembers bound what is ahead of a walk, as
	// unpackBytes and unpackMembers do where it is kept in the cache. Between them it is
	// givenRatio times the bytes of the blob that the walk has passed: while a scan waits
	// for the network in one place, the processors have something to do for another.
	leastGiven, mostGiven, givenRatio = 24 << 20, 256 << 20, 4
	givenMembers                      = 8192
)

// givenBytes is how many decompressed bytes may be ahead of x.
func (x *walk) givenBytes() int64 { return min(max(leastGiven, givenRatio*x.ran), mostGiven) }

// isMark says whether a read of member n comes here although others near it were given
// away.
func isMark(toc table, n uint32) bool {
	if n%markEvery == 0 {
		return true
	}
	m, err := toc.Member(n)
	return err != nil || m.Size >= markSize
}

// marks is how many members from lo to hi, hi not included, are marks.
func marks(toc table, lo, hi uint32) (n int) {
	for ; lo < hi; lo++ {
		if isMark(toc, lo) {
			n++
		}
	}
	return n
}

// giver collects what is decompressed of a batch.
type giver struct {
	l     *Layer
	to    Taker
	parts []Given
	held  []*buffer
	size  int
	full  bool // the taker has had enough
}

// giveAtOnce is about how many bytes are handed to a taker.
const giveAtOnce = 1 << 20

// giver returns nil where nobody takes.
func (l *Layer) giver() *giver {
	t := l.taker.Load()
	if t == nil {
		return nil
	}
	return &giver{l: l, to: *t}
}

// add takes the chunks of a member that are in the cache. The member counts as read.
func (g *giver) add(n uint32) {
	if g == nil || g.full || isMark(g.l.toc, n) {
		return
	}
	first, last, err := g.l.toc.MemberChunks(n)
	if err != nil || last-first >= unpackChunks {
		return
	}
	// With one chunk in a member, as mostly, it is the file's that is at its beginning.
	inode, err := g.l.toc.MemberFile(n)
	if err != nil || last != first {
		return
	}
	var c estargz.Chunk
	if g.l.toc.Chunk(first, &c) != nil || c.Member != n || c.Zeros {
		return
	}
	b, again := g.l.pool.cache.takeWhole(chunkKey{g.l.id, first})
	if b == nil {
		return
	}
	if again || int64(len(b.data)) != c.Size {
		b.release()
		return
	}
	g.held = append(g.held, b)
	g.parts = append(g.parts, Given{Inode: inode, Off: c.FileOffset, Data: b.data})
	g.l.recorders.note(n)
	if g.l.wishes.takeDecoded(n) {
		g.l.used(n)
	}
	if g.size += len(b.data); g.size >= giveAtOnce {
		g.flush()
	}
}

// flush hands over what was added.
func (g *giver) flush() {
	if g == nil {
		return
	}
	if len(g.parts) > 0 && !g.full {
		g.full = !g.to(g.parts)
	}
	for _, b := range g.held {
		b.release()
	}
	clear(g.parts)
	g.parts, g.held, g.size = g.parts[:0], g.held[:0], 0
}

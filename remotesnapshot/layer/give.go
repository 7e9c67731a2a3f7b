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
// markEvery is not given, and of large ones, which their first read brings as a whole, one
// in markLarge: they are the marks by which a walk is followed.
const (
	markEvery = 32
	markLarge = 8
	largeSize = 256 << 10 // compressed bytes

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
	return n%markEvery == 0 || n%markLarge == 0 && isLarge(toc, n)
}

func isLarge(toc table, n uint32) bool {
	m, err := toc.Member(n)
	return err != nil || m.Size >= largeSize
}

// given knows which members were given away, whoever will come to them: a bit for each, of
// layers that are scanned.
type given struct {
	bits []uint64
	lost int // members that were asked for all the same
}

// lostMost is how many members may be asked for one after the other that were given away, as
// a reader may have asked before. More, and the taker has not kept them.
const lostMost = 16

func (g *given) add(n uint32) {
	if word := int(n / 64); word >= len(g.bits) {
		g.bits = append(g.bits, make([]uint64, word+1-len(g.bits))...)
	}
	g.bits[n/64] |= 1 << (n % 64)
}

func (g *given) has(n uint32) bool {
	return int(n/64) < len(g.bits) && g.bits[n/64]&(1<<(n%64)) != 0
}

// asked takes a read into account.
func (g *given) asked(n uint32) {
	if !g.has(n) {
		g.lost = 0
		return
	}
	g.bits[n/64] &^= 1 << (n % 64)
	if g.lost++; g.lost > lostMost {
		*g = given{}
	}
}

// count is how many members from lo on and before hi were given away.
func (g *given) count(lo, hi uint32) (n int) {
	for ; lo < hi; lo++ {
		if g.has(lo) {
			n++
		}
	}
	return n
}

// gave notes that members were given away.
func (w *walks) gave(members []uint32) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range members {
		w.mu.given.add(n)
	}
}

// wasGiven says whether it was, and is still kept as far as is known.
func (w *walks) wasGiven(n uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.given.has(n)
}

// giver collects what is decompressed of a batch.
type giver struct {
	l     *Layer
	to    Taker
	parts []Given
	held  []*buffer
	// members are those of parts.
	members []uint32
	size    int
	full    bool // the taker has had enough
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

// add takes the chunk of a member that has one, as most have, from the cache. The member
// counts as read.
func (g *giver) add(n uint32) {
	if g == nil || g.full || isMark(g.l.toc, n) {
		return
	}
	first, last, err := g.l.toc.MemberChunks(n)
	if err != nil || last != first {
		return
	}
	inode, err := g.l.toc.MemberFile(n) // of the member's only chunk
	if err != nil {
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
	g.members = append(g.members, n)
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
		if g.full = !g.to(g.parts); !g.full {
			g.l.walks.gave(g.members)
		}
	}
	for _, b := range g.held {
		b.release()
	}
	clear(g.parts)
	g.parts, g.held, g.members, g.size = g.parts[:0], g.held[:0], g.members[:0], 0
}

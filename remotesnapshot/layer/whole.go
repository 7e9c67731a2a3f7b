package layer

import "github.com/lazykit/lazykit/estargz"

// Whole is a part of a file that is in memory and verified.
type Whole struct {
	Off   int64
	Data  []byte // not to be changed
	Again bool   // it was returned before, since it was decompressed
	buf   *buffer
}

// Release gives the memory back. Call it once.
func (w Whole) Release() { w.buf.release() }

// Whole returns the chunk of regular file inode that holds byte off, for a caller who
// keeps it from now on: when it has at least least bytes and is in the cache. On a side where bytes of the file follow that are
// not present, the last margin bytes are left out. It never blocks. Call it between
// Acquire and Release; the result outlives those.
func (l *Layer) Whole(inode uint32, off, least, margin int64) (Whole, bool) {
	c, err := l.toc.FindChunk(inode, off)
	if err != nil {
		return Whole{}, false
	}
	var chunk estargz.Chunk
	if l.toc.Chunk(c, &chunk) != nil || chunk.Zeros || chunk.Size < least || off-chunk.FileOffset >= chunk.Size {
		return Whole{}, false
	}
	lo, hi := int64(0), chunk.Size // chunks of a file follow one another
	if chunk.FileOffset > 0 && !l.hasChunk(c-1) {
		lo += margin
	}
	var node estargz.Inode
	if l.toc.Inode(inode, &node) != nil {
		return Whole{}, false
	}
	if chunk.FileOffset+chunk.Size < node.Size && !l.hasChunk(c+1) {
		hi -= margin
	}
	if hi <= lo {
		return Whole{}, false
	}
	b, again := l.pool.cache.takeWhole(chunkKey{l.id, c})
	if b == nil {
		return Whole{}, false
	}
	if int64(len(b.data)) != chunk.Size {
		b.release()
		return Whole{}, false
	}
	l.ahead.keep(inode, chunk.FileOffset+lo, chunk.FileOffset+hi)
	return Whole{Off: chunk.FileOffset + lo, Data: b.data[lo:hi], Again: again, buf: b}, true
}

// hasChunk says whether a chunk can be had without the network.
func (l *Layer) hasChunk(c uint32) bool {
	var chunk estargz.Chunk
	if l.toc.Chunk(c, &chunk) != nil {
		return false
	}
	if chunk.Zeros {
		return true
	}
	m, err := l.toc.Member(chunk.Member)
	return err == nil && l.blob.Present(m.Offset, m.Size)
}

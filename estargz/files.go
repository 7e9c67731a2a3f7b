package estargz

import (
	"bytes"
	"errors"
	"fmt"
)

// files collects the chunks of regular files, in the order of the TOC, and the
// offsets at which members begin or end.
type files struct {
	toc     *source
	dataEnd int64 // offset of the blob behind the last byte of any file
	byBlob  bool

	chunks slab[protoChunk]
	bounds slab[int64] // offsets of members; endOffsets too
	sorted bool        // bounds are in order so far

	cur file
}

// file is the regular file whose chunks are being read.
type file struct {
	open   bool
	inode  *protoInode // nil: no part of the tree
	name   []byte
	size   int64
	pos    int64 // end of the chunks so far
	count  int   // of them
	first  uint32
	digest sum
	end    int64 // endOffset
}

// protoChunk is a chunk before its member is known.
type protoChunk struct {
	fileOffset, size, inner int64
	offset                  int64 // of the member in the blob
	member                  uint32
	zeros, summed           bool
	sum                     [32]byte
}

func newFiles(toc *source, byBlob bool) *files {
	return &files{toc: toc, dataEnd: toc.loc.payloadEnd(toc.blobSize), byBlob: byBlob, sorted: true}
}

// begin starts a regular file; its entry is also its first chunk.
func (f *files) begin(e *entry, inode *protoInode) error {
	if e.size < 0 || e.size > maxFileSize {
		return fmt.Errorf("size %d", e.size)
	}
	f.cur = file{
		open: true, inode: inode, name: append(f.cur.name[:0], e.name...),
		size: e.size, first: f.chunks.n, digest: e.digest, end: e.end,
	}
	if inode != nil {
		inode.size = e.size
	}
	if e.size == 0 {
		return nil
	}
	return f.piece(e)
}

// chunk takes an entry of type "chunk".
func (f *files) chunk(e *entry) error {
	if !f.cur.open {
		return errors.New("chunk that follows no file")
	}
	if len(e.name) > 0 && !bytes.Equal(e.name, f.cur.name) {
		return fmt.Errorf("chunk that follows the file %.256q", f.cur.name)
	}
	return f.piece(e)
}

// piece adds a chunk, which must begin where the last one ended.
func (f *files) piece(e *entry) error {
	left := f.cur.size - f.cur.pos
	n := e.chunkSize
	if n == 0 {
		n = left // to the end of the file
	}
	if e.chunkOffset != f.cur.pos || n < 0 || n > left {
		return fmt.Errorf("chunk [%d, +%d) where one at %d should be, file of %d bytes", e.chunkOffset, e.chunkSize, f.cur.pos, f.cur.size)
	}
	if n == 0 {
		return nil
	}
	c := protoChunk{fileOffset: f.cur.pos, size: n, zeros: e.zeros}
	if !e.zeros {
		if err := f.place(&c, e); err != nil {
			return err
		}
	}
	f.cur.pos += n
	f.cur.count++
	if f.cur.inode != nil {
		f.chunks.add(c)
	}
	return nil
}

// place says where in the blob a chunk's bytes are.
func (f *files) place(c *protoChunk, e *entry) error {
	lim := f.toc.lim
	switch {
	case e.offset < 0 || e.offset >= f.dataEnd:
		return fmt.Errorf("offset %d lies outside the files' part of the blob, %d bytes", e.offset, f.dataEnd)
	case e.inner < 0:
		return fmt.Errorf("inner offset %d", e.inner)
	case c.size > lim.ChunkSize:
		return limitf("chunk of %d bytes, at most %d are read", c.size, lim.ChunkSize)
	case e.inner > lim.MemberSize-c.size:
		return limitf("chunk at inner offset %d, at most %d bytes are decompressed", e.inner, lim.MemberSize)
	}
	c.offset, c.inner = e.offset, e.inner
	c.summed, c.sum = e.chunkDigest.set, e.chunkDigest.b
	f.bound(e.offset)
	return nil
}

func (f *files) bound(offset int64) {
	if n := f.bounds.n; n > 0 {
		last := *f.bounds.at(n - 1)
		if last == offset {
			return
		}
		f.sorted = f.sorted && last < offset
	}
	f.bounds.add(offset)
}

// end closes the file whose chunks were read, if there is one.
func (f *files) end() error {
	if !f.cur.open {
		return nil
	}
	f.cur.open = false
	if err := f.finish(); err != nil {
		return entryError(f.cur.name, err)
	}
	return nil
}

func (f *files) finish() error {
	c := &f.cur
	if c.pos != c.size {
		return fmt.Errorf("chunks are missing from %d to %d", c.pos, c.size)
	}
	if c.end < 0 || c.end > f.dataEnd {
		return fmt.Errorf("end offset %d lies outside the files' part of the blob, %d bytes", c.end, f.dataEnd)
	}
	if c.end > 0 && c.size > 0 {
		f.bound(c.end)
	}
	if c.inode == nil || c.count == 0 {
		return nil
	}
	c.inode.a, c.inode.b = c.first, uint32(c.count)
	if only := f.chunks.at(c.first); c.count == 1 && !only.summed && c.digest.set {
		// zstd:chunked leaves the digest of a file's only chunk to the file.
		only.summed, only.sum = true, c.digest.b
	}
	for i := range uint32(c.count) {
		if ch := f.chunks.at(c.first + i); !ch.summed && !ch.zeros && !f.byBlob {
			return fmt.Errorf("chunk at %d has no digest", ch.fileOffset)
		}
	}
	return nil
}

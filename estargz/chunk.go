package estargz

import (
	"encoding/binary"
	"fmt"
	"sort"

	"golang.org/x/sys/unix"
)

// Chunk is a part of a file that can be verified alone.
type Chunk struct {
	FileOffset int64 // where it begins in the file
	Size       int64 // decompressed bytes
	Member     uint32
	Inner      int64 // where it begins in the decompressed member
	Zeros      bool  // all zeros: no member, no digest
}

// Member is a part of the blob that can be decompressed alone: one gzip member
// or zstd frame (and what follows it up to the next one), with its chunks.
type Member struct {
	Offset, Size int64 // compressed bytes [Offset, Offset+Size) of the blob
}

// chunkRecord is one record of the chunk table.
type chunkRecord []byte

func (r chunkRecord) fileOffset() uint64 { return binary.LittleEndian.Uint64(r) }
func (r chunkRecord) size() uint64       { return binary.LittleEndian.Uint64(r[8:]) }
func (r chunkRecord) inner() uint64      { return binary.LittleEndian.Uint64(r[16:]) }
func (r chunkRecord) member() uint32     { return binary.LittleEndian.Uint32(r[24:]) }
func (r chunkRecord) flags() uint32      { return binary.LittleEndian.Uint32(r[28:]) }
func (r chunkRecord) sum() []byte        { return r[32:64] }

func (t *TOC) chunk(c uint32) (chunkRecord, error) {
	b, ok := records(t.chunkTable, chunkSize, c, 1)
	if !ok {
		return nil, corruptf("chunk %d of %d", c, t.chunks)
	}
	r := chunkRecord(b)
	if r.fileOffset() > maxFileSize || r.size() > maxFileSize || r.inner() > maxFileSize {
		return nil, corruptf("chunk %d: [%d, +%d), inner offset %d", c, r.fileOffset(), r.size(), r.inner())
	}
	return r, nil
}

// FileChunks returns the first chunk of file i and their number: 0 for an empty
// file, and for any other inode. A file's chunks are in order, without gaps.
func (t *TOC) FileChunks(i uint32) (first, n uint32, err error) {
	r, err := t.inode(i)
	if err != nil || r.kind() != unix.S_IFREG {
		return 0, 0, err
	}
	if _, ok := records(t.chunkTable, chunkSize, r.first(), r.count()); !ok {
		return 0, 0, corruptf("inode %d: chunks [%d, +%d) of %d", i, r.first(), r.count(), t.chunks)
	}
	return r.first(), r.count(), nil
}

// FindChunk returns the index of the chunk that holds byte off of file i.
// Chunk indices of one file are consecutive. ErrNotExist when i is not a file or
// off is not in it. It does not allocate.
func (t *TOC) FindChunk(i uint32, off int64) (uint32, error) {
	r, err := t.inode(i)
	if err != nil {
		return 0, err
	}
	if r.kind() != unix.S_IFREG || off < 0 || uint64(off) >= r.u64(32) {
		return 0, ErrNotExist
	}
	list, ok := records(t.chunkTable, chunkSize, r.first(), r.count())
	if !ok {
		return 0, corruptf("inode %d: chunks [%d, +%d) of %d", i, r.first(), r.count(), t.chunks)
	}
	n := sort.Search(int(r.count()), func(n int) bool {
		return chunkRecord(list[n*chunkSize:]).fileOffset() > uint64(off)
	}) - 1
	if n < 0 {
		return 0, corruptf("inode %d: no chunk holds byte %d", i, off)
	}
	c := r.first() + uint32(n)
	rec, err := t.chunk(c)
	if err != nil {
		return 0, err
	}
	if uint64(off)-rec.fileOffset() >= rec.size() {
		return 0, corruptf("inode %d: no chunk holds byte %d", i, off)
	}
	return c, nil
}

// Chunk fills out from chunk c. It does not allocate.
func (t *TOC) Chunk(c uint32, out *Chunk) error {
	r, err := t.chunk(c)
	if err != nil {
		return err
	}
	*out = Chunk{
		FileOffset: int64(r.fileOffset()), Size: int64(r.size()),
		Member: r.member(), Inner: int64(r.inner()), Zeros: r.flags()&chunkZeros != 0,
	}
	if !out.Zeros && out.Member >= t.members {
		return corruptf("chunk %d: member %d of %d", c, out.Member, t.members)
	}
	return nil
}

// Member returns the compressed range of member m.
func (t *TOC) Member(m uint32) (Member, error) {
	r, _, _, err := t.member(m)
	return r, err
}

// MemberChunks returns the first and the last chunk in member m. Mostly all
// chunks between are in it as well; where the TOC is not in the order of the
// blob, some may not be.
func (t *TOC) MemberChunks(m uint32) (first, last uint32, err error) {
	_, first, last, err = t.member(m)
	return first, last, err
}

// MemberFile returns the file that the first chunk in member m belongs to.
func (t *TOC) MemberFile(m uint32) (inode uint32, err error) {
	b, ok := records(t.memberTable, memberSize, m, 1)
	if !ok {
		return 0, corruptf("member %d of %d", m, t.members)
	}
	i := binary.LittleEndian.Uint32(b[24:])
	if i >= t.inodes {
		return 0, corruptf("member %d: inode %d of %d", m, i, t.inodes)
	}
	return i, nil
}

func (t *TOC) member(m uint32) (r Member, first, last uint32, err error) {
	b, ok := records(t.memberTable, memberSize, m, 1)
	if !ok {
		return r, 0, 0, corruptf("member %d of %d", m, t.members)
	}
	le := binary.LittleEndian
	off, size := le.Uint64(b), le.Uint64(b[8:])
	first, last = le.Uint32(b[16:]), le.Uint32(b[20:])
	if off > uint64(t.blobSize) || size > uint64(t.blobSize)-off || size == 0 || first > last || last >= t.chunks {
		return r, 0, 0, corruptf("member %d: [%d, +%d), chunks %d to %d", m, off, size, first, last)
	}
	return Member{Offset: int64(off), Size: int64(size)}, first, last, nil
}

// FindMember returns the first member that ends behind offset off of the blob:
// the one that holds it, or the next one. ErrNotExist when there is none.
func (t *TOC) FindMember(off int64) (uint32, error) {
	n := sort.Search(int(t.members), func(n int) bool {
		m, _, _, err := t.member(uint32(n))
		return err == nil && m.Offset+m.Size > off
	})
	if n == int(t.members) {
		return 0, fmt.Errorf("member at offset %d: %w", off, ErrNotExist)
	}
	return uint32(n), nil
}

package estargz

import "hash/crc32"

// The compact file. All numbers are little-endian and unsigned but where noted;
// tables follow the header without gaps, in this order, each with as many
// records as the header says. Inode 0 is the root; a directory's inode number is
// larger than its parent's, so that a walk ends whatever a damaged file says.
//
// Header, 128 bytes:
//
//	0   8  magic "LKTOC\r\n\x1a"
//	8   4  version: 2
//	12  1  Format
//	13  1  flags: 1 an inode has xattrs or is opaque, 2 all chunks have digests
//	14  2  0
//	16  8  size of the blob
//	24  8  offset up to which the landmark asks to prefetch; 0 for none
//	32  8  bytes of all regular files
//	40  4  regular files
//	44  4  inodes
//	48  4  chunks
//	52  4  members
//	56  4  directory entries
//	60  4  xattrs
//	64  8  bytes of the string table
//	72  8  size of the file
//	80  4  CRC-32C of everything behind the header, then of bytes 0 to 80 of it
//	84 44  0
//
// Inode, 64 bytes:
//
//	0   4  mode, as in struct stat
//	4   4  uid
//	8   4  gid
//	12  4  nlink
//	16  4  rdev (new_encode_dev)
//	20  4  nanoseconds of the mtime
//	24  8  mtime, seconds, signed
//	32  8  size
//	40  4  directory: first directory entry; file: first chunk; symlink: target in the string table
//	44  4  directory: number of entries; file: number of chunks; symlink: length of the target
//	48  4  first xattr
//	52  4  number of xattrs
//	56  4  flags: 1 opaque
//	60  4  the directory that it is in; that of its first name where it has several
//
// Chunk, 64 bytes; those of a file are consecutive and in order:
//
//	0   8  offset in the file
//	8   8  size
//	16  8  offset in the decompressed member
//	24  4  member; 0xffffffff for zeros
//	28  4  flags: 1 zeros, 2 has a digest
//	32 32  sha256
//
// Member, 28 bytes, by offset:
//
//	0   8  offset in the blob
//	8   8  compressed bytes, up to the next member's beginning
//	16  4  first chunk in it
//	20  4  last chunk in it (chunks between may be in others)
//	24  4  inode of the file that the first chunk belongs to
//
// Directory entry, 12 bytes; those of a directory are consecutive, by name:
//
//	0   4  name in the string table
//	4   4  its length
//	8   4  inode
//
// Xattr, 16 bytes; those of an inode are consecutive, by name, and inodes may
// share them:
//
//	0   4  name in the string table
//	4   4  its length
//	8   4  value in the string table
//	12  4  its length
//
// String table: the bytes, addressed by offset and length.
const (
	fileMagic   = "LKTOC\r\n\x1a"
	fileVersion = 2

	headerSize = 128
	headerSums = 80 // bytes of the header that the checksum covers
	inodeSize  = 64
	chunkSize  = 64
	memberSize = 28
	direntSize = 12
	xattrSize  = 16

	headerXattrs  = 1
	headerDigests = 2

	inodeOpaque = 1

	chunkZeros  = 1
	chunkSummed = 2

	noMember = 1<<32 - 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is the file's, decoded.
type header struct {
	format                                   Format
	flags                                    uint8
	blobSize, prefetch, fileBytes            int64
	files                                    uint32
	inodes, chunks, members, dirents, xattrs uint32
	strings, fileSize                        uint64
	checksum                                 uint32
}

// size is that of a file with such tables.
func (h *header) size() uint64 {
	return headerSize + uint64(h.inodes)*inodeSize + uint64(h.chunks)*chunkSize + uint64(h.members)*memberSize +
		uint64(h.dirents)*direntSize + uint64(h.xattrs)*xattrSize + h.strings
}

package estargz

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
)

// Footers, as they lie at the very end of a blob. All are valid in their
// compression's own stream: an empty gzip member whose header has an Extra
// field, or a zstd frame that decoders skip.
//
// eStargz, 51 bytes (46 with an external TOC):
//
//	0   10  gzip header: 1f 8b 08, flags 04 (FEXTRA), time, xfl, os
//	10   2  XLEN, little-endian: 26 (21)
//	12   2  'S' 'G'
//	14   2  length of the subfield, little-endian: 22 (17)
//	16  16  offset of the TOC's gzip member, hexadecimal (absent)
//	32   6  "STARGZ" ("STARGZEXTERNALTOC", 17 bytes at 16)
//	38  13  empty deflate stream (5), CRC and size (8)
//
// Legacy stargz, 47 bytes: the same without the four bytes of subfield header
// (XLEN 22), which made the Extra field invalid by RFC 1952.
//
// zstd:chunked, 40 or 64 bytes, in a skippable frame of its own, little-endian:
//
//	-8   4  50 2a 4d 18, a skippable frame's magic
//	-4   4  40 or 64
//	0    8  offset of the compressed TOC (behind its skippable frame's 8 bytes)
//	8    8  its size
//	16   8  its uncompressed size
//	24   8  type: 1
//	32  24  only in the long form: offset, size and uncompressed size of tar-split data
//	-8   8  "GnUlInUx" (short form) or "GNUlInUx" (long form)
const (
	footerEStargz = 51
	footerExtern  = 46
	footerStargz  = 47

	footerZstdShort = 40
	footerZstdLong  = 64
	skippableHeader = 8

	externMagic = "STARGZEXTERNALTOC"
	stargzMagic = "STARGZ"
)

// MinTail is how many of a blob's last bytes ParseFooter needs to see any
// footer (the whole blob where it is shorter).
const MinTail = footerZstdLong + skippableHeader

// TailSize is how much of a blob's end is worth asking for at once: it holds
// every footer, and for most layers the TOC as well. That of a minimal Debian,
// which is below most images, has 306 KiB.
const TailSize = 320 << 10

// A TOC takes 0.4 to 0.6 % of a Debian layer, of one with larger files less.
const (
	tailShare = 200
	maxTail   = 2 << 20
)

// TailOf is TailSize for a blob of this size, 0 when it is not known: a larger layer has a larger
// TOC, which would take one more request.
func TailOf(blobSize int64) int64 { return max(TailSize, min(blobSize/tailShare, maxTail)) }

// ParseFooter finds the TOC of a blob of blobSize bytes from its last bytes
// (at least MinTail of them, or the whole blob where it is shorter; more is
// fine, and Location.Within may then find the TOC in them).
// ErrNotLazy when there is no known footer; ErrCorrupt when there is one that
// points outside the blob.
func ParseFooter(tail []byte, blobSize int64) (Location, error) {
	if int64(len(tail)) > blobSize {
		return Location{}, corruptf("tail of %d bytes of a blob of %d bytes", len(tail), blobSize)
	}
	if int64(len(tail)) < min(blobSize, MinTail) {
		return Location{}, fmt.Errorf("tail of %d bytes is too short for a footer: %d are needed", len(tail), min(blobSize, MinTail))
	}
	if loc, ok, err := parseZstdFooter(tail, blobSize); ok || err != nil {
		return loc, err
	}
	if loc, ok, err := parseGzipFooter(tail, blobSize); ok || err != nil {
		return loc, err
	}
	return Location{}, fmt.Errorf("blob of %d bytes: no footer: %w", blobSize, ErrNotLazy)
}

var (
	skippableMagic = []byte{0x50, 0x2a, 0x4d, 0x18}
	chunkedMagic   = []byte("GnUlInUx")
	chunkedMagic64 = []byte("GNUlInUx")
)

func parseZstdFooter(tail []byte, blobSize int64) (Location, bool, error) {
	if !bytes.HasSuffix(tail, chunkedMagic) && !bytes.HasSuffix(tail, chunkedMagic64) {
		return Location{}, false, nil
	}
	for _, size := range []int{footerZstdShort, footerZstdLong} {
		if len(tail) < size+skippableHeader {
			continue
		}
		frame := tail[len(tail)-size-skippableHeader:]
		if !bytes.HasPrefix(frame, skippableMagic) || binary.LittleEndian.Uint32(frame[4:]) != uint32(size) {
			continue
		}
		loc, err := zstdLocation(frame[skippableHeader:], blobSize-int64(len(frame)))
		return loc, true, err
	}
	return Location{}, false, nil
}

// zstdLocation reads the fields that both forms of the footer begin with. The
// TOC ends before the footer's frame, at offset end.
func zstdLocation(f []byte, end int64) (Location, error) {
	offset, size := binary.LittleEndian.Uint64(f), binary.LittleEndian.Uint64(f[8:])
	raw, kind := binary.LittleEndian.Uint64(f[16:]), binary.LittleEndian.Uint64(f[24:])
	if kind != manifestTypeCRFS {
		return Location{}, fmt.Errorf("zstd:chunked footer: TOC of type %d: %w", kind, ErrNotLazy)
	}
	if offset < skippableHeader || size == 0 || offset > uint64(end) || size > uint64(end)-offset {
		return Location{}, corruptf("zstd:chunked footer: TOC of %d bytes at offset %d, footer at %d", size, offset, end)
	}
	if raw > 1<<62 {
		return Location{}, corruptf("zstd:chunked footer: uncompressed TOC of %d bytes", raw)
	}
	return Location{Format: FormatZstdChunked, Offset: int64(offset), Size: int64(size), UncompressedSize: int64(raw)}, nil
}

func parseGzipFooter(tail []byte, blobSize int64) (Location, bool, error) {
	if extra, ok := gzipExtra(tail, footerEStargz); ok && isSubfield(extra) && bytes.HasSuffix(extra, []byte(stargzMagic)) {
		loc, err := gzipLocation(FormatEStargz, extra[4:20], blobSize-footerEStargz)
		return loc, true, err
	}
	if extra, ok := gzipExtra(tail, footerStargz); ok && bytes.HasSuffix(extra, []byte(stargzMagic)) {
		loc, err := gzipLocation(FormatStargz, extra[:16], blobSize-footerStargz)
		return loc, true, err
	}
	if extra, ok := gzipExtra(tail, footerExtern); ok && isSubfield(extra) && string(extra[4:]) == externMagic {
		return Location{Format: FormatEStargzExtern}, true, nil
	}
	return Location{}, false, nil
}

// gzipExtra returns the Extra field of the gzip member that the last size bytes
// of tail are, if they are one whose Extra field fills it but for an empty
// stream.
func gzipExtra(tail []byte, size int) ([]byte, bool) {
	const fixed, xlen, rest = 10, 2, 13 // header, length of Extra, empty stream and trailer
	if len(tail) < size {
		return nil, false
	}
	f := tail[len(tail)-size:]
	if f[0] != 0x1f || f[1] != 0x8b || f[2] != 8 || f[3] != 4 {
		return nil, false
	}
	n := int(binary.LittleEndian.Uint16(f[fixed:]))
	if fixed+xlen+n+rest != size {
		return nil, false
	}
	return f[fixed+xlen:][:n], true
}

// isSubfield checks eStargz' header of the only subfield.
func isSubfield(extra []byte) bool {
	return extra[0] == 'S' && extra[1] == 'G' && int(binary.LittleEndian.Uint16(extra[2:])) == len(extra)-4
}

// gzipLocation reads the offset of a TOC that reaches up to the footer at end.
func gzipLocation(format Format, hex []byte, end int64) (Location, error) {
	offset, err := strconv.ParseUint(string(hex), 16, 63)
	if err != nil {
		return Location{}, corruptf("%s footer: TOC offset %q: %w", format, hex, err)
	}
	if int64(offset) >= end {
		return Location{}, corruptf("%s footer: TOC at offset %d, footer at %d", format, offset, end)
	}
	return Location{Format: format, Offset: int64(offset), Size: end - int64(offset)}, nil
}

package estargz

import "strconv"

// Format is the way in which a layer blob can be read in parts.
type Format uint8

const (
	FormatUnknown       Format = iota
	FormatEStargz              // gzip members, TOC in the last one, digest over the TOC's JSON
	FormatStargz               // legacy stargz (crfs): no chunk digests, no TOC digest
	FormatZstdChunked          // zstd frames, TOC in a skippable frame, digest over the compressed TOC
	FormatEStargzExtern        // eStargz whose TOC lies in a blob of its own
)

// String is for logs and reports.
func (f Format) String() string {
	switch f {
	case FormatUnknown:
		return "unknown"
	case FormatEStargz:
		return "estargz"
	case FormatStargz:
		return "stargz"
	case FormatZstdChunked:
		return "zstd:chunked"
	case FormatEStargzExtern:
		return "estargz with an external TOC"
	}
	return "format " + strconv.Itoa(int(f))
}

func (f Format) known() bool { return f > FormatUnknown && f <= FormatEStargzExtern }

// Location says where a blob keeps its TOC.
type Location struct {
	Format           Format
	Offset, Size     int64 // bytes of the blob; both 0 for FormatEStargzExtern
	UncompressedSize int64 // 0 when unknown
}

// Within returns the TOC's bytes when the tail of a blob of blobSize bytes, as
// given to ParseFooter, holds all of them; the result is a part of tail. False
// also for an external TOC.
func (l Location) Within(tail []byte, blobSize int64) ([]byte, bool) {
	begin := blobSize - int64(len(tail))
	if l.Size <= 0 || l.Offset < begin || l.Offset > blobSize || l.Size > blobSize-l.Offset {
		return nil, false
	}
	from := l.Offset - begin
	return tail[from : from+l.Size], true
}

// payloadEnd is the offset at which the bytes of files end at the latest.
func (l Location) payloadEnd(blobSize int64) int64 {
	if l.Format == FormatEStargzExtern {
		return blobSize
	}
	return l.Offset
}

// check says whether the TOC can lie where l says in a blob of blobSize bytes.
func (l Location) check(blobSize int64) error {
	switch {
	case !l.Format.known():
		return corruptf("TOC location: %s", l.Format)
	case blobSize <= 0:
		return corruptf("TOC location: blob size %d", blobSize)
	case l.Format == FormatEStargzExtern:
		return nil
	case l.Offset < 0 || l.Size <= 0 || l.Offset >= blobSize || l.Size > blobSize-l.Offset:
		return corruptf("TOC of %d bytes at offset %d lies outside the blob of %d bytes", l.Size, l.Offset, blobSize)
	}
	return nil
}

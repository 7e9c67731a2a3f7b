package estargz

import (
	"context"
	"errors"

	digest "github.com/opencontainers/go-digest"
)

// Format is the way in which a layer blob can be read in parts.
type Format uint8

const (
	FormatUnknown       Format = iota
	FormatEStargz              // gzip members, TOC in the last one, digest over the TOC's JSON
	FormatStargz               // legacy stargz (crfs): no chunk digests, no TOC digest
	FormatZstdChunked          // zstd frames, TOC in a skippable frame, digest over the compressed TOC
	FormatEStargzExtern        // eStargz whose TOC lies in a blob of its own
)

var (
	// ErrNotLazy says that a blob carries no table of contents that we know:
	// it can only be used whole.
	ErrNotLazy = errors.New("no table of contents")
	// ErrCorrupt is wrapped by every error that is caused by the bytes of a
	// TOC, of a compact file or of a chunk.
	ErrCorrupt = errors.New("corrupt")
	// ErrNotExist is returned by look-ups of names that a TOC does not have.
	ErrNotExist = errors.New("no such entry")
)

// Hints is what a manifest's layer annotations say of a blob.
type Hints struct {
	Format    Format        // FormatUnknown when the annotations do not say
	TOCDigest digest.Digest // what the manifest vouches for; "" when nothing does
	TOC       Location      // zstd:chunked's manifest-position; zero when unknown
}

// ParseHints reads the annotations of a layer descriptor (or the snapshot
// labels of the same names). Unknown keys are ignored and a key with an empty
// value is absent.
func ParseHints(annotations map[string]string) (Hints, error) { panic("skeleton") }

// Location says where a blob keeps its TOC.
type Location struct {
	Format           Format
	Offset, Size     int64 // bytes of the blob; both 0 for FormatEStargzExtern
	UncompressedSize int64 // 0 when unknown
}

// TailSize is how much of a blob's end is worth asking for at once: it holds
// every footer, and for most layers the TOC as well.
const TailSize = 256 << 10

// ParseFooter finds the TOC of a blob of blobSize bytes from its last bytes
// (at least MinTail of them, or the whole blob where it is shorter).
// ErrNotLazy when there is no known footer; ErrCorrupt when there is one that
// points outside the blob.
func ParseFooter(tail []byte, blobSize int64) (Location, error) { panic("skeleton") }

// Limits bound what a hostile TOC may cost. Zero fields mean the defaults.
type Limits struct {
	TOCSize int64 // bytes of decompressed JSON
	Entries int64 // entries, chunks and hard links together
}

// Unverified is a TOC that nothing has vouched for yet. It gives nothing away
// but Verify and VerifiedByBlob.
type Unverified struct{ _ int }

// ReadTOC takes the bytes of a TOC as they lie in the blob at loc (or in the
// external TOC blob) and decompresses them within lim.
func ReadTOC(ctx context.Context, loc Location, blobSize int64, compressed []byte, lim Limits) (*Unverified, error) {
	panic("skeleton")
}

// Verify compares the TOC with the digest that the manifest carries.
func (u *Unverified) Verify(want digest.Digest) (*Verified, error) { panic("skeleton") }

// VerifiedByBlob is for a blob that was fetched whole and whose digest the
// caller has verified (legacy stargz, or no TOC digest in the manifest).
func (u *Unverified) VerifiedByBlob() *Verified { panic("skeleton") }

// Verified is a TOC whose bytes are vouched for; its contents may still be
// hostile, which Compile finds out.
type Verified struct{ _ int }

// Compile checks the entries and writes the compact form (see Open) to a new
// file at path: temporary file, then rename. Errors wrap ErrCorrupt and name
// the entry.
func (v *Verified) Compile(ctx context.Context, path string) error { panic("skeleton") }

// TOC is the compact form of one layer's table of contents, memory-mapped. It
// is safe for concurrent use; its indices are checked at use, so a damaged file
// gives errors that wrap ErrCorrupt. The mapping ends with Close, which must not
// run while another method does: owners count their readers.
type TOC struct{ _ int }

// Open maps a file that Compile wrote and checks its size and checksum.
func Open(path string) (*TOC, error) { panic("skeleton") }

func (t *TOC) Close() error { panic("skeleton") }

// Root is the inode index of a layer's root directory.
const Root uint32 = 0

// Format of the blob that the TOC describes, and its size in bytes.
func (t *TOC) Format() Format  { panic("skeleton") }
func (t *TOC) BlobSize() int64 { panic("skeleton") }

// Len is the number of inodes: valid indices are below it.
func (t *TOC) Len() uint32 { panic("skeleton") }

// HasXattrs says whether any inode has an extended attribute or any directory
// is opaque, so that the layer has to be served with xattr calls.
func (t *TOC) HasXattrs() bool { panic("skeleton") }

// HasChunkDigests is false for legacy stargz.
func (t *TOC) HasChunkDigests() bool { panic("skeleton") }

// PrefetchEnd is the blob offset up to which the landmark asks to prefetch; 0
// when the layer has no prefetch landmark (or has the no-prefetch one).
func (t *TOC) PrefetchEnd() int64 { panic("skeleton") }

// UncompressedSize and the number of regular files, for reports.
func (t *TOC) FileBytes() int64 { panic("skeleton") }

// Inode is one inode in the kernel's terms.
type Inode struct {
	Mode      uint32 // S_IFMT | permissions | suid, sgid, sticky
	UID, GID  uint32
	Nlink     uint32
	Rdev      uint32 // kernel's encoding (new_encode_dev), as FUSE wants it
	Size      int64  // bytes of a regular file, length of a symlink's target
	Mtime     int64  // seconds
	MtimeNsec uint32
	Opaque    bool   // directory that hides what lies below it
	Xattrs    bool   // has extended attributes (Opaque not counted)
	Entries   uint32 // children of a directory
}

// Inode fills out from inode i. A whiteout is a character device 0:0.
func (t *TOC) Inode(i uint32, out *Inode) error { panic("skeleton") }

// Lookup finds name in directory dir: ErrNotExist when there is none. It does
// not allocate.
func (t *TOC) Lookup(dir uint32, name []byte) (uint32, error) { panic("skeleton") }

// Entry returns the n-th child of directory dir, in the order of names (n is
// below Inode.Entries). name points into the mapping: copy it to keep it.
func (t *TOC) Entry(dir uint32, n uint32) (name []byte, inode uint32, err error) { panic("skeleton") }

// Symlink returns the target of a symlink; it points into the mapping.
func (t *TOC) Symlink(i uint32) ([]byte, error) { panic("skeleton") }

// Xattr returns one extended attribute, ErrNotExist without it; the bytes point
// into the mapping. trusted.overlay.* and user.overlay.* are never there.
func (t *TOC) Xattr(i uint32, name []byte) ([]byte, error) { panic("skeleton") }

// Xattrs calls f with each attribute of inode i until f returns false.
func (t *TOC) Xattrs(i uint32, f func(name, value []byte) bool) error { panic("skeleton") }

// Chunk is a part of a file that can be verified alone.
type Chunk struct {
	FileOffset int64 // where it begins in the file
	Size       int64 // decompressed bytes
	Member     uint32
	Inner      int64 // where it begins in the decompressed member
	Zeros      bool  // all zeros: no member, no digest
	Digest     digest.Digest
}

// Member is a part of the blob that can be decompressed alone: one gzip member
// or zstd frame (and what follows it up to the next one), with its chunks.
type Member struct {
	Offset, Size int64 // compressed bytes [Offset, Offset+Size) of the blob
}

// FindChunk returns the index of the chunk that holds byte off of file i.
// Chunk indices of one file are consecutive.
func (t *TOC) FindChunk(i uint32, off int64) (uint32, error) { panic("skeleton") }

// Chunk fills out from chunk c.
func (t *TOC) Chunk(c uint32, out *Chunk) error { panic("skeleton") }

// Member returns the compressed range of member m.
func (t *TOC) Member(m uint32) (Member, error) { panic("skeleton") }

// Decode decompresses member m from its compressed bytes (the whole range of
// Member) and calls emit with each chunk in it, verified against its digest, in
// the order of Inner, until emit returns false. Chunks with index in [first, last]
// are emitted, others only skipped over. data is valid during the call only.
// Errors wrap ErrCorrupt when the bytes are at fault and name the chunk.
func (t *TOC) Decode(m uint32, compressed []byte, first, last uint32, emit func(chunk uint32, data []byte) bool) error {
	panic("skeleton")
}

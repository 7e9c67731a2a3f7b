package estargz

// Limits bound what a hostile TOC may cost. Zero fields mean the defaults. A
// layer beyond a limit is not lazy: errors wrap ErrLimit and it can still be
// used whole.
type Limits struct {
	TOCSize int64 // bytes of decompressed JSON; default 1 GiB
	Entries int64 // entries, chunks and hard links together; default 2 million

	// ChunkSize is the largest chunk, in bytes. A chunk is in memory as a whole
	// when it is verified. Writers of eStargz default to 4 MiB and newer ones of
	// zstd:chunked to less; older ones made one chunk of each file, however
	// large. Default 256 MiB. Chunks of zeros have no limit.
	ChunkSize int64

	// MemberSize is how far into a decompressed member a chunk may end, in
	// bytes: what has to be decompressed to reach it. Default 1 GiB.
	MemberSize int64
	// MemberBytes is how many bytes of the blob a member may take; they are in
	// memory as a whole when a chunk of it is decompressed. What lies between two
	// files belongs to the first one's member. Default 320 MiB: the largest chunk,
	// incompressible, and the headers of 100,000 empty files.
	MemberBytes int64
}

func (l Limits) withDefaults() Limits {
	def := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&l.TOCSize, 1<<30)
	def(&l.Entries, 2_000_000)
	def(&l.ChunkSize, 256<<20)
	def(&l.MemberSize, 1<<30)
	def(&l.MemberBytes, 320<<20)
	l.MemberSize = max(l.MemberSize, l.ChunkSize)
	return l
}

// The limits of Linux' own interfaces, which no layer can exceed and still be
// extracted.
const (
	maxName      = 255       // NAME_MAX
	maxPath      = 4095      // PATH_MAX without its NUL
	maxSymlink   = 4095      // the same, for targets
	maxXattrName = 255       // XATTR_NAME_MAX
	maxXattr     = 64 << 10  // XATTR_SIZE_MAX
	maxXattrList = 64 << 10  // XATTR_LIST_MAX: all names of an inode with their NULs
	maxDepth     = 1024      // directories in directories; half of what a path can name
	maxFollowed  = 255       // symlinks on the way to one entry, as continuity's RootPath has it
	maxTodo      = 8 << 10   // components of a path after symlinks were put in
	maxSteps     = 1 << 27   // components walked for all entries: else symlinks cost hours
	maxFileSize  = 1<<62 - 1 // sums of two never overflow
)

// maxRatio is the most that one compressed byte can become in the blob's
// compression: RFC 1951 allows 1032 bytes per byte, and a zstd block of 4 bytes
// stands for up to 128 KiB of one byte value.
func (f Format) maxRatio() int64 {
	if f == FormatZstdChunked {
		return 128 << 10 / 4
	}
	return 1032
}

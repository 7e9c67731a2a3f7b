// Package layer turns a table of contents and a remote blob into verified file
// contents: bytes at (inode, offset).
//
// # Words
//
// A Pool holds what all layers of a daemon share: the memory for chunks and the
// settings. A Layer is one lazily readable layer. A member is the part of the
// blob that can be decompressed alone, a chunk the part of a file that can be
// verified alone; a window is what one request asks for around a member that
// somebody waits for.
//
// # A read
//
// A chunk in the Pool's cache is copied. Otherwise the reader joins, or starts,
// the flight of the member that holds the chunk: the window is made present in
// the blob (no memory is held meanwhile, so that readers of a dead registry
// can't starve others), then, within the Pool's budget of memory, the member is
// read, decompressed and verified, and its chunks go to the cache and to all who
// wait. A flight goes on as long as one reader waits, whoever started it.
// What has landed is looked into for names of other files, and those are wished for:
// fetched and decompressed by flights that nobody waits for, until a reader joins.
//
// A chunk that was read is handed out once as a whole (whole.go), to be kept by the kernel,
// and makes room in the cache.
//
// A flight that needs no wait is done by the reader itself: most of a walk's are.
//
// # Scans
//
// Reads are watched for walks, files in the order of the blob (walk.go). Ahead of
// one that reads everything the blob is fetched in large ranges (scan.go), and
// what is present is decompressed into the cache on all processors (unpack.go).
// A layer of which readers have waited for long is fetched whole.
//
// Bytes that fail their digest are forgotten by the blob and fetched again, a few times,
// before that is an error: the record of what is present is a hint, a power cut may
// have left garbage in the file, and one host of several may lie.
//
// # What is never done
//
// No byte is returned that was not verified: against the chunk's digest, or,
// where a layer has none (legacy stargz), by the digest of the whole blob.
//
// # Lifetime
//
// A Layer is made with one hold, which Close gives up; each request takes one
// more by Acquire. The TOC is unmapped and the blob closed by whoever gives up
// the last. Close ends the reads under way, so that is soon.
//
// # Locks
//
//	Layer.flights > Layer.goroutines
//	Pool.expiry > cache
//	windows, readAhead, walks, wishes, python, memory
//
// have a mutex each; none else is taken while one is held, and none is held
// during I/O, decompression or a call of a Blob.
package layer

// Package estargz turns the layer formats that can be read in parts into one
// model: a table of contents (TOC) of inodes, directory entries, chunks and
// members. It is pure: bytes in, values out; it knows no network, no cache and
// no kernel.
//
// # Words
//
// An *entry* is one element of the TOC's JSON. A *member* is a part of the blob
// that can be decompressed alone: a gzip member or a zstd frame, with whatever
// follows it up to the next one. A *chunk* is a part of a file that can be
// verified alone; one or more chunks lie in a member. A *landmark* is an empty
// entry whose position says how much of a blob is worth prefetching.
//
// # The way of a TOC
//
//	ParseHints   what the manifest says of the blob (untrusted position, trusted digest)
//	ParseFooter  where the TOC lies, from the last bytes of the blob
//	ReadTOC      -> *Unverified: its bytes, of which nothing is shown
//	Compile      -> a file:      entries checked, tree built, and, if the bytes are the
//	                             ones that the manifest vouches for, compact form written
//	Open         -> *TOC:        the file mapped; answers without a heap object per entry
//
// What is verified may still be hostile: a manifest can vouch for anything.
// Compile refuses what can't be a tree of files (names that leave the root,
// files as parents, chunks that do not tile their file, offsets outside the
// blob), and is bounded in time and memory by Limits. A compact file may be
// damaged on disk: Open checks size and checksum, and every index is checked
// where it is used, so that damage gives errors that wrap ErrCorrupt and never a
// panic.
//
// # What tree a TOC means
//
// The tree is the one that extracting the layer's tar gives (containerd's
// archive.Apply with its overlay whiteouts), entry by entry and in order:
//
//   - A later entry of the same name replaces an earlier one, with what was below
//     it. A directory that is declared again keeps its children, and takes the
//     new attributes and extended attributes.
//   - Parents that were never declared are directories 0755 of root, modified at
//     the epoch. Parents that are symlinks are followed inside the layer.
//   - Hard links share an inode; the attributes in the link's own entry win, as
//     they do when a tar is extracted. A link may come before its target.
//   - ".wh.NAME" is a character device 0:0 called NAME; ".wh..wh..opq" makes its
//     directory opaque; other names that begin with ".wh..wh." are dropped. Where
//     a layer has both a whiteout and a real entry of one name, the real entry
//     wins in either order, and hides what lies below: a directory is opaque then.
//   - Times before 1970 are the epoch. Symlinks have mode 0777. user.* attributes
//     of anything but files and directories are dropped, as the kernel refuses
//     them; trusted.* and user.overlay.* are never served.
//   - Landmarks and the TOC's own entry in the root are not part of the tree.
//
// # Memory
//
// ReadTOC keeps the compressed bytes it is given. Compile
// streams the JSON, decompresses it in a goroutine beside the parser's, and needs about 250 bytes for each entry (with names of a
// usual length) until it returns: 9 MB for a layer of 35,000 entries, and 500 MB
// for one that uses up the default limit of two million; few of them are objects
// that the garbage collector has to look at. A TOC costs the heap a few hundred bytes,
// whatever its size.
//
// # Concurrency
//
// An Unverified is immutable after it was made. A TOC is safe for
// concurrent use until Close, which must not run while another method does.
package estargz

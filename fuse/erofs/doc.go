// Package erofs writes the metadata of a layer as an EROFS image, so that the kernel
// knows a layer's tree by itself and asks for nothing but the bytes of files.
//
// An image (Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h of Linux) has
// two parts here. The metadata, inodes, directories, symlinks and extended attributes,
// lie in a local file without a name, which is made from the TOC when a layer is
// mounted: nothing of it is kept, as the compact TOC is enough to make it again. The
// bytes of files lie on a second device, which is a file of a FUSE mount: all regular
// files, one behind the other in the order of their chunks, each at a block of its own. That
// file exists only as answers to READs.
//
// Only what Linux 5.16 knows is used: extended inodes, plain and inline data, inline
// xattrs, chunks of files with the number of their device. (Plain files on a device that
// is found by its unified address would do, but Linux 6.18 then reads each page by
// itself: it compares addresses before and after the translation.)
//
// # Layout
//
//	0            nothing; at 1024 the superblock, at 1152 the device slot
//	4096         inodes, 64 bytes each, with their xattrs and, where it fits into the
//	             block, the target of a symlink or the end of a directory behind them; and
//	             where a file's chunks lie
//	...          blocks of directories, and of symlinks too long for that
//	...          two tables for this process, which the kernel does not know: see Image
//
// # Memory
//
// Build needs 12 bytes for an inode until it returns, and writes a file of about
// 80 bytes and a name for each, and 8 for each chunk of at least a sixteenth of a file. The tables are mapped.
//
// # What has no image
//
// ErrUnsupported: an xattr of a name space that EROFS has no number for, or larger than
// 65,535 bytes; more than 16 TiB of files; metadata of more than 64 GiB.
package erofs

// Package lazyfs is the file system behind remote snapshots: it resolves layers
// (finds, fetches and verifies their tables of contents), serves them from
// directories and keeps track of how long each is needed.
//
// # Words
//
// A layer is named by the digest of its blob and the digest of the TOC that the
// manifest vouches for; an entry is such a layer while it is open here, shared by
// all images and snapshots that have it. A hold keeps an entry: a snapshot that
// is mounted, or a Resolve under way. A pending entry has a directory but no TOC
// yet (a snapshot restored from disk, before its first use).
//
// To have a blob whole, to know what is on disk of it, and to ask who may read it,
// takes no entry: Unlazy, Info and Authorize work on the blob alone.
//
// # On disk
//
//	Root/blobs    sparse files of blobs and what is present of them (package blob)
//	Root/toc      compact TOCs, by the digest that vouches for them (package layer)
//	MountRoot     the mount points of the FUSE server; nothing is stored there
//
// All of it is a cache. What is here makes a layer open without the network;
// what is missing is fetched again. Nothing else is recorded: which TOC is whose
// follows from the labels of the snapshot that asks.
//
// # What is never done
//
// Open waits for no network: it opens what is on disk, or fails, or (restoring)
// returns a pending layer. Bytes are never served before they are verified, see
// package layer.
//
// # Locks
//
//	FS.mu        entries, their holds and timers, reasons
//	entry.dirs   directories of one entry
//
// Neither is held while the other is taken, nor during I/O. Registering a
// directory with the FUSE server, which is done under entry.dirs, is none.
package lazyfs

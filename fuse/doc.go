// Package fuse serves verified tables of contents to the kernel, in the terms
// that overlayfs wants of a lower directory: whiteouts are character devices 0:0,
// opaque directories say so in an extended attribute, hard links share an inode.
//
// There is one Server for a daemon and one directory in it per layer, so that
// preparing a layer costs no mount call. A Server has two mounts:
//
//	Root/p  layers without extended attributes: GETXATTR is answered ENOSYS, which
//	        the kernel remembers for the whole mount and never asks again. Lists
//	        are empty: who copies or hashes trees takes no error for one, and then
//	        asks for nothing
//	Root/x  layers with extended attributes or opaque directories, and those of
//	        AddPending and AddExact: real answers, POSIX ACLs cached by the kernel
//
// Where the kernel can, AddImage shows a layer as an EROFS image instead, mounted below
// Root/e, and only the bytes of its files are served here, all in one file of Root/d
// (image.go). What follows is about layers that are served whole, but for the last
// sections.
//
// # Messages
//
// The kernel's caches do the work. Layers are immutable, so entries (misses
// too), attributes, symlinks and directory listings never expire; the mounts are
// read-only, which spares the attribute refresh that a read's atime would cost;
// OPEN, OPENDIR, RELEASE and FLUSH are answered ENOSYS once and then not sent. A
// second pass of find, ls -lR or tar over a layer sends no message at all but
// lists of xattrs where a program wants them (on Root/x: all xattr calls, of which
// the kernel caches none but ACLs). Overlayfs asks each regular file of a lower
// directory for trusted.overlay.metacopy when it first sees it: BuildKit's walk of
// 39,000 entries took 4 s on Root/x and 2 s on Root/p.
//
// READDIRPLUS answers every listing. On a tree of 52,000 files in 3,642
// directories a cold find through overlay sent 7,450 of it (two per directory, the
// second to learn of its end) and no LOOKUP, a cold ls -lR after it nothing but
// one READLINK per symlink; with the kernel's choice between READDIR and
// READDIRPLUS (FUSE_READDIRPLUS_AUTO) the same two sent 12,000 more messages. A
// cold tar sent 1.1 READs a file. Warm, find, ls -lR and tar through overlay took
// 0.5, 0.5 and 0.4 to 0.9 of the time that overlay took over ext4, beside other
// load on the machine.
//
// Of a large chunk the kernel is given what nobody has asked for yet (store.go): it has
// more room to keep it than the daemon. go build with a profile took 2.8 s so instead of
// 4.5, node 1.2 instead of 1.7, since chunks were decompressed three and two times before.
//
// Putting small files into the page cache ahead of a reader (NOTIFY_STORE), when a scan
// or a profile tells what comes next, was tried, one by one: a cold tar of 1.3 GB took as long
// (14.2 and 15.6 s against 15.1 and 15.8 s, and as much processor time), go build with a
// profile 4.2 s against 3.6 s, on two processors. A READ costs its caller a wait, a
// store costs the daemon the same system call and copy while others want the processor.
// With images one store is for thirty files: the same tar takes 8 to 10 s.
//
// # Node ids and inode numbers
//
// A node id is (layer number << 32 | inode index), so the server keeps nothing
// per node and FORGET has nothing to do. A layer number is never used twice in a
// mount's life: the kernel may hold pages of a removed layer under its node ids.
// 1 is the mount's root (layer number 0) and ^0 is go-fuse's own.
//
// All layers of a mount share one superblock, and overlayfs passes st_ino on, so
// inode numbers are unique over the mount: each layer has a range of its own
// below 2^32 (see inoSpace).
//
// # What never blocks
//
// Only requests inside a layer wait for its content. LOOKUP in a mount's root is
// answered from memory: the kernel holds the root's lock during it, and a wait
// there would stop every other layer. Blocked requests cost two goroutines and
// one buffer of at most maxRead bytes each; Options.MaxBackground bounds those
// that reads ahead of a file's end can be, a process's own requests are one per
// thread.
//
// # How a wait ends
//
// A read ends when its bytes are there, when Content gives up, with Dir.Remove
// (ESTALE) and with Server.Close. An INTERRUPT ends it only when the calling
// thread is being killed: most interrupts are signals like Go's SIGURG, and
// EINTR from a page fault or a stat surfaces as SIGBUS or as an error that
// programs do not expect.
//
// # Locks
//
//	Server.mu > mount.mu > Dir.mu > stateFile.mu
//
// None is held during a call of Content, a message to the kernel or a mount
// call. Requests take none of them on the usual path.
//
// # The serving process
//
// It may stat and read its own mounts (system calls give their processor away),
// but it must neither map a file of them nor start a process with an executable
// or a working directory in them: the Go scheduler waits for a page fault and for
// the time between fork and exec, a garbage collection waits for the scheduler,
// and the answer to both waits for the collection.
//
// # Refused on purpose
//
// Passthrough (its stacking depth would forbid an overlay inside a build), file
// handles that outlive a mount (node ids start anew with each), writes.
package fuse

// Package fuse serves verified tables of contents to the kernel, in the terms
// that overlayfs wants of a lower directory: whiteouts are character devices 0:0,
// opaque directories say so in an extended attribute, hard links share an inode.
//
// There is one Server for a daemon and one directory in it per layer, so that
// preparing a layer costs no mount call. A Server has two mounts:
//
//	Root/p  layers without extended attributes: xattr calls answer ENOSYS, which
//	        the kernel remembers for the whole mount and never asks again
//	Root/x  layers with extended attributes or opaque directories: real answers,
//	        POSIX ACLs cached by the kernel
//
// # Messages
//
// The kernel's caches do the work. Layers are immutable, so entries (misses
// too), attributes, symlinks and directory listings never expire; the mounts are
// read-only, which spares the attribute refresh that a read's atime would cost;
// OPEN, OPENDIR, RELEASE and FLUSH are answered ENOSYS once and then not sent. A
// second pass of find, ls -lR or tar over a layer sends no message at all (on
// Root/x: only xattr calls, of which the kernel caches none but ACLs).
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
// there would stop every other layer. Blocked requests cost one goroutine and
// one buffer of at most maxRead bytes each.
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
// # Refused on purpose
//
// Passthrough (its stacking depth would forbid an overlay inside a build), file
// handles that outlive a mount (node ids start anew with each), writes.
package fuse

// Package remotesnapshot is a containerd snapshotter over overlayfs in which a
// committed snapshot may be remote: its contents are then served by a
// [FileSystem] instead of lying in a directory of ours.
//
// # Words
//
// A plain snapshot keeps its files in root/snapshots/<id>/fs, like those of
// containerd's overlay snapshotter. A remote snapshot keeps an empty fs
// directory (which carries only the owner of the layer's root), the label
// containerd.io/snapshot/remote and the labels that say where its layer comes
// from; they are parsed into a [Source] wherever they enter, and no other code
// knows a label's name. A hold is one open [Layer]: each committed remote
// snapshot has one from its commit (or from [New]) to its removal. A hold is
// pending while the layer's table of contents is not known, which happens to
// snapshots that were found at start and that only the network can describe.
//
// # On disk
//
//	root/metadata.db          containerd's storage.MetaStore
//	root/snapshots/<id>/fs    upper directory of a plain snapshot, empty for a remote one
//	root/snapshots/<id>/work  overlayfs' work directory of an active snapshot
//	root/snapshots/new-*      directories on their way to an id
//	root/snapshots/rm-*       directories on their way out
//
// Everything below snapshots that no id in metadata.db owns is rubbish, and is
// swept at start and by Cleanup. This is the layout of stargz-snapshotter too,
// so a root can go from one to the other and back.
//
// # What waits, and for what
//
// containerd's metadata database keeps its read lock over Prepare, View and
// Update of this package and its garbage collector wants the write lock, so
// these three never wait for the network: Prepare asks the file system for a
// layer that has been resolved already, or falls back to a plain snapshot. Only
// Mounts resolves pending layers; containerd calls it without a lock. Since a
// View's mounts are used as they are returned, [ResolveViews] wraps the
// snapshotter that a client sees, outside containerd's database.
//
// # Locks
//
//	a transaction of metadata.db (at most one writes)
//	  holds.mu      which layer belongs to which id
//	  dirs.mu       which new-* directories are in use
//
// The two mutexes are leaves. No FileSystem or Layer method is called, and no
// directory is made, measured, read through or removed, under any of the three;
// a rename into or out of place is all the file I/O that a transaction sees,
// and the sweep's listing of root/snapshots, which has to agree with the ids.
//
// # Mount options
//
// An overlay mount has lowerdir, upperdir, workdir, index=off and userxattr and
// never another option: BuildKit's differ for overlayfs reads a whole image
// when it meets one that it doesn't know.
//
// # User namespaces
//
// BuildKit shifts owners itself (by chown, or by the mapping of its user
// namespace) and sets no mapping labels. The labels of containerd's clients,
// containerd.io/snapshot/uidmapping and gidmapping, are honoured as far as a
// snapshotter without idmapped mounts does: the upper directory belongs to the
// user that root is mapped to.
package remotesnapshot

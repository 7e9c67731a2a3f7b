// Package cache keeps the state of builds: it implements BuildKit's cache.Manager
// over a snapshotter, a content store and a metadata database, for plain layers
// and for layers that are mounted before they are fetched.
//
// # Words
//
// A record is what is kept of one piece of state. It is mutable (an active
// snapshot that a step writes to) or immutable, and it has parents: none (a base
// layer), one (a layer), several (a merge), or a lower and an upper one (a diff).
// A ref is a counted hold on a record. Twins are a mutable record and the
// immutable one that was committed from it, as long as both share the active
// snapshot; Finalize ends that by committing the snapshot. A layer is a base
// layer or layer record. A blob is a layer's compressed form; a layer that came
// from a blob and was not extracted is blob-only, and lazy while its blob is not
// in the content store or its snapshot is remote. A source says where the blob of
// a lazy layer can be asked for.
//
// # What is stored
//
// One item of the metadata store for each record, under BuildKit's keys with
// BuildKit's meaning (meta.go), and one lease with the record's id for its
// snapshot and blob, one with the suffix "-variants" for other compressions of
// the blob, one with "-view" while it is mounted read-only (lease.go). So a state
// directory can be opened by stock buildkitd and taken back. Keys of our own
// begin with "lazykit."; stock ignores them.
//
// What can be derived is not stored: whether a layer is lazy, and what a lazy
// layer holds on disk, are asked of those who know.
//
// # Lazy layers
//
// The manager asks for abilities, never for a snapshotter's name. With a
// remotesnapshot.Lazy, layers that come from a registry are resolved in parallel,
// with no lock held, and then prepared as remote snapshots in the order of the
// chain (prepare.go). A layer that can't be lazy is pulled and extracted, alone:
// those above it stay lazy. Sessions of builds may authenticate a layer's reads
// while a build prepares it or has it mounted (source.go).
//
// # Locks
//
//	state.io            one record, or two twins: what is mounted, committed, erased
//	  Manager.mu        the table of records, their refs and twins
//
// Manager.mu is a leaf and is never held over I/O, a database, the network or a
// call of another package's code. state.io may be held over I/O; nobody who holds
// one takes another, except from a child record to its parent. Work that several
// want (preparing a layer, fetching a blob, computing one) is shared under
// flightcontrol, which holds no lock.
//
// # After an error
//
// An operation that fails leaves records, refs, leases and mounts as they were.
// What can't be erased (a database that refuses) is kept in a list and erased at
// the next prune, or at the next start, since it is marked as deleted first.
package cache

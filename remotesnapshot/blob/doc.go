// Package blob keeps remote blobs (layers as they lie in a registry) partly on
// disk and fetches the missing ranges of them.
//
// # Words
//
// A blob is named by its digest and has one sparse file of its own bytes plus
// one small file that lists the ranges present (the hint). A demand is a caller
// that waits for a range. A flight is one range on its way: it is queued until a
// connection slot is granted, running while one HTTP request delivers it, and
// queued again between two tries. A candidate is one registry host together
// with one repository that can be asked for the blob.
//
// # How a range becomes present
//
// A demand is registered and the parts of it that are neither present nor
// covered by a flight become flights; so two readers of overlapping ranges share
// the requests. Bytes are written to the file and counted as present as they
// arrive: a demand is answered when its last byte is there, not when the request
// ends. A demand for bytes that a blocked process needs cuts its range out of
// queued flights, and out of running ones that would need too long to get there.
// A flight lives as long as some demand overlaps what it still has to fetch (or
// until it is done when little is left); then its request is cancelled.
//
// Every request asks for a single range. A host that ignores the range and
// sends the whole blob is read to the end, since the bytes are on the way anyway.
//
// # What is trusted
//
// Nothing here verifies chunks: the caller does and calls [Blob.Drop] for bytes
// that proved wrong. The hint is written without fsync and may be wrong after a
// power loss; the same Drop repairs that. [Blob.Complete] verifies the digest of
// the whole blob, and only then the blob is local. The file of a local blob is
// never written again, because other stores may hold a hard link to it.
//
// # Waiting
//
// A demand gives up when [Options.GiveUp] passed without a byte for it, or when
// its context ends. Flights themselves retry for as long as somebody waits,
// over all candidates in order, with exponential backoff between the rounds; an
// answer that can't change (every candidate says that the blob is not there or
// not allowed, twice) ends them earlier.
//
// # Locks
//
//	Store.mu              the table of open blobs, the table of hosts
//	completion.mu         who waits for a blob to become local
//	entry.loadMu, flushMu one at a time opens the files, writes the hint
//	  entry.mu            one blob: ranges, demands, flights, origins
//	    slots.mu          connections of one host
//	    host.mu           what is known of a host
//
// Indented ones may be taken while an outer one is held. No I/O, network or
// callback runs under any but loadMu and flushMu, which guard nothing else.
package blob

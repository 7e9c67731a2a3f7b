package prune

import (
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

// SizeUnknown is the Size of a record that nobody has measured yet.
const SizeUnknown = -1

// View is the records of a manager at one moment, in any order. All functions
// only read it, and what they return shares no memory with it.
type View []Record

// Record is what there is to know about one record.
type Record struct {
	// ID is unique in a view.
	ID string
	// Parents are the IDs of the records that this one holds. The same parent may
	// be there twice (a diff of a record with itself). One that is not in the view
	// is reported and otherwise ignored.
	Parents []string
	// Twin is the ID of the record that has the same snapshot, if there is one.
	// It suffices that one of the two names the other. A Twin that is not in the
	// view, or is mutable exactly if this record is, is ignored.
	Twin string
	// Users counts the holders that are neither records nor the twin: refs that
	// somebody has in hand.
	Users int
	// Removing says that the record's removal has begun. It is not listed, not
	// counted and not removed again, but holds its parents until it has left the
	// view. When twins are removed, both of them say so.
	Removing bool

	// Mutable says that the contents may still change.
	Mutable bool
	// Type is what the record is for; "" means regular.
	Type client.UsageRecordType
	// Size is the disk space in bytes that would come free with the record alone,
	// without its parents. Negative (SizeUnknown) if nobody has measured it. A
	// mutable record with users counts as empty, since its size is changing.
	Size int64
	// CreatedAt is when the record was made.
	CreatedAt time.Time
	// LastUsedAt is when the last user let go of it, nil if it had none.
	LastUsedAt *time.Time
	// UsageCount is how often that happened.
	UsageCount int
	// Description is shown to people.
	Description string
	// Chain has the digests of the blobs from the lowest layer up to this one,
	// which is how an image store knows the record. A layer without a blob is "".
	Chain []digest.Digest
}

// SharedFunc reports whether somebody outside of the manager keeps the data of a
// record, given its ID and its Chain. It is asked about listed records only. It
// must not change its mind during a call. A nil SharedFunc knows of nothing.
type SharedFunc func(id string, chain []digest.Digest) bool

// Unsized returns the IDs of the listed records whose sizes are unknown, sorted.
// To measure them before a prune with a limit is up to the manager: an unknown
// size counts as 0 there, so that too little is removed rather than too much.
func Unsized(v View) []string {
	var ids []string
	for _, n := range newGraph(v).listed() {
		if n.size() < 0 {
			ids = append(ids, n.record.ID)
		}
	}
	return ids
}

package layer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// Priority of a fetch: a higher one is served first.
type Priority uint8

const (
	Background Priority = iota // nobody is known to need the bytes
	Prefetch                   // they will probably be needed soon
	Blocked                    // somebody waits for them
)

// Blob is what a layer needs of a remote blob. Safe for concurrent use.
type Blob interface {
	// Digest names the blob.
	Digest() digest.Digest
	// Size in bytes; 0 until a request or an earlier run has told it.
	Size() int64
	// Tail makes the last n bytes present (all when the blob is shorter),
	// returns them and learns the blob's size on the way.
	Tail(ctx context.Context, n int64) (tail []byte, size int64, err error)
	// ReadAt is io.ReaderAt with a context; it fetches what is missing first.
	ReadAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error)
	// Fetch makes a range present: its missing parts, single-flight.
	Fetch(ctx context.Context, p Priority, off, size int64) error
	// FetchAll makes ranges present, which are asked for as they are, at once, and
	// in their order as far as connections are free.
	FetchAll(ctx context.Context, p Priority, ranges []Range) error
	// Start is Fetch, of one range or of several that are requests of their own, in two
	// steps: from its return on, other demands join this one. wait must be called once.
	Start(p Priority, ranges ...Range) (wait func(ctx context.Context) error)
	// Present says whether a range needs no request. Never blocks.
	Present(off, size int64) bool
	// Drop forgets a range whose bytes have proved wrong, and returns the names of
	// the hosts that they are from, as far as that is known.
	Drop(off, size int64) (hosts []string)
	// Complete makes the blob local: whole, and verified by its digest.
	Complete(ctx context.Context, p Priority) error
	// Local says whether the blob is whole and verified.
	Local() bool
	// Fetched is the number of bytes present.
	Fetched() int64
	// Link is how many bytes a second one request brought lately, and how long it took
	// to begin; 0: not known.
	Link() (rate int64, wait time.Duration)
	// Check asks the origins whether the blob can still be had.
	Check(ctx context.Context) error
	// Close ends the layer's hold on the blob.
	Close() error
}

// readFull fills dst, for which somebody waits. A range that the blob does not
// have is the fault of what named it.
func readFull(ctx context.Context, b Blob, dst []byte, off int64) error {
	_, err := b.ReadAt(ctx, Blocked, dst, off)
	if errors.Is(err, io.EOF) {
		return fmt.Errorf("%d bytes at %d are not in the blob: %w", len(dst), off, estargz.ErrCorrupt)
	}
	return err
}

package fuse

import (
	"context"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// Content is one layer as the server needs it: its verified TOC and its bytes.
type Content interface {
	// Acquire holds the content for the time of one request: the TOC stays
	// mapped until Release. It fails (ESTALE to the kernel) once the content
	// is closed; for a directory of AddPending it may also fail because the
	// TOC can't be had (EIO). Each success is paired with one Release; the
	// TOC's inodes are the same at each success.
	Acquire() (*estargz.TOC, error)
	Release()

	// ReadAt fills dst from byte off of regular file inode, up to the end of
	// the file (n < len(dst) only there, with a nil error). It blocks until the
	// bytes are there and verified, ctx ends, or reading them has failed for
	// good. Called between Acquire and Release, from many goroutines. It must
	// not use dst after its return, and it must return soon after ctx ends.
	ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (n int, err error)

	// Status is what the layer's state file shows. Never blocks.
	Status() Status
}

// Waiter is what a Content given to AddPending may also be: requests then call
// Wait before Acquire until an Acquire has succeeded once. Wait blocks until the
// TOC is there, ctx ends (with Dir.Remove, with Server.Close, or when the calling
// process is being killed) or getting the TOC has failed. Without it, Acquire
// itself has to wait, and nothing can interrupt it.
type Waiter interface {
	Wait(ctx context.Context) error
}

// Status of a layer, as its state file shows it (JSON, stargz-snapshotter's keys).
type Status struct {
	Digest         digest.Digest `json:"digest"`
	Size           int64         `json:"size"`            // of the blob, in bytes
	FetchedSize    int64         `json:"fetchedSize"`     // bytes of the blob on disk
	FetchedPercent float64       `json:"fetchedPercent"`  // 0 to 100
	Error          string        `json:"error,omitempty"` // the last one of a read
}

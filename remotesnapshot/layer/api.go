package layer

import (
	"context"

	digest "github.com/opencontainers/go-digest"
)

// Blob is what a layer needs of a remote blob; *blob.Blob is adapted by lazyfs.
type Blob interface {
	Digest() digest.Digest
	Size() int64
	// Tail, ReadAt, Fetch, Drop, Complete, Local, Fetched: as in package blob.
	Tail(ctx context.Context, n int64) (tail []byte, size int64, err error)
}

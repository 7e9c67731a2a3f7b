package lazyfs

import (
	"context"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// layerBlob is a blob as package layer wants it.
type layerBlob struct{ *blob.Blob }

var _ layer.Blob = layerBlob{}

// priorities has blob's word for each of layer's.
var priorities = [...]blob.Priority{
	layer.Background: blob.Background,
	layer.Prefetch:   blob.Prefetch,
	layer.Blocked:    blob.Blocked,
}

func (b layerBlob) ReadAt(ctx context.Context, p layer.Priority, dst []byte, off int64) (int, error) {
	return b.Blob.ReadAt(ctx, priorities[p], dst, off)
}

func (b layerBlob) Fetch(ctx context.Context, p layer.Priority, off, size int64) error {
	return b.Blob.Fetch(ctx, priorities[p], off, size)
}

func (b layerBlob) FetchAll(ctx context.Context, p layer.Priority, ranges []layer.Range) error {
	return b.Blob.FetchAll(ctx, priorities[p], blobRanges(ranges))
}

func (b layerBlob) Start(p layer.Priority, ranges ...layer.Range) (wait func(ctx context.Context) error) {
	return b.Blob.Start(priorities[p], blobRanges(ranges)...)
}

func blobRanges(ranges []layer.Range) []blob.Range {
	out := make([]blob.Range, len(ranges))
	for i, r := range ranges {
		out[i] = blob.Range(r)
	}
	return out
}

func (b layerBlob) Complete(ctx context.Context, p layer.Priority) error {
	return b.Blob.Complete(ctx, priorities[p])
}

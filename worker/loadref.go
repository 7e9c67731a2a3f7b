package worker

import (
	"context"
	"fmt"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
)

// LoadRef implements bkworker.Worker: the record of a cached result, nil for the
// empty result. What the build has learnt of the lazy blobs below is passed on: it
// has read their images' manifests, so it may read them. The blobs themselves can
// be had without that, where they come from a registry.
func (w *Worker) LoadRef(ctx context.Context, id string, hidden bool) (bkcache.ImmutableRef, error) {
	if id == "" {
		return nil, nil
	}
	blobs, err := w.cache.LazyBlobs(ctx, id)
	if err != nil {
		return nil, fmt.Errorf("load cached result: %w", err)
	}
	var opts []bkcache.RefOption
	if hidden {
		opts = append(opts, bkcache.NoUpdateLastUsed)
	}
	if handlers := handlersOf(ctx, blobs); len(handlers) > 0 {
		opts = append(opts, handlers)
	}
	ref, err := w.cache.Get(ctx, id, solver.ProgressControllerFromContext(ctx), opts...)
	if err != nil {
		return nil, fmt.Errorf("load cached result: %w", err)
	}
	return ref, nil
}

// handlersOf finds the handlers that the sources of a build have for blobs.
func handlersOf(ctx context.Context, blobs []digest.Digest) bkcache.DescHandlers {
	get := solver.CacheOptGetterOf(ctx)
	if get == nil || len(blobs) == 0 {
		return nil
	}
	var keys []any
	for _, dgst := range blobs {
		keys = append(keys, bkcache.DescHandlerKey(dgst))
	}
	handlers := bkcache.DescHandlers{}
	for k, v := range get(true, keys...) {
		key, isKey := k.(bkcache.DescHandlerKey)
		h, isHandler := v.(*bkcache.DescHandler)
		if isKey && isHandler {
			handlers[digest.Digest(key)] = h
		}
	}
	return handlers
}

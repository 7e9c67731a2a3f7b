package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// LoadRef returns the record of a cached result.
//
// A record that stands on a lazy layer can be had only with somebody who provides
// the layer's blob. BuildKit takes that from the build that has just pulled the
// image; where there is none (at start, when the daemon finds out which results
// still exist, and for whoever asks outside of a build), it is our file system,
// which knows where its layers come from.
func (w *Worker) LoadRef(ctx context.Context, id string, hidden bool) (cache.ImmutableRef, error) {
	ref, err := w.Worker.LoadRef(ctx, id, hidden)
	var missing cache.NeedsRemoteProviderError
	if w.parts.storage.lazy == nil || !errors.As(err, &missing) {
		return ref, err
	}
	handlers := cache.DescHandlers{}
	for _, dgst := range missing {
		src, ok := w.parts.storage.lazy.SourceOf(dgst)
		if !ok {
			return nil, err
		}
		handlers[dgst] = &cache.DescHandler{
			Provider:       func(bksession.Group) content.Provider { return lazyProvider{w.parts.storage.lazy, src} },
			SnapshotLabels: src.Labels(),
			Annotations:    src.Annotations,
			Ref:            src.Reference,
		}
	}
	opts := []cache.RefOption{handlers}
	if hidden {
		opts = append(opts, cache.NoUpdateLastUsed)
	}
	ref, err = w.CacheMgr.Get(ctx, id, solver.ProgressControllerFromContext(ctx), opts...)
	if err != nil {
		return nil, fmt.Errorf("load cached result %s: %w", id, err)
	}
	return ref, nil
}

// lazyProvider reads the blob of a lazy layer, whole.
type lazyProvider struct {
	lazy unlazier
	src  remotesnapshot.Source
}

func (p lazyProvider) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	path, release, err := p.lazy.Unlazy(ctx, p.src)
	if err != nil {
		return nil, err
	}
	defer release() // the reader keeps the file itself
	return local.OpenReader(path)
}

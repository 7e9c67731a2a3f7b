package cache

import (
	"context"
	"errors"
	"testing"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
)

// TestHangs: a registry that does not answer, or a layer that takes for ever, holds
// up nobody but those who need that very layer.
func TestHangs(t *testing.T) {
	for _, c := range []struct {
		name string
		kind layerKind
		gate string
	}{
		{"resolve", lazyLayer, "resolve stuck"},
		{"unlazy", plainLayer, "unlazy stuck"},
		{"provider", layoutLayer, "provide stuck"},
		{"extraction", plainLayer, "apply"},
		{"merge", lazyLayer, "resolve stuck"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t, true)
			stuck := w.layerOf(c.kind, "stuck")
			base := w.layers("base", lazyLayer, plainLayer)
			h, other := w.pull(stuck), w.pull(base...)
			hung := h
			if c.name == "merge" {
				hung = w.merge(other, h)
			}
			at := w.reg.at
			var open func()
			if c.gate == "apply" {
				open = w.faults.gate("apply " + stuck.desc.Digest.String())
				at = w.faults.at
			} else {
				open = w.reg.gate(c.gate)
			}
			defer open()
			ctx, cancel := context.WithCancel(w.ctx())
			defer cancel()
			stuckErr := make(chan error, 1)
			go func() { stuckErr <- hung.Extract(ctx, group("s")) }()
			<-at

			all := make(chan error, 1)
			go func() { all <- w.everythingElse(h, other, base) }()
			if err := w.soon(all); err != nil {
				t.Error(err)
			}
			select {
			case err := <-stuckErr:
				t.Errorf("it was not stuck: %v", err)
			default:
			}
			cancel()
			if err := w.soon(stuckErr); !errors.Is(err, context.Canceled) {
				t.Errorf("the one that is stuck, cancelled: %v", err)
			}
			open()
			if hung != h {
				w.release(hung)
			}
			w.done(h, other)
		})
	}
}

// everythingElse does all that a build does, while stuck hangs.
func (w *world) everythingElse(stuck, other *immutableRef, base []*layer) error {
	ctx := w.ctx()
	if err := other.Extract(ctx, group("t")); err != nil {
		return err
	}
	mut, err := w.m.New(ctx, other, group("t"), bkcache.CachePolicyRetain)
	if err != nil {
		return err
	}
	done, err := mut.Commit(ctx)
	if err != nil {
		return err
	}
	if err := done.Finalize(ctx); err != nil {
		return err
	}
	got, err := w.m.Get(ctx, done.ID(), nil)
	if err != nil {
		return err
	}
	again, err := w.m.Get(ctx, stuck.ID(), nil, stuck.handlers)
	if err != nil {
		return err
	}
	pulled, err := w.tryPull(ctx, append(base[:2:2], w.layerOf(lazyLayer, "more"))...)
	if err != nil {
		return err
	}
	merge, err := w.m.Merge(ctx, []bkcache.ImmutableRef{got, pulled}, nil)
	if err != nil {
		return err
	}
	if err := merge.Extract(ctx, group("t")); err != nil {
		return err
	}
	if _, err := got.GetRemotes(ctx, true, gzipRefs, false, group("t")); err != nil {
		return err
	}
	if _, err := w.m.DiskUsage(ctx, client.DiskUsageInfo{}); err != nil {
		return err
	}
	for _, r := range []bkcache.Ref{done, got, again, pulled, merge} {
		if err := r.Release(ctx); err != nil {
			return err
		}
	}
	if err := w.m.Prune(ctx, nil, client.PruneInfo{All: true}); err != nil {
		return err
	}
	_, err = w.mdb.GarbageCollect(ctx)
	return err
}

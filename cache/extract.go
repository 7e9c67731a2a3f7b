package cache

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/leases"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/progress"
	"github.com/moby/buildkit/util/tracing"
	"github.com/moby/buildkit/util/winlayers"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// layerTypeWindows is BuildKit's name for layers that are Windows' on another system.
const layerTypeWindows = "windows"

// extractLayer makes a plain snapshot of a layer from its blob, which is fetched
// if need be. The layer is checked against its DiffID before it is committed. The
// caller has a lease in ctx.
func (m *Manager) extractLayer(ctx context.Context, r *record, parent string, handlers bkcache.DescHandlers, pg progress.Controller, s bksession.Group) (rerr error) {
	if m.opts.Applier == nil {
		return errors.New("cache: layers can't be extracted without an applier")
	}
	if keyBlob.get(r.meta) == "" {
		return fmt.Errorf("record %s: its snapshot %s is gone, and it has no blob to make it from", r.ID(), r.snapshotID())
	}
	if err := m.fetchBlob(ctx, r, handlers, s); err != nil {
		return err
	}
	desc, err := r.descriptor(ctx, handlers, true)
	if err != nil {
		return err
	}
	if dh := handlerOf(r, handlers); pg == nil && dh != nil {
		pg = dh.Progress
	}
	if pg != nil {
		_, stop := pg.Start(ctx)
		defer func() { stop(rerr) }()
		defer pg.Status("extracting "+desc.Digest.String(), "extracting")()
	}
	if r.GetLayerType() == layerTypeWindows {
		ctx = winlayers.UseWindowsLayerMode(ctx)
	}
	span, ctx := tracing.StartSpan(ctx, "extract", trace.WithAttributes(
		attribute.String("digest", desc.Digest.String()),
		attribute.Int64("size", desc.Size),
	))
	defer func() { tracing.FinishWithError(span, rerr) }()

	key := "extract-" + identity.NewID() + " " + keyChainID.get(r.meta).String()
	if err := m.sn.Prepare(ctx, key, parent); err != nil {
		return fmt.Errorf("extract layer %s: %w", desc.Digest, err)
	}
	committed := false
	defer func() {
		if !committed {
			m.discard(ctx, key)
		}
	}()
	mountable, err := m.sn.Mounts(ctx, key)
	if err != nil {
		return fmt.Errorf("extract layer %s: %w", desc.Digest, err)
	}
	mounts, unmount, err := mountable.Mount()
	if err != nil {
		return fmt.Errorf("extract layer %s: %w", desc.Digest, err)
	}
	applied, err := m.opts.Applier.Apply(ctx, desc, mounts)
	if uerr := unmount(); err == nil {
		err = uerr
	}
	if err != nil {
		return fmt.Errorf("extract layer %s: %w", desc.Digest, err)
	}
	if want := keyDiffID.get(r.meta); applied.Digest != want {
		return fmt.Errorf("failed to verify layer %s: expected diffID %s, got %s", desc.Digest, want, applied.Digest)
	}
	err = m.sn.Commit(ctx, r.snapshotID(), key)
	if cerrdefs.IsAlreadyExists(err) {
		return m.extractedByOther(ctx, r)
	}
	if err != nil {
		return fmt.Errorf("extract layer %s: %w", desc.Digest, err)
	}
	committed = true
	return r.extracted()
}

// extractedByOther notes that the layer's files are in a snapshot that was made
// meanwhile, unless that one is remote.
func (m *Manager) extractedByOther(ctx context.Context, r *record) error {
	info, err := m.sn.Stat(ctx, r.snapshotID())
	if err != nil {
		return fmt.Errorf("snapshot of record %s: %w", r.ID(), err)
	}
	if _, remote := info.Labels[remotesnapshot.LabelRemote]; remote {
		return nil
	}
	return r.extracted()
}

// extracted notes that the layer's files are in its snapshot.
func (r *record) extracted() error {
	var c change
	put(&c, keyBlobOnly, false)
	put(&c, keySize, sizeUnknown)
	return r.meta.commit(c)
}

// discard removes an active snapshot that nobody needs.
func (m *Manager) discard(ctx context.Context, key string) {
	ctx = context.WithoutCancel(ctx)
	if id, ok := leases.FromContext(ctx); ok {
		err := m.leases.DeleteResource(ctx, leases.Lease{ID: id}, m.snapshotResource(key))
		if err != nil && !cerrdefs.IsNotFound(err) {
			bklog.G(ctx).WithError(err).Warnf("cache: snapshot %s stays in lease %s", key, id)
		}
	}
	// Snapshots of a namespace are removed by the collector only.
	if m.opts.GarbageCollect == nil {
		return
	}
	if _, err := m.opts.GarbageCollect(ctx); err != nil {
		bklog.G(ctx).WithError(err).Warnf("cache: snapshot %s is left to the next collection", key)
	}
}

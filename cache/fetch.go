package cache

import (
	"context"
	"errors"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/contentutil"
	"github.com/moby/buildkit/util/progress/logs"
	"github.com/moby/buildkit/util/pull/pullprogress"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// fetchBlob brings a lazy layer's blob into the content store, and the blob's
// labels with it. The caller may read the layer's sources (see grants) and has a
// lease in ctx, in which the blob is kept, too. Callers that want the same blob of the
// same registries share the work.
func (m *Manager) fetchBlob(ctx context.Context, r *record, handlers bkcache.DescHandlers, s bksession.Group) error {
	blob := keyBlob.get(r.meta)
	if blob == "" {
		return fmt.Errorf("record %s: %w", r.ID(), bkcache.ErrNoBlobs)
	}
	if _, err := m.content.Info(ctx, blob); err == nil {
		return nil
	} else if !cerrdefs.IsNotFound(err) {
		return err
	}
	// Before the work, whose own lease ends with it.
	if err := m.keep(ctx, blobResource(blob)); err != nil {
		return err
	}
	from, err := m.registries(ctx, []*record{r}, handlers)
	if err != nil {
		return err
	}
	return m.alone(ctx, "fetch "+blob.String()+from, func(ctx context.Context) error {
		desc, err := r.descriptor(ctx, handlers, true)
		if err != nil {
			return err
		}
		// Another one's work may have ended between the look above and this.
		if _, err := m.content.Info(ctx, blob); cerrdefs.IsNotFound(err) {
			err = m.fetch(ctx, r, desc, handlerOf(r, handlers), s)
			if err != nil {
				return fmt.Errorf("fetch layer %s: %w", desc.Digest, err)
			}
		} else if err != nil {
			return err
		}
		if err := r.linkBlob(ctx, desc); err != nil {
			return err
		}
		return r.describePulled()
	})
}

// fetch gets the blob from its sources, of which only what is missing on disk is
// asked for, or else from the handler's provider.
func (m *Manager) fetch(ctx context.Context, r *record, desc ocispecs.Descriptor, dh *bkcache.DescHandler, s bksession.Group) (err error) {
	if dh != nil && dh.Progress != nil {
		var stop func(error)
		ctx, stop = dh.Progress.Start(ctx)
		defer func() { stop(err) }()
	}
	list, err := m.usable(ctx, r, bkcache.DescHandlers{desc.Digest: dh})
	if err != nil {
		return err
	}
	var errs []error
	if m.opts.Adopt == nil {
		list = nil
	}
	for _, src := range list {
		report := m.reportFetch(ctx, desc)
		path, release, err := m.lazy.Unlazy(ctx, src)
		report()
		if err == nil {
			defer release()
			if err = m.opts.Adopt(ctx, desc, path); err == nil {
				return nil
			}
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		bklog.G(ctx).WithError(err).Warnf("cache: layer %s can't be had from %s", desc.Digest, src.Reference)
		errs = append(errs, err)
	}
	if dh == nil {
		if len(errs) == 0 {
			return bkcache.NeedsRemoteProviderError{desc.Digest}
		}
		return errors.Join(errs...)
	}
	provider := &pullprogress.ProviderWithProgress{Provider: dh.Provider(s), Manager: m.content}
	err = contentutil.Copy(ctx, m.content, provider, desc, dh.Ref, logs.LoggerFromContext(ctx))
	if err != nil && ctx.Err() == nil {
		err = errors.Join(append(errs, err)...) // the sources' errors say more
	}
	return err
}

// describePulled gives a record without a description one, as BuildKit does when
// a layer is pulled.
func (r *record) describePulled() error {
	refs := keyImageRefs.get(r.meta)
	if len(refs) == 0 || r.GetDescription() != "" || r.isDead() {
		return nil
	}
	return r.SetDescription("pulled from " + refs[0])
}

package cache

import (
	"context"
	"fmt"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/converter"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// variant finds a layer's blob in a compression, among those in the content store:
// errdefs.ErrNotFound when there is none.
func (m *Manager) variant(ctx context.Context, desc ocispecs.Descriptor, t compression.Type) (found ocispecs.Descriptor, err error) {
	ok := false
	err = m.allVariants(ctx, desc, func(d ocispecs.Descriptor) bool {
		if needs, err := t.NeedsConversion(ctx, m.content, d); err == nil && !needs {
			found, ok = d, true
		}
		return !ok
	})
	if err == nil && !ok {
		err = fmt.Errorf("blob %s as %s: %w", desc.Digest, t, cerrdefs.ErrNotFound)
	}
	return found, err
}

// variantOf is variant for a record whose own blob is in the content store.
func (r *record) variantOf(ctx context.Context, t compression.Type) (ocispecs.Descriptor, error) {
	if _, err := r.m.content.Info(ctx, keyBlob.get(r.meta)); err != nil {
		return ocispecs.Descriptor{}, err
	}
	desc, err := r.descriptor(ctx, nil, true)
	if err != nil {
		return desc, err
	}
	return r.m.variant(ctx, desc, t)
}

// ensureCompression makes sure that a layer has a blob in the wanted compression. A
// lazy layer that has it already stays lazy.
func (c *computation) ensureCompression(ctx context.Context, r *record) error {
	key := fmt.Sprintf("convert %s %s", r.ID(), c.comp.Type)
	err := c.m.alone(ctx, key, func(ctx context.Context) error { return c.convert(ctx, r) })
	if err != nil {
		return fmt.Errorf("record %s as %s: %w", r.ID(), c.comp.Type, err)
	}
	return nil
}

func (c *computation) convert(ctx context.Context, r *record) error {
	desc, err := r.descriptor(ctx, c.ref.handlers, true)
	if err != nil {
		return err
	}
	convert, err := converter.New(ctx, c.m.content, desc, c.comp)
	if err != nil {
		return err
	}
	if convert == nil {
		lazy, err := r.isLazy(ctx)
		if err != nil || lazy {
			return err
		}
		return r.linkBlob(ctx, desc)
	}
	if _, err := r.variantOf(ctx, c.comp.Type); err == nil {
		return nil
	}
	if err := c.m.localBlob(ctx, c.ref.ref, r, c.sessions); err != nil {
		return err
	}
	converted, err := convert(ctx, c.m.content, desc)
	if err != nil {
		return err
	}
	return r.linkBlob(ctx, *converted)
}

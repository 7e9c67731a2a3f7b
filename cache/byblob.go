package cache

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/pkg/labels"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/identity"
	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// layerID is what identifies a layer that comes from a blob.
type layerID struct {
	diffID   digest.Digest
	identity digest.Digest // its snapshot is shared by
	chain    digest.Digest // identities from the bottom
	blobs    digest.Digest // blobs and DiffIDs from the bottom
}

// identify computes the identities of a layer on parent, which may be nil. lazy says
// that the layer may be mounted without having been extracted.
func identify(desc ocispecs.Descriptor, parent *immutableRef, lazy bool) (id layerID, err error) {
	if id.diffID, err = diffIDOf(desc); err != nil {
		return id, err
	}
	id.identity = id.diffID
	if lazy {
		if id.identity, err = lazyIdentity(desc, id.diffID); err != nil {
			return id, err
		}
	}
	id.chain = id.identity
	id.blobs = imageid.ChainID([]digest.Digest{desc.Digest, id.diffID})
	if parent != nil {
		id.chain = imageid.ChainID([]digest.Digest{keyChainID.get(parent.meta), id.chain})
		id.blobs = imageid.ChainID([]digest.Digest{keyBlobChainID.get(parent.meta), id.blobs})
	}
	return id, nil
}

// lazyIdentity is what the snapshot of a layer that may stay lazy is shared by. Its
// DiffID is never checked then, since the whole tar is never seen; what is checked is
// the TOC. So it is both: an image with a DiffID that lies can't lend its files to
// another image. The formula for eStargz is BuildKit's.
func lazyIdentity(desc ocispecs.Descriptor, diffID digest.Digest) (digest.Digest, error) {
	v := remotesnapshot.TOCDigest(desc.Annotations)
	if v == "" {
		return diffID, nil
	}
	toc, err := digest.Parse(v)
	if err != nil && v != desc.Annotations[remotesnapshot.AnnotationTOCDigest] {
		return diffID, nil // it can't be resolved, so it is extracted and checked
	}
	if err != nil {
		return "", fmt.Errorf("layer %s: TOC digest %q in its annotations: %w", desc.Digest, v, err)
	}
	return imageid.ChainID([]digest.Digest{diffID, toc}), nil
}

// boundTo says that what a layer's snapshot is shared by names the TOC by which src
// is verified. A layer that only the digest of its blob vouches for is not: the tar in
// it is never seen, so that its DiffID could be any other layer's.
func (m meta) boundTo(src remotesnapshot.Source) bool {
	toc, err := digest.Parse(remotesnapshot.TOCDigest(src.Annotations))
	return err == nil && m.identity() == imageid.ChainID([]digest.Digest{keyDiffID.get(m), toc})
}

// diffIDOf is the digest of the layer's tar, which BuildKit puts into an annotation.
func diffIDOf(desc ocispecs.Descriptor) (digest.Digest, error) {
	v, ok := desc.Annotations[labels.LabelUncompressed]
	if !ok {
		return "", fmt.Errorf("layer %s: no annotation %s", desc.Digest, labels.LabelUncompressed)
	}
	d, err := digest.Parse(v)
	if err != nil {
		return "", fmt.Errorf("layer %s: DiffID %q: %w", desc.Digest, v, err)
	}
	return d, nil
}

// GetByBlob implements bkcache.Accessor: the record of a layer that comes from a
// blob, on top of parent, which may be nil and stays the caller's. A record with
// the same blobs is shared. Nothing is fetched, unless opts ask for it.
func (m *Manager) GetByBlob(ctx context.Context, desc ocispecs.Descriptor, parent bkcache.ImmutableRef, opts ...bkcache.RefOption) (bkcache.ImmutableRef, error) {
	o := parseOptions(opts)
	if err := m.canProvide(ctx, desc, o.handlers); err != nil {
		return nil, err
	}
	var p *immutableRef
	if parent != nil {
		var err error
		if p, err = m.addressable(ctx, parent, o); err != nil {
			return nil, err
		}
	}
	h, err := m.byBlob(ctx, desc, p, o, opts)
	if p != nil && (err != nil || h.parents.layer != p) {
		err = errors.Join(err, p.Release(context.WithoutCancel(ctx)))
	}
	if err == nil && o.unlazy != nil {
		err = h.Extract(ctx, o.unlazy)
	}
	if err != nil {
		if h != nil {
			err = errors.Join(err, h.Release(context.WithoutCancel(ctx)))
		}
		return nil, err
	}
	return h, nil
}

// canProvide fails when a blob is neither here nor can be had.
func (m *Manager) canProvide(ctx context.Context, desc ocispecs.Descriptor, handlers bkcache.DescHandlers) error {
	if desc.Digest == "" || handlers[desc.Digest] != nil {
		return nil
	}
	_, err := m.content.Info(ctx, desc.Digest)
	if cerrdefs.IsNotFound(err) {
		return bkcache.NeedsRemoteProviderError{desc.Digest}
	}
	return err
}

// addressable holds a parent that is itself known by its blobs.
func (m *Manager) addressable(ctx context.Context, parent bkcache.ImmutableRef, o options) (_ *immutableRef, rerr error) {
	p, err := m.get(ctx, parent.ID(), nil, options{handlers: o.handlers})
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr != nil {
			rerr = errors.Join(rerr, p.Release(context.WithoutCancel(ctx)))
		}
	}()
	if err := p.Finalize(ctx); err != nil {
		return nil, err
	}
	if keyChainID.get(p.meta) == "" || keyBlobChainID.get(p.meta) == "" || p.onLegacySnapshot() {
		return nil, fmt.Errorf("layer on record %s, which is not known by its blobs: %w", p.ID(), errInvalid)
	}
	return p, nil
}

// byBlob finds or makes the record. A new record takes p over.
func (m *Manager) byBlob(ctx context.Context, desc ocispecs.Descriptor, p *immutableRef, o options, opts []bkcache.RefOption) (_ *immutableRef, rerr error) {
	src, hasSource := m.sourceFor(desc, o.handlers[desc.Digest])
	id, err := identify(desc, p, m.lazy != nil)
	if err != nil {
		return nil, err
	}
	// Two that look for the same blobs must not both make a record.
	m.chains.Lock(id.blobs.String())
	defer m.chains.Unlock(id.blobs.String())
	same, err := m.sameBlobs(ctx, id, o)
	if err != nil {
		return nil, err
	}
	if same != nil {
		err := applyImageRefs(same.RefMetadata, opts)
		if err == nil && hasSource {
			var c change
			if same.putSource(&c, src); len(c) > 0 {
				err = same.meta.commit(c)
			}
		}
		if err != nil {
			return nil, errors.Join(err, same.Release(context.WithoutCancel(ctx)))
		}
		return same, nil
	}
	snapshotID, err := m.sharedSnapshot(ctx, id, o)
	if err != nil {
		return nil, err
	}
	recID := identity.NewID()
	over := leaseResources(m.snapshotResource(snapshotID))
	if desc.Digest != "" {
		over = append(over, blobResource(desc.Digest))
	}
	undo, err := m.lease(ctx, recID, over...)
	if err != nil {
		return nil, err
	}
	defer func() {
		if rerr != nil {
			undo()
		}
	}()
	r := m.newRecord(m.newItem(recID), parents{layer: p}, false, newState())
	c := r.describe(desc, id, snapshotID)
	put(&c, keyCreatedAt, m.now().UnixNano())
	if hasSource {
		r.putSource(&c, src)
	}
	if err := r.create(c, opts); err != nil {
		return nil, err
	}
	return &immutableRef{m.add(r, o.handlers, nil)}, nil
}

// describe is the metadata of a record of a blob.
func (r *record) describe(desc ocispecs.Descriptor, id layerID, snapshotID string) (c change) {
	r.parents.save(&c)
	put(&c, keyDiffID, id.diffID)
	put(&c, keyIdentity, id.identity)
	put(&c, keyBlob, desc.Digest)
	putIndexed(&c, keyChainID, id.chain, indexChain)
	putIndexed(&c, keyBlobChainID, id.blobs, indexBlobChain)
	put(&c, keySnapshot, snapshotID)
	put(&c, keyBlobOnly, true)
	put(&c, keyMediaType, desc.MediaType)
	put(&c, keyBlobSize, desc.Size)
	if len(desc.URLs) > 0 {
		put(&c, keyURLs, appendNew(nil, desc.URLs...))
	}
	put(&c, keyCommitted, true)
	return c
}

// sameBlobs holds a record of the same blobs and identities; nil when there is none.
func (m *Manager) sameBlobs(ctx context.Context, id layerID, o options) (*immutableRef, error) {
	found, err := m.search(ctx, indexBlobChain+id.blobs.String(), false)
	if err != nil {
		return nil, err
	}
	for _, r := range found {
		// The blobs alone don't say what a lazy snapshot shows; see identity.
		if keyChainID.get(r.meta) != id.chain || r.mustNotBeShared() {
			continue
		}
		h, err := m.tryGet(ctx, r.ID(), o)
		if h != nil || err != nil {
			return h, err
		}
	}
	return nil, nil
}

// sharedSnapshot names the snapshot of a chain: that of a record with the same
// layers in another compression, or a new one.
func (m *Manager) sharedSnapshot(ctx context.Context, id layerID, o options) (string, error) {
	found, err := m.search(ctx, indexChain+id.chain.String(), false)
	if err != nil {
		return "", err
	}
	o.touches = false
	for _, r := range found {
		if r.mustNotBeShared() {
			continue
		}
		h, err := m.tryGet(ctx, r.ID(), o)
		if err != nil {
			return "", err
		}
		if h != nil {
			return h.snapshotID(), h.Release(context.WithoutCancel(ctx))
		}
	}
	return layerSnapshotID(id.chain), nil
}

// mustNotBeShared says that the record's chain id does not say what it shows: on
// legacy snapshots, and for the diffs of BuildKit, which have that of the upper
// record.
func (r *record) mustNotBeShared() bool { return r.kind() == kindDiff || r.onLegacySnapshot() }

// tryGet holds a record unless it has gone or needs what opts don't provide.
func (m *Manager) tryGet(ctx context.Context, id string, o options) (*immutableRef, error) {
	h, err := m.get(ctx, id, nil, o)
	var missing bkcache.NeedsRemoteProviderError
	if bkcache.IsNotFound(err) || errors.As(err, &missing) {
		return nil, nil
	}
	return h, err
}

package cache

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/labels"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/util/compression"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// Labels of blobs in the content store, BuildKit's: what descriptor the blob was
// stored with, and which other compressions of the same tar there are. The latter
// are garbage collection references, in both directions.
const (
	labelMediaType  = "buildkit.io/blob/mediatype"
	labelAnnotation = "buildkit.io/blob/annotation."
	labelVariant    = "containerd.io/gc.ref.content.blob-"
)

// annotationCreatedAt tells exporters when a layer was made.
const annotationCreatedAt = "buildkit/createdat"

// savedAnnotations of a descriptor are kept with the blob: BuildKit's, and those
// without which a zstd:chunked layer that is pushed again could not be mounted
// lazily by the next one who pulls it.
var savedAnnotations = append(slices.Clone(compression.EStargzAnnotations),
	labels.LabelUncompressed,
	remotesnapshot.AnnotationZstdChecksum, remotesnapshot.AnnotationZstdPosition,
	remotesnapshot.AnnotationZstdChecksumLegacy, remotesnapshot.AnnotationZstdPositionLegacy,
)

func saved(a map[string]string) map[string]string {
	out := map[string]string{}
	for _, k := range savedAnnotations {
		if v, ok := a[k]; ok {
			out[k] = v
		}
	}
	return out
}

// descriptor describes the record's blob. With urls, one that may be had elsewhere
// keeps the media type that says so.
func (r *record) descriptor(ctx context.Context, handlers bkcache.DescHandlers, urls bool) (ocispecs.Descriptor, error) {
	dgst := keyBlob.get(r.meta)
	if dgst == "" {
		return ocispecs.Descriptor{}, fmt.Errorf("record %s: %w", r.ID(), bkcache.ErrNoBlobs)
	}
	desc := ocispecs.Descriptor{
		Digest:      dgst,
		Size:        r.blobSize(),
		MediaType:   keyMediaType.get(r.meta),
		Annotations: map[string]string{},
	}
	if list := keyURLs.get(r.meta); urls && len(list) > 0 {
		desc.MediaType, desc.URLs = nonDistributable(desc.MediaType), list
	} else {
		desc.MediaType = distributable(desc.MediaType)
	}
	if stored, err := storedDescriptor(ctx, r.m.content, dgst); err == nil {
		maps.Copy(desc.Annotations, stored.Annotations)
	} else if !cerrdefs.IsNotFound(err) {
		return ocispecs.Descriptor{}, fmt.Errorf("blob %s: %w", dgst, err)
	} else if dh := handlers[dgst]; dh != nil {
		maps.Copy(desc.Annotations, saved(dh.Annotations))
	} else {
		for _, src := range r.sources() {
			maps.Copy(desc.Annotations, saved(src.Annotations))
		}
	}
	if d := keyDiffID.get(r.meta); d != "" {
		desc.Annotations[labels.LabelUncompressed] = d.String()
	}
	if t := r.GetCreatedAt(); !t.IsZero() {
		text, err := t.MarshalText()
		if err != nil {
			return ocispecs.Descriptor{}, fmt.Errorf("record %s: %w", r.ID(), err)
		}
		desc.Annotations[annotationCreatedAt] = string(text)
	}
	return desc, nil
}

// mediaPairs are layer media types and those of the same format that registries
// don't distribute.
var mediaPairs = [][2]string{
	{ocispecs.MediaTypeImageLayer, ocispecs.MediaTypeImageLayerNonDistributable},         //nolint:staticcheck // deprecated, and in use
	{ocispecs.MediaTypeImageLayerGzip, ocispecs.MediaTypeImageLayerNonDistributableGzip}, //nolint:staticcheck // as above
	{ocispecs.MediaTypeImageLayerZstd, ocispecs.MediaTypeImageLayerNonDistributableZstd}, //nolint:staticcheck // as above
	{images.MediaTypeDockerSchema2Layer, images.MediaTypeDockerSchema2LayerForeign},
	{images.MediaTypeDockerSchema2LayerGzip, images.MediaTypeDockerSchema2LayerForeignGzip},
}

func distributable(mt string) string {
	for _, p := range mediaPairs {
		if mt == p[1] {
			return p[0]
		}
	}
	return mt
}

func nonDistributable(mt string) string {
	for _, p := range mediaPairs {
		if mt == p[0] {
			return p[1]
		}
	}
	return mt
}

// storedDescriptor is the descriptor that a blob was stored with.
func storedDescriptor(ctx context.Context, cs content.Manager, dgst digest.Digest) (ocispecs.Descriptor, error) {
	info, err := cs.Info(ctx, dgst)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	mt, ok := info.Labels[labelMediaType]
	if !ok {
		return ocispecs.Descriptor{}, fmt.Errorf("blob %s has no label with its media type: %w", dgst, cerrdefs.ErrNotFound)
	}
	desc := ocispecs.Descriptor{Digest: dgst, Size: info.Size, MediaType: distributable(mt)}
	for k, v := range info.Labels {
		if a, ok := strings.CutPrefix(k, labelAnnotation); ok {
			if desc.Annotations == nil {
				desc.Annotations = map[string]string{}
			}
			desc.Annotations[a] = v
		}
	}
	return desc, nil
}

// linkBlob keeps a blob that is in the content store, with its descriptor, for as
// long as the record: its own blob, or the same layer in another compression.
func (r *record) linkBlob(ctx context.Context, desc ocispecs.Descriptor) error {
	m, own := r.m, keyBlob.get(r.meta)
	if r.isDead() {
		return nil // nobody would end the lease
	}
	if err := m.ensureLease(ctx, variantsLease(r.ID()), nil, blobResource(desc.Digest)); err != nil {
		return err
	}
	info, err := m.content.Info(ctx, desc.Digest)
	if err != nil {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	add := map[string]string{labelVariant + own.String(): own.String()}
	if info.Labels[labelMediaType] == "" {
		add[labelMediaType] = desc.MediaType
		for k, v := range saved(desc.Annotations) {
			add[labelAnnotation+k] = v
		}
	}
	if err := m.label(ctx, desc.Digest, add); err != nil {
		return err
	}
	if desc.Digest != own {
		if err := m.label(ctx, own, map[string]string{labelVariant + desc.Digest.String(): desc.Digest.String()}); err != nil {
			return err
		}
	}
	return r.forgetSize()
}

// label adds labels to a blob.
func (m *Manager) label(ctx context.Context, dgst digest.Digest, add map[string]string) error {
	var fields []string
	for k := range add {
		fields = append(fields, "labels."+k)
	}
	if _, err := m.content.Update(ctx, content.Info{Digest: dgst, Labels: add}, fields...); err != nil {
		return fmt.Errorf("label blob %s: %w", dgst, err)
	}
	return nil
}

// variants calls f for each compression of a blob that is in the content store,
// other than the blob itself, until it returns false.
func (m *Manager) variants(ctx context.Context, dgst digest.Digest, f func(ocispecs.Descriptor) bool) error {
	seen := map[digest.Digest]bool{dgst: true}
	for todo := []digest.Digest{dgst}; len(todo) > 0; todo = todo[1:] {
		info, err := m.content.Info(ctx, todo[0])
		if cerrdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, k := range slices.Sorted(maps.Keys(info.Labels)) {
			d, err := digest.Parse(info.Labels[k])
			if !strings.HasPrefix(k, labelVariant) || err != nil || seen[d] {
				continue
			}
			seen[d] = true
			if desc, err := storedDescriptor(ctx, m.content, d); err == nil && !f(desc) {
				return nil
			}
			todo = append(todo, d)
		}
	}
	return nil
}

// allVariants is variants with desc itself first.
func (m *Manager) allVariants(ctx context.Context, desc ocispecs.Descriptor, f func(ocispecs.Descriptor) bool) error {
	if !f(desc) {
		return nil
	}
	return m.variants(ctx, desc.Digest, f)
}

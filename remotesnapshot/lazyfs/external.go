package lazyfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes"
	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/pkg/reference"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// eStargz with an external TOC keeps the TOCs of an image's layers in a second
// image: its reference is the first one's with a suffix to the tag, each of its
// layers is a gzipped tar of one TOC, and an annotation says of which blob (the
// section "external TOC" of stargz-snapshotter's docs/estargz.md). Nothing in it
// is trusted: the TOC digest in the first image's manifest vouches for the TOC.
const (
	externalSuffix     = "-esgztoc"
	externalAnnotation = "containerd.io/snapshot/stargz/layer.digest"

	// What a manifest and a compressed TOC may have at most, in bytes.
	maxManifest    = 8 << 20
	maxExternalTOC = 256 << 20
)

// externalTOC fetches the blob that holds the TOC of r's layer.
func (fs *FS) externalTOC(ctx context.Context, r request) ([]byte, error) {
	ref, err := externalReference(r.Reference)
	if err != nil {
		return nil, err
	}
	desc, err := findExternal(ctx, ref, fs.opts.Hosts(ref), r.Digest)
	if cerrdefs.IsNotFound(err) {
		return nil, fmt.Errorf("%w: %w", estargz.ErrNotLazy, err)
	}
	if err != nil {
		return nil, err
	}
	if desc.Size > maxExternalTOC {
		return nil, fmt.Errorf("TOC %s in %s has %d bytes: %w: %w", desc.Digest, ref, desc.Size, estargz.ErrLimit, estargz.ErrCorrupt)
	}
	b, err := fs.openBlob(desc.Digest, ref)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(b)
	if err := b.Complete(ctx, layer.Blocked); err != nil {
		return nil, err
	}
	if b.Size() > maxExternalTOC {
		return nil, fmt.Errorf("TOC %s in %s has %d bytes: %w: %w", desc.Digest, ref, b.Size(), estargz.ErrLimit, estargz.ErrCorrupt)
	}
	toc := make([]byte, b.Size())
	if _, err := b.ReadAt(ctx, layer.Blocked, toc, 0); err != nil {
		return nil, err
	}
	return toc, nil
}

// externalReference names the image that holds the TOCs of ref's layers.
func externalReference(ref string) (string, error) {
	spec, err := reference.Parse(ref)
	if err != nil {
		return "", fmt.Errorf("reference %q: %w", ref, err)
	}
	tag, _, _ := strings.Cut(spec.Object, "@")
	if tag == "" {
		return "", fmt.Errorf("reference %q has no tag, so its external TOC can't be found: %w", ref, estargz.ErrNotLazy)
	}
	spec.Object = tag + externalSuffix
	return spec.String(), nil
}

// findExternal looks up the TOC of a blob in the manifest, or the manifests, of ref.
func findExternal(ctx context.Context, ref string, hosts blob.Hosts, of digest.Digest) (ocispecs.Descriptor, error) {
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: func(string) ([]docker.RegistryHost, error) { return hosts(ctx) },
	})
	name, desc, err := resolver.Resolve(ctx, ref)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("resolve %s: %w", ref, err)
	}
	fetcher, err := resolver.Fetcher(ctx, name)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("fetch %s: %w", ref, err)
	}
	toc, err := findInManifest(ctx, fetcher, desc, of, 1)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("TOC of %s in %s: %w", of, ref, err)
	}
	return toc, nil
}

// findInManifest looks into a manifest, or into those of an index.
func findInManifest(ctx context.Context, f remotes.Fetcher, desc ocispecs.Descriptor, of digest.Digest, depth int) (ocispecs.Descriptor, error) {
	var m struct {
		Layers    []ocispecs.Descriptor `json:"layers"`
		Manifests []ocispecs.Descriptor `json:"manifests"`
	}
	if err := fetchJSON(ctx, f, desc, &m); err != nil {
		return ocispecs.Descriptor{}, err
	}
	for _, l := range m.Layers {
		if l.Annotations[externalAnnotation] == of.String() && l.Digest.Validate() == nil {
			return l, nil
		}
	}
	for _, sub := range m.Manifests {
		if depth == 0 {
			break
		}
		toc, err := findInManifest(ctx, f, sub, of, depth-1)
		if !cerrdefs.IsNotFound(err) {
			return toc, err
		}
	}
	return ocispecs.Descriptor{}, cerrdefs.ErrNotFound
}

func fetchJSON(ctx context.Context, f remotes.Fetcher, desc ocispecs.Descriptor, v any) (err error) {
	rc, err := f.Fetch(ctx, desc)
	if err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	defer func() { err = errors.Join(err, rc.Close()) }()
	raw, err := io.ReadAll(io.LimitReader(rc, maxManifest))
	if err != nil {
		return fmt.Errorf("manifest %s: %w", desc.Digest, err)
	}
	if digest.FromBytes(raw) != desc.Digest {
		return fmt.Errorf("manifest %s: wrong digest: %w", desc.Digest, estargz.ErrCorrupt)
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("manifest %s: %w: %w", desc.Digest, estargz.ErrCorrupt, err)
	}
	return nil
}

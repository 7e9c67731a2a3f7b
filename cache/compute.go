package cache

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"strconv"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/containerd/v2/plugins/diff/walking"
	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/overlay"
	"github.com/moby/buildkit/util/winlayers"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// computation makes sure that the layers of a record have blobs.
type computation struct {
	m        *Manager
	ref      *immutableRef
	create   bool // else a missing blob is bkcache.ErrNoBlobs
	comp     compression.Config
	sessions bksession.Group
}

// blobs computes the blobs of all layers, side by side, and then the chain ids of
// the record and of what it stands on. ctx has a lease, which keeps new blobs.
func (c *computation) blobs(ctx context.Context) error {
	if _, ok := leases.FromContext(ctx); !ok {
		return errors.New("cache: blobs are computed under a lease")
	}
	if c.ref.twinNow() != nil && !c.create {
		return nil // nothing of a record that is not final has a blob
	}
	if err := c.ref.Finalize(ctx); err != nil {
		return err
	}
	if isWindows(c.ref.record) {
		ctx = winlayers.UseWindowsLayerMode(ctx)
	}
	layers := c.ref.layerList()
	included := make(map[*record]bool, len(layers))
	eg, egctx := errgroup.WithContext(ctx)
	for _, l := range layers {
		if included[l] {
			continue
		}
		included[l] = true
		eg.Go(func() error { return c.blob(egctx, l) })
	}
	if err := eg.Wait(); err != nil {
		return err
	}
	return (&chaining{included: included, seen: map[*record]bool{}}).record(c.ref.record)
}

// blob computes one layer's blob, unless it has one, and its compression if that
// is forced.
func (c *computation) blob(ctx context.Context, r *record) error {
	if keyBlob.get(r.meta) == "" && !c.create {
		return fmt.Errorf("record %s: %w", r.ID(), bkcache.ErrNoBlobs)
	}
	if keyBlob.get(r.meta) == "" {
		err := c.m.alone(ctx, "compute "+r.ID(), func(ctx context.Context) error {
			if keyBlob.get(r.meta) != "" {
				return nil
			}
			desc, err := c.compute(ctx, r)
			if err != nil {
				return fmt.Errorf("compute the layer of record %s: %w", r.ID(), err)
			}
			return r.setBlob(ctx, desc)
		})
		if err != nil {
			return err
		}
	}
	if !c.comp.Force {
		return nil
	}
	return c.ensureCompression(ctx, r)
}

// sides are the records whose difference a layer is. Either may be nil.
func (r *record) sides() (lower, upper *record) {
	switch p := r.parents; {
	case p.diff:
		if p.lower != nil {
			lower = p.lower.record
		}
		if p.upper != nil {
			upper = p.upper.record
		}
		return lower, upper
	case p.layer != nil:
		return p.layer.record, r
	}
	return nil, r
}

// compute makes the blob of a layer and returns its descriptor.
func (c *computation) compute(ctx context.Context, r *record) (ocispecs.Descriptor, error) {
	lowerRecord, upperRecord := r.sides()
	lower, unmount, err := c.mounts(ctx, lowerRecord)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer unmount()
	upper, unmountUpper, err := c.mounts(ctx, upperRecord)
	if err != nil {
		return ocispecs.Descriptor{}, err
	}
	defer unmountUpper()

	compressor, finish := c.comp.Type.Compress(ctx, c.comp)
	d := differ{computation: c, record: r, lower: lower, upper: upper, compressor: compressor, mediaType: c.comp.Type.MediaType()}
	desc, err := d.run(ctx)
	if err != nil {
		return desc, err
	}
	desc.Annotations = maps.Clone(desc.Annotations)
	if desc.Annotations == nil {
		desc.Annotations = map[string]string{}
	}
	if finish != nil {
		more, err := finish(ctx, c.m.content)
		if err != nil {
			return desc, fmt.Errorf("finish %s: %w", c.comp.Type, err)
		}
		maps.Copy(desc.Annotations, more)
	}
	info, err := c.m.content.Info(ctx, desc.Digest)
	if err != nil {
		return desc, err
	}
	switch diffID := info.Labels[labels.LabelUncompressed]; {
	case diffID != "":
		desc.Annotations[labels.LabelUncompressed] = diffID
	case d.mediaType == ocispecs.MediaTypeImageLayer:
		desc.Annotations[labels.LabelUncompressed] = desc.Digest.String()
	default:
		return desc, fmt.Errorf("the digest of the tar in blob %s is not known", desc.Digest)
	}
	return desc, nil
}

// mounts are the read-only mounts of a side, to be compared; none for nil.
func (c *computation) mounts(ctx context.Context, r *record) ([]mount.Mount, func(), error) {
	if r == nil {
		return nil, func() {}, nil
	}
	// Held by the record that is computed; no ref of its own is needed.
	h := &immutableRef{&ref{record: r, handlers: c.ref.handlers, pg: c.ref.pg}}
	mountable, err := h.mountToCompare(ctx, c.sessions)
	if err != nil {
		return nil, nil, err
	}
	mounts, unmount, err := mountable.Mount()
	if err != nil {
		return nil, nil, err
	}
	return mounts, func() {
		if err := call(unmount); err != nil {
			bklog.G(ctx).WithError(err).Warnf("cache: unmount record %s", r.ID())
		}
	}, nil
}

// differ makes the tar of a difference, by the way that is best for the mounts.
type differ struct {
	*computation
	record       *record
	lower, upper []mount.Mount
	compressor   compression.Compressor
	mediaType    string
}

// envForceOverlay makes BuildKit's choice of a differ: "true" allows no other than
// the one for overlays.
const envForceOverlay = "BUILDKIT_DEBUG_FORCE_OVERLAY_DIFF"

func (d *differ) run(ctx context.Context) (ocispecs.Descriptor, error) {
	isDiff := d.record.kind() == kindDiff
	try, must := !isWindows(d.record), false
	if v := os.Getenv(envForceOverlay); v != "" && !isDiff {
		force, err := strconv.ParseBool(v)
		if err != nil {
			return ocispecs.Descriptor{}, fmt.Errorf("$%s: %w", envForceOverlay, err)
		}
		try, must = force, force
	}
	if try {
		desc, ok, err := d.overlay(ctx)
		switch {
		case ok && err == nil:
			return desc, nil
		case must && err == nil:
			return desc, fmt.Errorf("no overlay mounts: lower %v, upper %v", d.lower, d.upper)
		case ctx.Err() != nil:
			return desc, context.Cause(ctx)
		case must:
			return desc, err
		case err != nil && !isDiff:
			// The whole trees are compared now, which is slow, and on a lazy base it
			// fetches all of it.
			bklog.G(ctx).WithError(err).Warnf("cache: the overlay of record %s can't be turned into a layer directly", d.record.ID())
		}
	}
	opts := []diff.Opt{
		diff.WithMediaType(d.mediaType),
		diff.WithReference(d.record.ID()),
		diff.WithCompressor(d.compressor),
	}
	if !isWindows(d.record) && d.comp.Type.NeedsComputeDiffBySelf(d.comp) {
		// Compressions that a differ in another process would not know.
		desc, err := walking.NewWalkingDiff(d.m.content).Compare(ctx, d.lower, d.upper, opts...)
		if err == nil {
			return desc, nil
		}
		bklog.G(ctx).WithError(err).Warnf("cache: compare the trees of record %s", d.record.ID())
	}
	return d.m.opts.Differ.Compare(ctx, d.lower, d.upper, opts...)
}

// overlay writes the upper directory of an overlay whose lower directories are the
// other side. ok is false where the mounts are not like that.
func (d *differ) overlay(ctx context.Context) (_ ocispecs.Descriptor, ok bool, rerr error) {
	upperdir, err := overlay.GetUpperdir(d.lower, d.upper)
	if err != nil {
		return ocispecs.Descriptor{}, false, nil
	}
	cs, ref := d.m.content, d.record.ID()
	w, err := cs.Writer(ctx, content.WithRef(ref), content.WithDescriptor(ocispecs.Descriptor{MediaType: d.mediaType}))
	if err != nil {
		return ocispecs.Descriptor{}, true, fmt.Errorf("open a writer: %w", err)
	}
	defer func() {
		rerr = errors.Join(rerr, w.Close())
		if rerr != nil {
			if err := cs.Abort(context.WithoutCancel(ctx), ref); err != nil && !cerrdefs.IsNotFound(err) {
				bklog.G(ctx).WithError(err).Warnf("cache: what was written of record %s stays", ref)
			}
		}
	}()
	if err := w.Truncate(0); err != nil {
		return ocispecs.Descriptor{}, true, fmt.Errorf("start over: %w", err)
	}
	diffID, err := d.writeUpper(ctx, w, upperdir)
	if err != nil {
		return ocispecs.Descriptor{}, true, err
	}
	dgst := w.Digest()
	add := map[string]string{labels.LabelUncompressed: diffID.String()}
	if err := w.Commit(ctx, 0, dgst, content.WithLabels(add)); err != nil && !cerrdefs.IsAlreadyExists(err) {
		return ocispecs.Descriptor{}, true, fmt.Errorf("commit blob %s: %w", dgst, err)
	}
	info, err := cs.Info(ctx, dgst)
	if err != nil {
		return ocispecs.Descriptor{}, true, err
	}
	if info.Labels[labels.LabelUncompressed] == "" { // it was there before, without the label
		if err := d.m.label(ctx, dgst, add); err != nil {
			return ocispecs.Descriptor{}, true, err
		}
	}
	return ocispecs.Descriptor{MediaType: d.mediaType, Digest: dgst, Size: info.Size}, true, nil
}

// writeUpper writes the compressed tar of an upper directory and returns the
// digest of the plain one.
func (d *differ) writeUpper(ctx context.Context, w io.Writer, upperdir string) (_ digest.Digest, rerr error) {
	tar := digest.Canonical.Digester()
	buf := bufio.NewWriterSize(w, 128<<10)
	out := io.Writer(buf)
	finish := func() error { return nil }
	if d.compressor != nil {
		c, err := d.compressor(buf, d.mediaType)
		if err != nil {
			return "", fmt.Errorf("compress: %w", err)
		}
		closed := false
		finish = func() error { closed = true; return c.Close() }
		defer func() {
			if !closed {
				_ = c.Close() // after an error that says more
			}
		}()
		out = c
	}
	if err := overlay.WriteUpperdir(ctx, io.MultiWriter(out, tar.Hash()), upperdir, d.lower); err != nil {
		return "", fmt.Errorf("write the upper directory: %w", err)
	}
	if err := finish(); err != nil {
		return "", fmt.Errorf("compress: %w", err)
	}
	if err := buf.Flush(); err != nil {
		return "", fmt.Errorf("write: %w", err)
	}
	return tar.Digest(), nil
}

// setBlob makes a computed blob the record's. The caller has a lease for it in ctx.
func (r *record) setBlob(ctx context.Context, desc ocispecs.Descriptor) error {
	diffID, err := diffIDOf(desc)
	if err != nil {
		return err
	}
	if err := r.m.addToLease(ctx, r.ID(), blobResource(desc.Digest)); err != nil {
		return err
	}
	var c change
	put(&c, keyDiffID, diffID)
	put(&c, keyIdentity, diffID)
	put(&c, keyBlob, desc.Digest)
	put(&c, keyMediaType, desc.MediaType)
	put(&c, keyBlobSize, desc.Size)
	if len(desc.URLs) > 0 {
		put(&c, keyURLs, appendNew(keyURLs.get(r.meta), desc.URLs...))
	}
	if err := r.meta.commit(c); err != nil {
		return err
	}
	return r.linkBlob(ctx, desc)
}

// isWindows says that a record's layers are Windows' on another system.
func isWindows(r *record) bool {
	if r.GetLayerType() == layerTypeWindows {
		return true
	}
	switch r.kind() {
	case kindMerge:
		for _, p := range r.parents.merge {
			if isWindows(p.record) {
				return true
			}
		}
	case kindLayer:
		return isWindows(r.parents.layer.record)
	}
	return false
}

package worker

import (
	"bytes"
	"context"
	"encoding/json"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/source"
	"github.com/moby/buildkit/source/containerimage"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// BuildKit pulls an image's manifest, then its config, has a frontend plan the build, and looks
// for both again, before it asks for the image's layers. What has to be known of a lazy layer first, its
// table of contents, is asked for when the manifest is there.

const (
	// maxManifest is the size of the largest manifest that is looked at; registries take no
	// larger ones.
	maxManifest = 4 << 20
	// maxStacked is how many layers overlayfs takes.
	maxStacked = 500
)

// pulling says in a context which image is being pulled, and for which build.
type pulling struct {
	reference string
	job       solver.JobContext
}

type pullingKey struct{}

// withPulling puts the image into the context of a pull.
func withPulling(ctx context.Context, reference string, job solver.JobContext) context.Context {
	if job == nil {
		return ctx // nobody to ask on behalf of
	}
	return context.WithValue(ctx, pullingKey{}, pulling{reference, job})
}

// during returns a context that ends with the build.
func (p pulling) during() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	err := p.job.Cleanup(func() error {
		cancel()
		return nil
	})
	if err != nil {
		cancel()
	}
	return ctx
}

// sessions are the build's.
func (p pulling) sessions() []string { return bksession.AllSessionIDs(p.job.Session()) }

// ResolveSourceMetadata implements bkworker.Worker.
func (w *Worker) ResolveSourceMetadata(ctx context.Context, op *pb.SourceOp, opt sourceresolver.Opt, sm *bksession.Manager, job solver.JobContext) (*sourceresolver.MetaResponse, error) {
	if id, err := w.ParseSource(op, nil); err == nil { // or else BuildKit says what is wrong
		if id, ok := id.(*containerimage.ImageIdentifier); ok {
			ctx = withPulling(ctx, id.Reference.String(), job)
		}
	}
	return w.Worker.ResolveSourceMetadata(ctx, op, opt, sm, job)
}

// imageSource is BuildKit's, whose pulls say what they pull.
type imageSource struct{ *containerimage.Source }

// Resolve implements source.Source.
func (s imageSource) Resolve(ctx context.Context, id source.Identifier, sm *bksession.Manager, v solver.Vertex) (source.SourceInstance, error) {
	one, err := s.Source.Resolve(ctx, id, sm, v)
	if id, ok := id.(*containerimage.ImageIdentifier); ok && err == nil {
		one = imagePull{one, id.Reference.String()}
	}
	return one, err
}

type imagePull struct {
	source.SourceInstance
	reference string
}

// CacheKey implements source.SourceInstance.
func (p imagePull) CacheKey(ctx context.Context, job solver.JobContext, index int) (key, pin string, opts solver.CacheOpts, done bool, err error) {
	return p.SourceInstance.CacheKey(withPulling(ctx, p.reference, job), job, index)
}

// manifests is a content store that looks at the manifests which pulls put into it.
type manifests struct {
	content.Store
	// expect is told of the lazy layers of an image that is pulled by a build, which ends with
	// ctx. It does not block.
	expect func(ctx context.Context, layers []remotesnapshot.Source, s remotesnapshot.Sessions)
}

// Writer implements content.Ingester.
func (m manifests) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := m.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	p, ok := ctx.Value(pullingKey{}).(pulling)
	if !ok {
		return w, nil
	}
	var o content.WriterOpts
	for _, set := range opts {
		if err := set(&o); err != nil {
			return w, nil // the store has taken it
		}
	}
	if !images.IsManifestType(o.Desc.MediaType) || o.Desc.Size > maxManifest {
		return w, nil
	}
	return &manifestWriter{Writer: w, seen: func(manifest []byte) {
		if layers := lazyLayers(p.reference, manifest); len(layers) > 0 {
			m.expect(p.during(), layers, p.sessions)
		}
	}}, nil
}

// manifestWriter keeps what is written, until it is committed.
type manifestWriter struct {
	content.Writer
	buf  bytes.Buffer
	seen func(manifest []byte)
}

func (w *manifestWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if w.buf.Len()+n <= maxManifest {
		w.buf.Write(p[:n])
	}
	return n, err
}

func (w *manifestWriter) Truncate(size int64) error {
	err := w.Writer.Truncate(size)
	if err == nil {
		w.buf.Reset()
	}
	return err
}

// Commit looks at the manifest when it is what it should be, and whole: what an earlier writer
// has left is not.
func (w *manifestWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	if err == nil && expected != "" && expected.Algorithm().FromBytes(w.buf.Bytes()) == expected {
		w.seen(w.buf.Bytes())
	}
	return err
}

// lazyLayers are the layers of an image whose manifest says that they have a table of contents.
func lazyLayers(reference string, manifest []byte) (layers []remotesnapshot.Source) {
	var m ocispecs.Manifest
	if json.Unmarshal(manifest, &m) != nil || len(m.Layers) > maxStacked {
		return nil // who pulls it says why
	}
	for _, l := range m.Layers {
		if remotesnapshot.TOCDigest(l.Annotations) == "" || l.Digest.Validate() != nil {
			continue
		}
		layers = append(layers, remotesnapshot.Source{
			Reference:   reference,
			Digest:      l.Digest,
			Annotations: remotesnapshot.KnownAnnotations(l.Annotations),
			Size:        max(l.Size, 0),
		})
	}
	return layers
}

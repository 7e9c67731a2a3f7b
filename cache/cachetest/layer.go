package cachetest

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"io"
	"maps"
	"strconv"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/pkg/labels"
	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/klauspost/compress/zstd"
	bkcache "github.com/moby/buildkit/cache"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/util/compression"
	"github.com/moby/buildkit/util/contentutil"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// compressions are the forms that a blob can have.
var compressions = []compression.Type{compression.Uncompressed, compression.Gzip, compression.EStargz, compression.Zstd}

// layer is a blob with its descriptor.
type layer struct {
	desc ocispecs.Descriptor
	data []byte
}

func (l layer) diffID() digest.Digest {
	return digest.Digest(l.desc.Annotations[labels.LabelUncompressed])
}

// claiming is the layer under a wrong DiffID.
func (l layer) claiming(diffID digest.Digest) layer {
	return l.annotated(labels.LabelUncompressed, diffID.String())
}

// annotated is the layer with an annotation of its descriptor.
func (l layer) annotated(key, val string) layer {
	l.desc.Annotations = maps.Clone(l.desc.Annotations)
	l.desc.Annotations[key] = val
	return l
}

// gz makes a gzip layer of files.
func (e *env) gz(files ...change) layer { return e.layer(compression.Gzip, files...) }

// layer makes a layer of files.
func (e *env) layer(c compression.Type, files ...change) layer {
	e.t.Helper()
	plain := e.tar(files...)
	data, diffID := e.compress(c, plain)
	l := layer{data: data, desc: ocispecs.Descriptor{
		MediaType:   c.MediaType(),
		Digest:      digest.FromBytes(data),
		Size:        int64(len(data)),
		Annotations: map[string]string{labels.LabelUncompressed: diffID.String()},
	}}
	if c == compression.EStargz {
		toc, size := e.tocOf(data)
		l = l.annotated(estargz.TOCJSONDigestAnnotation, toc.String()).
			annotated(estargz.StoreUncompressedSizeAnnotation, strconv.FormatInt(size, 10))
	}
	return l
}

// tocOf finds the TOC digest of an eStargz, and the size of what it decompresses to.
func (e *env) tocOf(data []byte) (toc digest.Digest, size int64) {
	e.t.Helper()
	r, err := estargz.Open(io.NewSectionReader(bytes.NewReader(data), 0, int64(len(data))))
	require.NoError(e.t, err)
	gz, err := gzip.NewReader(bytes.NewReader(data))
	require.NoError(e.t, err)
	size, err = io.Copy(io.Discard, gz)
	require.NoError(e.t, err)
	return r.TOCDigest(), size
}

// tar is a plain tar, with whiteouts for files that are gone.
func (e *env) tar(files ...change) []byte {
	e.t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := &tar.Header{Name: f.name, Size: int64(len(f.body)), Mode: 0o644, ModTime: time.Unix(0, 0)}
		switch {
		case f.gone:
			h.Name, h.Size = whiteout(f.name), 0
		case f.dir:
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		require.NoError(e.t, w.WriteHeader(h))
		_, err := io.WriteString(w, f.body)
		require.NoError(e.t, err)
	}
	require.NoError(e.t, w.Close())
	return b.Bytes()
}

// compress returns a blob and its DiffID: what is decompressed of an eStargz has a
// TOC at the end.
func (e *env) compress(c compression.Type, plain []byte) (blob []byte, diffID digest.Digest) {
	e.t.Helper()
	diffID = digest.FromBytes(plain)
	var b bytes.Buffer
	switch c {
	case compression.Uncompressed:
		return plain, diffID
	case compression.Gzip:
		w := gzip.NewWriter(&b)
		_, err := w.Write(plain)
		require.NoError(e.t, err)
		require.NoError(e.t, w.Close())
	case compression.Zstd:
		w, err := zstd.NewWriter(&b)
		require.NoError(e.t, err)
		_, err = w.Write(plain)
		require.NoError(e.t, err)
		require.NoError(e.t, w.Close())
	case compression.EStargz:
		w := estargz.NewWriterLevel(&b, gzip.BestSpeed)
		require.NoError(e.t, w.AppendTarLossLess(bytes.NewReader(plain)))
		_, err := w.Close()
		require.NoError(e.t, err)
		diffID = digest.Digest(w.DiffID())
	}
	return b.Bytes(), diffID
}

// store puts blobs into the content store. No lease keeps them.
func (e *env) store(layers ...layer) {
	e.t.Helper()
	for _, l := range layers {
		require.NoError(e.t, content.WriteBlob(e.ctx, e.content, "store-"+l.desc.Digest.String(), bytes.NewReader(l.data), l.desc))
	}
}

// hasBlob says whether the content store has a blob.
func (e *env) hasBlob(dgst digest.Digest) bool {
	_, err := e.content.Info(e.ctx, dgst)
	return err == nil
}

// registry provides blobs and counts who asked for them.
type registry struct {
	content.Provider
	mu     sync.Mutex
	asked  map[digest.Digest]int
	broken bool
}

// ReaderAt implements content.Provider.
func (r *registry) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	r.mu.Lock()
	r.asked[desc.Digest]++
	broken := r.broken
	r.mu.Unlock()
	if broken {
		return nil, errFault
	}
	return r.Provider.ReaderAt(ctx, desc)
}

// fetched says how often a layer was asked for.
func (r *registry) fetched(l layer) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked[l.desc.Digest]
}

// fail makes all later requests fail, or no more.
func (r *registry) fail(broken bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.broken = broken
}

// remote puts layers into a registry, and returns handlers for them.
func (e *env) remote(layers ...layer) (*registry, bkcache.DescHandlers) {
	e.t.Helper()
	buf := contentutil.NewBuffer()
	r := &registry{Provider: buf, asked: map[digest.Digest]int{}}
	handlers := bkcache.DescHandlers{}
	for _, l := range layers {
		require.NoError(e.t, content.WriteBlob(e.ctx, buf, l.desc.Digest.String(), bytes.NewReader(l.data), l.desc))
		handlers[l.desc.Digest] = &bkcache.DescHandler{
			Provider:    func(bksession.Group) content.Provider { return r },
			Annotations: l.desc.Annotations,
		}
	}
	return r, handlers
}

package e2e

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"testing"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	et "github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/hack/lab"
)

// honest is a layer whose table of contents says what its tar says. Without entries
// it has a file that no other layer has.
func honest(entries ...et.Entry) func(t *testing.T) lab.RawLayer {
	return in(estargz.FormatEStargz, entries...)
}

func in(f estargz.Format, entries ...et.Entry) func(t *testing.T) lab.RawLayer {
	return func(t *testing.T) lab.RawLayer {
		if entries == nil {
			return packed(t, f, goodFile())
		}
		return packed(t, f, entries...)
	}
}

func packed(t *testing.T, f estargz.Format, entries ...et.Entry) lab.RawLayer {
	l := et.Build(t, et.Options{Format: f}, entries...)
	mediaType := ocispecs.MediaTypeImageLayerGzip
	if f == estargz.FormatZstdChunked {
		mediaType = ocispecs.MediaTypeImageLayerZstd
	}
	return lab.RawLayer{
		Blob: l.Blob, DiffID: l.DiffID,
		Desc: ocispecs.Descriptor{MediaType: mediaType, Annotations: l.Annotations},
	}
}

// changed is a layer that was good until change was called.
func changed(make func(t *testing.T) lab.RawLayer, change func(l *lab.RawLayer)) func(t *testing.T) lab.RawLayer {
	return func(t *testing.T) lab.RawLayer {
		l := make(t)
		change(&l)
		return l
	}
}

// goodFile is a file of 12 bytes, others at each call: layers of one DiffID may share
// a snapshot.
func goodFile() et.Entry {
	return et.File("hostile-file", fmt.Appendf(nil, "file %07d", goodFiles.Add(1)))
}

var goodFiles atomic.Int64

// described is a layer of a goodFile with the table of contents doc, which the manifest
// vouches for. %DATA% in doc stands for the right offset and digest.
func described(doc string) func(t *testing.T) lab.RawLayer {
	return func(t *testing.T) lab.RawLayer {
		header, data, file := &bytes.Buffer{}, &bytes.Buffer{}, goodFile()
		require.NoError(t, et.WriteTar(header, file))
		head := header.Bytes()[:header.Len()-1024-512] // without contents and end
		gzipTo(t, data, func(w io.Writer) { w.Write(head) })
		at := data.Len()
		gzipTo(t, data, func(w io.Writer) { w.Write(append(bytes.Clone(file.Data), make([]byte, 512-len(file.Data))...)) })
		right := fmt.Sprintf(`"offset":%d,"chunkDigest":"%s"`, at, digest.FromBytes(file.Data))
		return raw(t, data.Bytes(), []byte(strings.ReplaceAll(doc, "%DATA%", right)))
	}
}

// raw is a layer of a payload, gzip members of a tar, with a table of contents.
func raw(t *testing.T, payload, doc []byte) lab.RawLayer {
	l, err := et.RawLayer(payload, doc)
	require.NoError(t, err)
	return lab.RawLayer{
		Blob: l.Blob, DiffID: diffID(t, l.Blob),
		Desc: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Annotations: l.Annotations},
	}
}

func gzipTo(t *testing.T, w io.Writer, write func(w io.Writer)) {
	z, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
	require.NoError(t, err)
	write(z)
	require.NoError(t, z.Close())
}

func diffID(t *testing.T, blob []byte) digest.Digest {
	z, err := gzip.NewReader(bytes.NewReader(blob))
	require.NoError(t, err)
	sum := digest.Canonical.Digester()
	_, err = io.Copy(sum.Hash(), z)
	require.NoError(t, err)
	return sum.Digest()
}

// zeros writes n zero bytes.
func zeros(w io.Writer, n int64) {
	block := make([]byte, 1<<20)
	for ; n > 0; n -= int64(len(block)) {
		block = block[:min(n, int64(len(block)))]
		w.Write(block)
	}
}

func sumOfZeros(n int64) string {
	h := sha256.New()
	zeros(h, n)
	return fmt.Sprintf("sha256:%x", h.Sum(nil))
}

// bomb is a layer whose files lie in one gzip member of size zero bytes. What the
// tar is meant to be, nobody can tell.
func bomb(size int64, doc string) func(t *testing.T) lab.RawLayer {
	return func(t *testing.T) lab.RawLayer {
		var payload bytes.Buffer
		gzipTo(t, &payload, func(w io.Writer) { zeros(w, size) })
		l, err := et.RawLayer(payload.Bytes(), []byte(doc))
		require.NoError(t, err)
		return lab.RawLayer{Blob: l.Blob, Desc: ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Annotations: l.Annotations}}
	}
}

// tocBomb is a layer of a goodFile with a table of contents of size bytes: spaces,
// behind a good one.
func tocBomb(size int64) func(t *testing.T) lab.RawLayer {
	return func(t *testing.T) lab.RawLayer {
		doc := []byte(`{"version":1,"entries":[]}`)
		payload, toc, sum := &bytes.Buffer{}, &bytes.Buffer{}, sha256.New()
		gzipTo(t, payload, func(w io.Writer) {
			b := &bytes.Buffer{}
			require.NoError(t, et.WriteTar(b, goodFile()))
			w.Write(b.Bytes()[:b.Len()-1024])
		})
		gzipTo(t, toc, func(w io.Writer) {
			tw := tar.NewWriter(w)
			require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stargz.index.json", Size: size}))
			out := io.MultiWriter(tw, sum)
			out.Write(doc)
			spaces := bytes.Repeat([]byte{' '}, 1<<20)
			for n := size - int64(len(doc)); n > 0; n -= int64(len(spaces)) {
				spaces = spaces[:min(n, int64(len(spaces)))]
				out.Write(spaces)
			}
			require.NoError(t, tw.Close())
		})
		blob := append(payload.Bytes(), toc.Bytes()...)
		blob = append(blob, et.Footer(int64(payload.Len()))...)
		return lab.RawLayer{
			Blob: blob, DiffID: diffID(t, blob),
			Desc: ocispecs.Descriptor{
				MediaType:   ocispecs.MediaTypeImageLayerGzip,
				Annotations: map[string]string{et.AnnotationTOCDigest: fmt.Sprintf("sha256:%x", sum.Sum(nil))},
			},
		}
	}
}

// footer replaces the footer of an eStargz.
func footer(with func(blob []byte, toc int64) []byte) func(l *lab.RawLayer) {
	return func(l *lab.RawLayer) {
		const size = 51
		loc, err := estargz.ParseFooter(l.Blob, int64(len(l.Blob)))
		if err != nil {
			panic(err)
		}
		l.Blob = append(bytes.Clone(l.Blob[:len(l.Blob)-size]), with(l.Blob, loc.Offset)...)
	}
}

// describe changes how the manifest describes a layer.
func describe(change func(d *ocispecs.Descriptor)) func(l *lab.RawLayer) {
	return func(l *lab.RawLayer) { change(&l.Desc) }
}

// entries is a table of contents.
func entries(e ...string) string {
	return `{"version":1,"entries":[` + strings.Join(e, ",") + `]}`
}

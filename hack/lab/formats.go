package lab

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash"
	"io"
	"os"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	kgzip "github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Format is how the layers of an image are packed.
type Format string

const (
	Gzip        Format = "gzip"        // ordinary: no table of contents
	EStargz     Format = "estargz"     // gzip members and a table of contents
	ZstdChunked Format = "zstdchunked" // zstd frames and a table of contents
	Stargz      Format = "stargz"      // legacy stargz: no digest of the table of contents or of chunks
)

// Formats are all that this package can make.
var Formats = []Format{Gzip, EStargz, ZstdChunked, Stargz}

// ParseFormat finds a format by its name.
func ParseFormat(name string) (Format, error) {
	for _, f := range Formats {
		if string(f) == name {
			return f, nil
		}
	}
	return "", fmt.Errorf("unknown layer format %q (known: %v)", name, Formats)
}

// convert packs the .tar.zst file at source into w. It returns the
// descriptor, its digest and size left to the caller, and the digest of the
// tar inside, which the formats with a table of contents change.
func convert(ctx context.Context, source *os.File, p Packing, w io.Writer) (ocispecs.Descriptor, digest.Digest, error) {
	switch p.Format {
	case Gzip:
		return convertGzip(source, w)
	case EStargz, ZstdChunked, Stargz:
		return convertStargz(ctx, source, p, w)
	}
	return ocispecs.Descriptor{}, "", fmt.Errorf("unknown layer format %q", p.Format)
}

func convertGzip(source io.Reader, w io.Writer) (ocispecs.Descriptor, digest.Digest, error) {
	var none ocispecs.Descriptor
	zr, err := zstd.NewReader(source)
	if err != nil {
		return none, "", fmt.Errorf("open layer: %w", err)
	}
	defer zr.Close()
	zw, err := kgzip.NewWriterLevel(w, kgzip.DefaultCompression)
	if err != nil {
		return none, "", fmt.Errorf("compress layer: %w", err)
	}
	diffID := digest.Canonical.Digester()
	if _, err := io.Copy(io.MultiWriter(zw, diffID.Hash()), zr); err != nil {
		return none, "", fmt.Errorf("compress layer: %w", err)
	}
	if err := zw.Close(); err != nil {
		return none, "", fmt.Errorf("compress layer: %w", err)
	}
	return ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip}, diffID.Digest(), nil
}

func convertStargz(ctx context.Context, source *os.File, p Packing, w io.Writer) (ocispecs.Descriptor, digest.Digest, error) {
	var none ocispecs.Descriptor
	format := p.Format
	info, err := source.Stat()
	if err != nil {
		return none, "", fmt.Errorf("open layer: %w", err)
	}
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageLayerGzip, Annotations: map[string]string{}}
	opts := []estargz.Option{estargz.WithContext(ctx), estargz.WithCompressionLevel(gzip.DefaultCompression)}
	if p.ChunkSize > 0 {
		opts = append(opts, estargz.WithChunkSize(p.ChunkSize))
	}
	switch format {
	case ZstdChunked:
		desc.MediaType = ocispecs.MediaTypeImageLayerZstd
		opts = append(opts, estargz.WithCompression(struct {
			*zstdchunked.Compressor
			*zstdchunked.Decompressor
		}{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: desc.Annotations},
			&zstdchunked.Decompressor{},
		}))
	case Stargz:
		opts = append(opts, estargz.WithCompression(legacyCompression{
			estargz.NewGzipCompressorWithLevel(gzip.DefaultCompression), &estargz.LegacyGzipDecompressor{},
		}))
	}
	blob, err := estargz.Build(io.NewSectionReader(source, 0, info.Size()), opts...)
	if err != nil {
		return none, "", fmt.Errorf("convert layer to %s: %w", format, err)
	}
	_, err = io.Copy(w, blob)
	if cerr := blob.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return none, "", fmt.Errorf("convert layer to %s: %w", format, err)
	}
	size, err := blob.UncompressedSize()
	if err != nil {
		return none, "", fmt.Errorf("convert layer to %s: %w", format, err)
	}
	if format != Stargz {
		// The keys that nerdctl and BuildKit write.
		desc.Annotations[estargz.StoreUncompressedSizeAnnotation] = fmt.Sprint(size)
		desc.Annotations[estargz.TOCJSONDigestAnnotation] = blob.TOCDigest().String()
	}
	if format == ZstdChunked {
		// They belong to eStargz. The compressor has added its own.
		delete(desc.Annotations, estargz.StoreUncompressedSizeAnnotation)
		delete(desc.Annotations, estargz.TOCJSONDigestAnnotation)
	}
	return desc, blob.DiffID(), nil
}

// legacyCompression writes the first stargz format, that of CRFS: a table of
// contents without digests, and a footer of 47 bytes.
type legacyCompression struct {
	*estargz.GzipCompressor
	*estargz.LegacyGzipDecompressor
}

func (c legacyCompression) WriteTOCAndFooter(w io.Writer, off int64, toc *estargz.JTOC, diffHash hash.Hash) (digest.Digest, error) {
	plain := estargz.JTOC{Version: toc.Version}
	for _, e := range toc.Entries {
		entry := *e
		entry.Digest, entry.ChunkDigest = "", ""
		plain.Entries = append(plain.Entries, &entry)
	}
	data, err := json.MarshalIndent(plain, "", "\t")
	if err != nil {
		return "", fmt.Errorf("encode the table of contents: %w", err)
	}
	zw := gzip.NewWriter(w)
	var out io.Writer = zw
	if diffHash != nil {
		out = io.MultiWriter(zw, diffHash)
	}
	tw := tar.NewWriter(out)
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: estargz.TOCTarName, Size: int64(len(data))}); err != nil {
		return "", fmt.Errorf("write the table of contents: %w", err)
	}
	if _, err := tw.Write(data); err != nil {
		return "", fmt.Errorf("write the table of contents: %w", err)
	}
	if err := tw.Close(); err != nil {
		return "", fmt.Errorf("write the table of contents: %w", err)
	}
	if err := zw.Close(); err != nil {
		return "", fmt.Errorf("write the table of contents: %w", err)
	}
	if _, err := w.Write(legacyFooter(off)); err != nil {
		return "", fmt.Errorf("write the footer: %w", err)
	}
	return digest.FromBytes(data), nil
}

// legacyFooter is an empty gzip member whose extra field is the offset of the
// table of contents in hexadecimal, then "STARGZ": 10 bytes of gzip header, 2 of
// the extra field's length, 22 of it, 5 of an empty stored block, 8 of trailer.
func legacyFooter(off int64) []byte {
	const size = 10 + 2 + 22 + 5 + 8
	extra := fmt.Sprintf("%016xSTARGZ", off)
	var buf bytes.Buffer
	buf.Write([]byte{0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff})
	var length [2]byte
	binary.LittleEndian.PutUint16(length[:], uint16(len(extra)))
	buf.Write(length[:])
	buf.WriteString(extra)
	buf.Write([]byte{1, 0, 0, 0xff, 0xff})
	buf.Write(make([]byte, 8))
	if buf.Len() != size {
		panic("legacy footer of a wrong size")
	}
	return buf.Bytes()
}

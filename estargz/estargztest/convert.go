package estargztest

import (
	"archive/tar"
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"os"

	upstream "github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/externaltoc"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// Options of a conversion. The zero value but for Format is what the format's
// usual writer does.
type Options struct {
	Format estargz.Format

	ChunkSize    int // bytes of a file in one chunk; 0: 4 MiB
	MinChunkSize int // eStargz: files smaller than that share a member
	Level        int // gzip level; 0: 6

	// Prioritized files come first, with a landmark behind them (eStargz and
	// zstd:chunked; stargz-snapshotter's Build, which sorts, drops duplicate
	// names and needs memory for the names). Landmark asks for Build without
	// any: the layer has the no-prefetch landmark.
	Prioritized []string
	Landmark    bool

	// Storage makes a zstd:chunked layer as containers/storage does: long
	// footer, tar-split data, chunks of zeros, digests of single chunks left to
	// the file, and the annotations of its family.
	Storage bool
}

// Converted describes a blob that Convert wrote.
type Converted struct {
	Digest      digest.Digest // of the blob
	Size        int64         // of the blob
	DiffID      digest.Digest // of the tar that the blob decompresses to
	TOCDigest   digest.Digest // what the annotations vouch for; "" for legacy stargz
	Annotations map[string]string
	TOC         []byte // FormatEStargzExtern: the TOC's own blob
}

// Annotations of a layer descriptor.
const (
	AnnotationTOCDigest    = upstream.TOCJSONDigestAnnotation
	AnnotationZstdChecksum = zstdchunked.ManifestChecksumAnnotation
	AnnotationZstdPosition = zstdchunked.ManifestPositionAnnotation

	AnnotationStorageChecksum = "io.github.containers.zstd-chunked.manifest-checksum"
	AnnotationStoragePosition = "io.github.containers.zstd-chunked.manifest-position"
)

// Convert writes a tar (plain or gzip) as a layer that can be read in parts.
func Convert(w io.Writer, r io.Reader, opts Options) (Converted, error) {
	blob := &countingWriter{w: w, sum: sha256.New()}
	diff := sha256.New()
	out := Converted{Annotations: map[string]string{}}
	plain, err := plainTar(r)
	if err != nil {
		return out, err
	}
	switch {
	case opts.Format == estargz.FormatStargz:
		err = writeLegacy(blob, plain, opts, diff)
	case opts.Format == estargz.FormatZstdChunked && opts.Storage:
		err = writeStorage(blob, io.TeeReader(plain, diff), opts, out.Annotations)
		out.TOCDigest = digest.Digest(out.Annotations[AnnotationStorageChecksum])
	default:
		return convertUpstream(blob, plain, opts)
	}
	if err != nil {
		return out, fmt.Errorf("convert to %s: %w", opts.Format, err)
	}
	out.Digest, out.Size = digest.NewDigest(digest.SHA256, blob.sum), blob.n
	out.DiffID = digest.NewDigest(digest.SHA256, diff)
	return out, nil
}

// plainTar decompresses r if it is gzip.
func plainTar(r io.Reader) (io.Reader, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	if head, _ := br.Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		return gzip.NewReader(br)
	}
	return br, nil
}

// compression is a format of stargz-snapshotter's writers.
type compression struct {
	upstream.Compressor
	upstream.Decompressor
}

// convertUpstream lets stargz-snapshotter write the blob.
func convertUpstream(blob *countingWriter, plain io.Reader, opts Options) (Converted, error) {
	out := Converted{Annotations: map[string]string{}}
	var c compression
	level := opts.Level
	if level == 0 {
		level = gzip.DefaultCompression
	}
	var ext *externaltoc.GzipCompressor
	switch opts.Format {
	case estargz.FormatEStargz:
		c = compression{upstream.NewGzipCompressorWithLevel(level), new(upstream.GzipDecompressor)}
	case estargz.FormatEStargzExtern:
		ext = externaltoc.NewGzipCompressorWithLevel(level)
		c = compression{ext, externaltoc.NewGzipDecompressor(nil)}
	case estargz.FormatZstdChunked:
		c = compression{
			&zstdchunked.Compressor{CompressionLevel: zstd.SpeedDefault, Metadata: out.Annotations},
			new(zstdchunked.Decompressor),
		}
	default:
		return out, fmt.Errorf("convert to %s: no such writer", opts.Format)
	}
	var err error
	var toc digest.Digest
	if opts.Landmark || len(opts.Prioritized) > 0 {
		toc, out.DiffID, err = upstreamBuild(blob, plain, c, opts)
	} else {
		toc, out.DiffID, err = upstreamWrite(blob, plain, c, opts)
	}
	if err != nil {
		return out, fmt.Errorf("convert to %s: %w", opts.Format, err)
	}
	out.Digest, out.Size = digest.NewDigest(digest.SHA256, blob.sum), blob.n
	out.TOCDigest = toc
	if opts.Format == estargz.FormatZstdChunked {
		out.TOCDigest = digest.Digest(out.Annotations[AnnotationZstdChecksum])
	}
	out.Annotations[AnnotationTOCDigest] = toc.String()
	if ext != nil {
		var buf bytes.Buffer
		if _, err := ext.WriteTOCTo(&buf); err != nil {
			return out, err
		}
		out.TOC = buf.Bytes()
	}
	return out, nil
}

// upstreamWrite keeps the tar as it is, as BuildKit's exporter does.
func upstreamWrite(w io.Writer, plain io.Reader, c compression, opts Options) (toc, diffID digest.Digest, err error) {
	ew := upstream.NewWriterWithCompressor(w, c)
	ew.ChunkSize, ew.MinChunkSize = opts.ChunkSize, opts.MinChunkSize
	if err := ew.AppendTarLossLess(plain); err != nil {
		return "", "", err
	}
	toc, err = ew.Close()
	return toc, digest.Digest(ew.DiffID()), err
}

// upstreamBuild sorts the tar and adds landmarks, as ctr-remote does. The tar
// goes through a file, for it is read several times.
func upstreamBuild(w io.Writer, plain io.Reader, c compression, opts Options) (toc, diffID digest.Digest, err error) {
	f, err := os.CreateTemp("", "estargztest")
	if err != nil {
		return "", "", err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	n, err := io.Copy(f, plain)
	if err != nil {
		return "", "", err
	}
	blob, err := upstream.Build(io.NewSectionReader(f, 0, n), upstream.WithCompression(c), upstream.WithChunkSize(opts.ChunkSize),
		upstream.WithMinChunkSize(opts.MinChunkSize), upstream.WithPrioritizedFiles(opts.Prioritized))
	if err != nil {
		return "", "", err
	}
	defer blob.Close()
	if _, err := io.Copy(w, blob); err != nil {
		return "", "", err
	}
	return blob.TOCDigest(), blob.DiffID(), nil
}

// countingWriter counts and digests what goes through it.
type countingWriter struct {
	w   io.Writer
	n   int64
	sum interface {
		io.Writer
		Sum([]byte) []byte
		Reset()
		Size() int
		BlockSize() int
	}
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.sum.Write(p[:n])
	c.n += int64(n)
	return n, err
}

// jtoc is a TOC's document, with the keys of both families.
type jtoc struct {
	Version int       `json:"version"`
	Entries []*jentry `json:"entries"`

	TarSplitDigest digest.Digest `json:"tarSplitDigest,omitempty"`
}

type jentry struct {
	Type        string            `json:"type"`
	Name        string            `json:"name"`
	LinkName    string            `json:"linkName,omitempty"`
	Mode        int64             `json:"mode,omitempty"`
	Size        int64             `json:"size,omitempty"`
	UID         int               `json:"uid,omitempty"`
	GID         int               `json:"gid,omitempty"`
	ModTime     string            `json:"modtime,omitempty"`
	DevMajor    int64             `json:"devMajor,omitempty"`
	DevMinor    int64             `json:"devMinor,omitempty"`
	Xattrs      map[string][]byte `json:"xattrs,omitempty"`
	Digest      string            `json:"digest,omitempty"`
	Offset      int64             `json:"offset,omitempty"`
	EndOffset   int64             `json:"endOffset,omitempty"`
	ChunkSize   int64             `json:"chunkSize,omitempty"`
	ChunkOffset int64             `json:"chunkOffset,omitempty"`
	ChunkDigest string            `json:"chunkDigest,omitempty"`
	ChunkType   string            `json:"chunkType,omitempty"`
}

var jtypes = map[byte]string{
	tar.TypeReg: "reg", tar.TypeLink: "hardlink", tar.TypeSymlink: "symlink", tar.TypeDir: "dir",
	tar.TypeChar: "char", tar.TypeBlock: "block", tar.TypeFifo: "fifo",
}

// newJentry describes a tar header, with times of the given layout.
func newJentry(hdr *tar.Header, layout string) (*jentry, error) {
	typ, ok := jtypes[hdr.Typeflag]
	if !ok {
		return nil, fmt.Errorf("%q: type %q of a tar entry", hdr.Name, hdr.Typeflag)
	}
	e := &jentry{
		Type: typ, Name: hdr.Name, LinkName: hdr.Linkname, Mode: hdr.Mode, UID: hdr.Uid, GID: hdr.Gid,
		DevMajor: hdr.Devmajor, DevMinor: hdr.Devminor,
	}
	if hdr.Typeflag == tar.TypeReg {
		e.Size = hdr.Size
	}
	if !hdr.ModTime.IsZero() {
		e.ModTime = hdr.ModTime.UTC().Format(layout)
	}
	for k, v := range hdr.PAXRecords {
		if name, ok := bytes.CutPrefix([]byte(k), []byte(paxXattr)); ok {
			if e.Xattrs == nil {
				e.Xattrs = map[string][]byte{}
			}
			e.Xattrs[string(name)] = []byte(v)
		}
	}
	return e, nil
}

func chunkSizeOf(opts Options) int64 {
	if opts.ChunkSize > 0 {
		return int64(opts.ChunkSize)
	}
	return 4 << 20
}

package estargz

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// tocName is the name of the TOC in the tar that a gzip TOC member holds; a tar
// that was a stargz once may have an entry of that name as well.
const tocName = "stargz.index.json"

// tocWindow is the largest zstd window of a TOC; encoders use up to 8 MiB at
// the levels that a TOC is written with.
const tocWindow = 32 << 20

// Unverified is a TOC that nothing has vouched for yet. It gives nothing away
// but Compile and CompileByBlob.
type Unverified struct {
	toc source
}

// source is a TOC's bytes with what is known of them.
type source struct {
	loc        Location
	blobSize   int64
	compressed []byte
	lim        Limits
}

// ReadTOC takes the bytes of a TOC as they lie in the blob at loc (or in the
// external TOC blob). It keeps compressed, which must not change from now on, and does not
// look into it. Errors wrap ErrCorrupt, but for a compressed that is not loc's.
func ReadTOC(loc Location, blobSize int64, compressed []byte, lim Limits) (*Unverified, error) {
	lim = lim.withDefaults()
	if err := loc.check(blobSize); err != nil {
		return nil, err
	}
	if loc.Format != FormatEStargzExtern && int64(len(compressed)) != loc.Size {
		return nil, fmt.Errorf("read TOC: %d bytes given of %d", len(compressed), loc.Size)
	}
	if loc.UncompressedSize > lim.TOCSize {
		return nil, limitf("TOC of %d bytes, at most %d are read", loc.UncompressedSize, lim.TOCSize)
	}
	return &Unverified{source{loc: loc, blobSize: blobSize, compressed: compressed, lim: lim}}, nil
}

// vouchedBy says whether a digest is that of the compressed TOC, which zstd:chunked has. It
// is known before the TOC is read, and binds every byte of it.
func (s *source) vouchedBy(want digest.Digest) bool {
	return s.loc.Format == FormatZstdChunked && digest.FromBytes(s.compressed) == want
}

// jsonDigest is the digest of the document.
func (s *source) jsonDigest(ctx context.Context) (digest.Digest, error) {
	r, err := s.open(ctx)
	if err != nil {
		return "", err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", s.readError(ctx, err)
	}
	return digest.NewDigest(digest.SHA256, h), nil
}

// open streams the TOC's JSON, at most one byte beyond the limit, until ctx ends.
func (s *source) open(ctx context.Context) (io.ReadCloser, error) {
	var (
		r   io.ReadCloser
		err error
	)
	if s.loc.Format == FormatZstdChunked {
		r, err = openZstdTOC(s.compressed)
	} else {
		r, err = openGzipTOC(s.compressed)
	}
	if err != nil {
		return nil, corruptf("TOC: %w", err)
	}
	return &boundedReader{ctx: ctx, r: r, left: s.lim.TOCSize, limit: s.lim.TOCSize}, nil
}

// readError is err of a reader that open returned, in our terms.
func (s *source) readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("read TOC: %w", context.Cause(ctx))
	}
	if errors.Is(err, ErrCorrupt) {
		return err
	}
	return corruptf("TOC: %w", err)
}

func openZstdTOC(compressed []byte) (io.ReadCloser, error) {
	d, err := zstd.NewReader(bytes.NewReader(compressed), zstd.WithDecoderConcurrency(1),
		zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(tocWindow))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}

func openGzipTOC(compressed []byte) (io.ReadCloser, error) {
	zr, err := gzip.NewReader(bytes.NewReader(compressed))
	if err != nil {
		return nil, err
	}
	zr.Multistream(false)
	tr := tar.NewReader(zr)
	hdr, err := tr.Next()
	if err != nil {
		return nil, fmt.Errorf("tar of the TOC: %w", err)
	}
	if hdr.Typeflag != tar.TypeReg || hdr.Name != tocName {
		return nil, fmt.Errorf("tar of the TOC begins with %.100q, not %q", hdr.Name, tocName)
	}
	return io.NopCloser(tr), nil
}

// boundedReader ends with an error at its limit or when ctx does.
type boundedReader struct {
	ctx         context.Context
	r           io.ReadCloser
	left, limit int64
}

func (b *boundedReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return 0, limitf("TOC of more than %d bytes", b.limit)
	}
	return n, err
}

func (b *boundedReader) Close() error { return b.r.Close() }

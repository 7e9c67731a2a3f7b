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
// but Verify and VerifiedByBlob.
type Unverified struct {
	toc source
}

// source is a TOC's bytes with what is known of them.
type source struct {
	loc        Location
	blobSize   int64
	compressed []byte
	lim        Limits

	jsonDigest       digest.Digest
	compressedDigest digest.Digest // zstd:chunked only
}

// ReadTOC takes the bytes of a TOC as they lie in the blob at loc (or in the
// external TOC blob) and decompresses them within lim, to find their digest. It
// keeps compressed, which must not change from now on. Errors wrap ErrCorrupt,
// or are those of ctx.
func ReadTOC(ctx context.Context, loc Location, blobSize int64, compressed []byte, lim Limits) (*Unverified, error) {
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
	s := source{loc: loc, blobSize: blobSize, compressed: compressed, lim: lim}
	if loc.Format == FormatZstdChunked {
		s.compressedDigest = digest.FromBytes(compressed)
	}
	r, err := s.open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return nil, s.readError(ctx, err)
	}
	s.jsonDigest = digest.NewDigest(digest.SHA256, h)
	return &Unverified{toc: s}, nil
}

// Verify compares the TOC with the digest that the manifest carries: of the JSON
// for the gzip formats, and for zstd:chunked of the compressed TOC or, where
// only eStargz' annotation is there, of the JSON (both bind every byte that
// Compile reads). A TOC that does not match gives an error that wraps
// ErrCorrupt; Compile will insist on a digest for every chunk.
func (u *Unverified) Verify(want digest.Digest) (*Verified, error) {
	if err := want.Validate(); err != nil {
		return nil, corruptf("TOC digest %q: %w", string(want), err)
	}
	if want.Algorithm() != digest.SHA256 {
		return nil, corruptf("TOC digest %s: digest algorithm %s is not supported", want, want.Algorithm())
	}
	if want != u.toc.jsonDigest && want != u.toc.compressedDigest {
		got := u.toc.jsonDigest
		if u.toc.compressedDigest != "" {
			got = u.toc.compressedDigest
		}
		return nil, corruptf("TOC has digest %s, the manifest says %s", got, want)
	}
	return &Verified{toc: u.toc}, nil
}

// VerifiedByBlob is for a blob that was fetched whole and whose digest the
// caller has verified (legacy stargz, or no TOC digest in the manifest). The
// chunks of such a TOC may lack digests: nothing but the blob's own bytes
// may be served through it. An external TOC is not a part of the blob, so
// that Compile refuses it.
func (u *Unverified) VerifiedByBlob() *Verified {
	return &Verified{toc: u.toc, byBlob: true}
}

// Verified is a TOC whose bytes are vouched for; its contents may still be
// hostile, which Compile finds out.
type Verified struct {
	toc    source
	byBlob bool
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

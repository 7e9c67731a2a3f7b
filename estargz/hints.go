package estargz

import (
	"fmt"
	"strconv"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// The annotations of a layer descriptor that speak of a TOC. Both families of
// zstd:chunked mean the same; containers/storage writes the second.
const (
	annotationTOCDigest = "containerd.io/snapshot/stargz/toc.digest"

	annotationZstdChecksum       = "io.containers.zstd-chunked.manifest-checksum"
	annotationZstdPosition       = "io.containers.zstd-chunked.manifest-position"
	annotationZstdChecksumGithub = "io.github.containers.zstd-chunked.manifest-checksum"
	annotationZstdPositionGithub = "io.github.containers.zstd-chunked.manifest-position"
)

// manifestTypeCRFS is the only kind of TOC that zstd:chunked defines.
const manifestTypeCRFS = 1

// Hints is what a manifest's layer annotations say of a blob.
type Hints struct {
	// Format is FormatUnknown when the annotations do not say. FormatEStargz
	// means any format whose TOC digest is in eStargz' annotation: the footer
	// decides (eStargz, eStargz with an external TOC, and zstd:chunked as
	// stargz-snapshotter's converter makes it, all carry that annotation).
	Format    Format
	TOCDigest digest.Digest // what the manifest vouches for; "" when nothing does
	TOC       Location      // zstd:chunked's manifest-position; zero when unknown
	BlobSize  int64         // of the layer's descriptor, which ParseHints does not see; 0 when unknown
}

// ParseHints reads the annotations of a layer descriptor (or the snapshot
// labels of the same names). Unknown keys are ignored and a key with an empty
// value is absent. Where a layer has both zstd:chunked's and eStargz'
// annotations, zstd:chunked's are taken, for they say more.
//
// Errors wrap ErrCorrupt (a value that can't be read, two families that
// disagree) or ErrNotLazy (a kind of zstd:chunked TOC that we do not know).
func ParseHints(annotations map[string]string) (Hints, error) {
	var h Hints
	checksum, err := oneOf(annotations, annotationZstdChecksum, annotationZstdChecksumGithub)
	if err != nil {
		return Hints{}, err
	}
	position, err := oneOf(annotations, annotationZstdPosition, annotationZstdPositionGithub)
	if err != nil {
		return Hints{}, err
	}
	if position != "" {
		if h.TOC, err = parsePosition(position); err != nil {
			return Hints{}, err
		}
		h.Format = FormatZstdChunked
	}
	if checksum != "" {
		h.Format = FormatZstdChunked
		h.TOCDigest, err = parseDigest(annotationZstdChecksum, checksum)
		return h, err
	}
	if v := annotations[annotationTOCDigest]; v != "" {
		if h.Format == FormatUnknown {
			h.Format = FormatEStargz
		}
		h.TOCDigest, err = parseDigest(annotationTOCDigest, v)
	}
	return h, err
}

// oneOf returns the value of two keys that mean the same.
func oneOf(annotations map[string]string, a, b string) (string, error) {
	va, vb := annotations[a], annotations[b]
	switch {
	case va == "":
		return vb, nil
	case vb == "" || va == vb:
		return va, nil
	}
	return "", corruptf("annotations %s=%q and %s=%q disagree", a, va, b, vb)
}

func parseDigest(key, value string) (digest.Digest, error) {
	d, err := digest.Parse(value)
	if err != nil {
		return "", corruptf("annotation %s=%q: %w", key, value, err)
	}
	if d.Algorithm() != digest.SHA256 {
		return "", corruptf("annotation %s=%q: digest algorithm %s is not supported", key, value, d.Algorithm())
	}
	return d, nil
}

// parsePosition reads "offset:size:uncompressed size:type", all decimal.
func parsePosition(value string) (Location, error) {
	parts := strings.Split(value, ":")
	if len(parts) != 4 {
		return Location{}, corruptf("annotation %s=%q: not four numbers", annotationZstdPosition, value)
	}
	var n [4]int64
	for i, p := range parts {
		u, err := strconv.ParseUint(p, 10, 63)
		if err != nil {
			return Location{}, corruptf("annotation %s=%q: %w", annotationZstdPosition, value, err)
		}
		n[i] = int64(u)
	}
	if n[3] != manifestTypeCRFS {
		return Location{}, fmt.Errorf("annotation %s=%q: TOC of type %d: %w", annotationZstdPosition, value, n[3], ErrNotLazy)
	}
	if n[0] == 0 || n[1] == 0 {
		return Location{}, corruptf("annotation %s=%q: no bytes", annotationZstdPosition, value)
	}
	return Location{Format: FormatZstdChunked, Offset: n[0], Size: n[1], UncompressedSize: n[2]}, nil
}

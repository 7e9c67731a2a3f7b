package estargz

import (
	"errors"
	"testing"
)

// FuzzHints reads annotations of any values. What is accepted is a digest and a place
// that a blob can have.
func FuzzHints(f *testing.F) {
	const other = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	f.Add(sumA, "", "", "", "")
	f.Add("", sumA, "10:20:30:1", "", "")
	f.Add(sumA, sumA, "10:20:30:1", other, "10:20:30:1")
	f.Add("sha256:../../x", "", "-1:1:1:1", "md5:900150983cd24fb0d6963f7d28e17f72", "9223372036854775807:9223372036854775807:1:1")
	f.Add("sha512:aa", "x", ":::", " ", "1:2:3:2")
	f.Fuzz(func(t *testing.T, toc, checksum, position, checksum2, position2 string) {
		h, err := ParseHints(map[string]string{
			annotationTOCDigest: toc, annotationZstdChecksum: checksum, annotationZstdPosition: position,
			annotationZstdChecksumGithub: checksum2, annotationZstdPositionGithub: position2,
		})
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNotLazy) {
				t.Fatal(err)
			}
			return
		}
		if h.TOCDigest != "" && h.TOCDigest.Validate() != nil {
			t.Fatalf("digest %q", h.TOCDigest)
		}
		if h.TOC.Offset < 0 || h.TOC.Size < 0 || h.TOC.UncompressedSize < 0 {
			t.Fatalf("place %+v", h.TOC)
		}
	})
}

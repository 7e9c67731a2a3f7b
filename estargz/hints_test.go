package estargz

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	digest "github.com/opencontainers/go-digest"
)

func TestParseHints(t *testing.T) {
	one, two := digest.FromString("one"), digest.FromString("two")
	position := Location{Format: FormatZstdChunked, Offset: 100, Size: 20, UncompressedSize: 50}
	for _, tc := range []struct {
		name        string
		annotations map[string]string
		want        Hints
		err         error
	}{
		{name: "none", annotations: nil},
		{name: "others", annotations: map[string]string{"a": "b"}},
		{name: "estargz", annotations: map[string]string{annotationTOCDigest: one.String()}, want: Hints{Format: FormatEStargz, TOCDigest: one}},
		{name: "empty values are absent", annotations: map[string]string{
			annotationTOCDigest: "", annotationZstdChecksum: "", annotationZstdPositionGithub: "",
		}},
		{name: "zstd:chunked", annotations: map[string]string{
			annotationZstdChecksum: one.String(), annotationZstdPosition: "100:20:50:1",
		}, want: Hints{Format: FormatZstdChunked, TOCDigest: one, TOC: position}},
		{name: "zstd:chunked of containers/storage", annotations: map[string]string{
			annotationZstdChecksumGithub: one.String(), annotationZstdPositionGithub: "100:20:50:1",
		}, want: Hints{Format: FormatZstdChunked, TOCDigest: one, TOC: position}},
		{name: "both families agree", annotations: map[string]string{
			annotationZstdChecksumGithub: one.String(), annotationZstdChecksum: one.String(),
		}, want: Hints{Format: FormatZstdChunked, TOCDigest: one}},
		{name: "both families disagree", annotations: map[string]string{
			annotationZstdChecksumGithub: one.String(), annotationZstdChecksum: two.String(),
		}, err: ErrCorrupt},
		{name: "zstd:chunked with estargz' digest too", annotations: map[string]string{
			annotationZstdChecksum: one.String(), annotationTOCDigest: two.String(),
		}, want: Hints{Format: FormatZstdChunked, TOCDigest: one}},
		{name: "position with estargz' digest only", annotations: map[string]string{
			annotationZstdPosition: "100:20:50:1", annotationTOCDigest: two.String(),
		}, want: Hints{Format: FormatZstdChunked, TOCDigest: two, TOC: position}},
		{name: "position only", annotations: map[string]string{annotationZstdPosition: "100:20:50:1"}, want: Hints{Format: FormatZstdChunked, TOC: position}},
		{name: "not a digest", annotations: map[string]string{annotationTOCDigest: "sha256:short"}, err: ErrCorrupt},
		{name: "another algorithm", annotations: map[string]string{annotationTOCDigest: "sha512:" + strings.Repeat("a", 128)}, err: ErrCorrupt},
		{name: "position of three", annotations: map[string]string{annotationZstdPosition: "100:20:50"}, err: ErrCorrupt},
		{name: "negative position", annotations: map[string]string{annotationZstdPosition: "-1:20:50:1"}, err: ErrCorrupt},
		{name: "large position", annotations: map[string]string{annotationZstdPosition: "9223372036854775808:20:50:1"}, err: ErrCorrupt},
		{name: "position without bytes", annotations: map[string]string{annotationZstdPosition: "100:0:0:1"}, err: ErrCorrupt},
		{name: "unknown kind of TOC", annotations: map[string]string{annotationZstdPosition: "100:20:50:2"}, err: ErrNotLazy},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := ParseHints(tc.annotations)
			if !errors.Is(err, tc.err) {
				t.Fatalf("error %v, want %v", err, tc.err)
			}
			if err == nil {
				if diff := cmp.Diff(tc.want, got); diff != "" {
					t.Error(diff)
				}
			}
		})
	}
}

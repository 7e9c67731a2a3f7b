package lazyfs

import (
	"testing"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot"
)

// TestTOCDigestIsTheVerifiedOne: a snapshot is shared under the digest that
// remotesnapshot.TOCDigest names, and shows what the one of estargz.ParseHints
// vouches for.
func TestTOCDigestIsTheVerifiedOne(t *testing.T) {
	keys := []string{
		remotesnapshot.AnnotationTOCDigest,
		remotesnapshot.AnnotationZstdChecksum,
		remotesnapshot.AnnotationZstdChecksumLegacy,
	}
	for set := range 1 << len(keys) {
		annotations := map[string]string{}
		for i, k := range keys {
			if set&(1<<i) != 0 {
				annotations[k] = digest.FromString(k[:4]).String() // two spellings must agree
			}
		}
		hints, err := estargz.ParseHints(annotations)
		if err != nil {
			delete(annotations, remotesnapshot.AnnotationZstdChecksumLegacy)
			hints, err = estargz.ParseHints(annotations)
		}
		require.NoError(t, err)
		require.Equal(t, hints.TOCDigest.String(), remotesnapshot.TOCDigest(annotations), "%v", annotations)
	}
	require.Empty(t, remotesnapshot.TOCDigest(map[string]string{remotesnapshot.AnnotationTOCDigest: ""}))
}

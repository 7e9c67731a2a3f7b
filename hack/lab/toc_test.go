package lab

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTOC(t *testing.T) {
	for _, format := range Formats {
		t.Run(string(format), func(t *testing.T) {
			img, err := pack(t.Context(), Base{Name: "small"}, format, t.TempDir(), []string{smallLayer(t).Name()})
			require.NoError(t, err)
			loc, ok, err := img.TOC(0)
			require.NoError(t, err)
			require.Equal(t, format != Gzip, ok)
			size, err := img.TOCSize()
			require.NoError(t, err)
			if !ok {
				require.Zero(t, size)
				return
			}
			require.Positive(t, loc.Offset)
			require.Equal(t, img.Layers[0].Size-loc.Offset, size)
			require.NoError(t, os.Remove(img.Blob(img.Layers[0].Digest)))
			_, err = img.TOCSize()
			require.ErrorContains(t, err, img.Layers[0].Digest.String())
		})
	}
}

package lab

import (
	"archive/tar"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
)

// layerOf is a .tar.zst file of regular files with their names as contents; names
// that end in a slash are directories, and links are hard links by name.
func layerOf(t *testing.T, links map[string]string, names ...string) string {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "layer.tar.zst"))
	require.NoError(t, err)
	defer file.Close()
	zw, err := zstd.NewWriter(file)
	require.NoError(t, err)
	tw := tar.NewWriter(zw)
	for _, name := range names {
		hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(name))}
		switch {
		case name[len(name)-1] == '/':
			hdr.Typeflag, hdr.Size = tar.TypeDir, 0
		case links[name] != "":
			hdr.Typeflag, hdr.Size, hdr.Linkname = tar.TypeLink, 0, links[name]
		}
		require.NoError(t, tw.WriteHeader(hdr))
		if hdr.Size > 0 {
			_, err = io.WriteString(tw, name)
			require.NoError(t, err)
		}
	}
	require.NoError(t, tw.Close())
	require.NoError(t, zw.Close())
	return file.Name()
}

func TestFiles(t *testing.T) {
	lower := layerOf(t, map[string]string{"a/link": "a/file"}, "a/", "a/file", "a/link", "a/gone", "b/", "b/one", "b/two", "c/", "c/deep/", "c/deep/file", "d")
	upper := layerOf(t, nil, "a/", "a/.wh.gone", "b/", "b/.wh..wh..opq", "b/new", ".wh.c", "d/", "d/file")
	for _, format := range []Format{EStargz, ZstdChunked, Stargz} {
		t.Run(string(format), func(t *testing.T) {
			img, err := pack(t.Context(), Base{Name: "small"}, format, t.TempDir(), []string{lower, upper})
			require.NoError(t, err)
			files, err := img.Files()
			require.NoError(t, err)
			require.Equal(t, []File{{"a/file", 6}, {"b/new", 5}, {"d/file", 6}}, files)
		})
	}
	img, err := pack(t.Context(), Base{Name: "small"}, Gzip, t.TempDir(), []string{lower})
	require.NoError(t, err)
	_, err = img.Files()
	require.ErrorContains(t, err, img.Layers[0].Digest.String())
}

package lab

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/containerd/stargz-snapshotter/estargz/zstdchunked"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

const fileContent = "contents of a file that is long enough to be compressed, compressed, compressed"

// smallLayer is a .tar.zst file of one directory with one file.
func smallLayer(t *testing.T) *os.File {
	t.Helper()
	file, err := os.Create(filepath.Join(t.TempDir(), "layer.tar.zst"))
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	zw, err := zstd.NewWriter(file)
	require.NoError(t, err)
	tw := tar.NewWriter(zw)
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "dir/", Mode: 0o755}))
	require.NoError(t, tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "dir/file", Mode: 0o644, Size: int64(len(fileContent))}))
	_, err = io.WriteString(tw, fileContent)
	require.NoError(t, err)
	require.NoError(t, tw.Close())
	require.NoError(t, zw.Close())
	_, err = file.Seek(0, io.SeekStart)
	require.NoError(t, err)
	return file
}

func TestFormats(t *testing.T) {
	for _, format := range Formats {
		t.Run(string(format), func(t *testing.T) {
			var blob bytes.Buffer
			desc, diffID, err := convert(t.Context(), smallLayer(t), Packing{Format: format}, &blob)
			require.NoError(t, err)

			var plain io.Reader
			if format == ZstdChunked {
				zr, err := zstd.NewReader(bytes.NewReader(blob.Bytes()))
				require.NoError(t, err)
				defer zr.Close()
				plain = zr
			} else {
				plain, err = gzip.NewReader(bytes.NewReader(blob.Bytes()))
				require.NoError(t, err)
			}
			data, err := io.ReadAll(plain)
			require.NoError(t, err)
			require.Equal(t, digest.FromBytes(data), diffID)

			section := io.NewSectionReader(bytes.NewReader(blob.Bytes()), 0, int64(blob.Len()))
			r, err := estargz.Open(section, estargz.WithDecompressors(&zstdchunked.Decompressor{}, &estargz.LegacyGzipDecompressor{}))
			if format == Gzip {
				require.Error(t, err, "ordinary gzip has no table of contents")
				return
			}
			require.NoError(t, err)
			entry, ok := r.Lookup("dir/file")
			require.True(t, ok)
			if format == Stargz {
				require.Empty(t, entry.ChunkDigest)
				require.Empty(t, desc.Annotations)
			} else {
				require.Equal(t, digest.FromString(fileContent).String(), entry.ChunkDigest)
				require.Len(t, desc.Annotations, 2)
			}
			got, err := r.OpenFile("dir/file")
			require.NoError(t, err)
			content := make([]byte, len(fileContent))
			_, err = got.ReadAt(content, 0)
			require.NoError(t, err)
			require.Equal(t, fileContent, string(content))
			switch format {
			case EStargz:
				require.Equal(t, r.TOCDigest().String(), desc.Annotations[estargz.TOCJSONDigestAnnotation])
			case ZstdChunked:
				require.NotEmpty(t, desc.Annotations[zstdchunked.ManifestChecksumAnnotation])
				require.NotEmpty(t, desc.Annotations[zstdchunked.ManifestPositionAnnotation])
			}
		})
	}
}

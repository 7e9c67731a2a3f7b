package lab

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestDiskUsageCountsBlocksOfInodes(t *testing.T) {
	dir := t.TempDir()
	usage := func(skip func(string) bool) int64 {
		n, err := DiskUsage(dir, skip)
		require.NoError(t, err)
		return n
	}
	empty := usage(nil)
	path := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(path, make([]byte, 100_000), 0o644))
	require.NoError(t, os.Link(path, filepath.Join(dir, "link")))
	require.NoError(t, os.Truncate(path, 1<<30)) // a hole
	full := usage(nil) - empty
	require.Greater(t, full, int64(99_000))
	require.Less(t, full, int64(120_000))
	require.Equal(t, empty, usage(func(rel string) bool { return rel == "file" || rel == "link" }))
}

// The layers of a mixed image are those of images whose layers are all alike.
func TestMixedImageReusesLayers(t *testing.T) {
	dir := t.TempDir()
	sources := []string{smallLayer(t).Name(), smallLayer(t).Name()}
	mixed, err := packMixed(t.Context(), Base{Name: "small"}, "mixed", dir, sources, []Packing{{Format: Gzip}, {Format: EStargz, ChunkSize: 16}})
	require.NoError(t, err)
	plain, err := pack(t.Context(), Base{Name: "small"}, Gzip, dir, sources)
	require.NoError(t, err)
	whole, err := pack(t.Context(), Base{Name: "small"}, EStargz, dir, sources)
	require.NoError(t, err)
	require.Equal(t, plain.Layers[0], mixed.Layers[0])
	require.Empty(t, mixed.Layers[0].Annotations)
	require.NotEmpty(t, mixed.Layers[1].Annotations)
	require.NotEqual(t, whole.Layers[1].Digest, mixed.Layers[1].Digest, "the chunk size makes another layer")
	require.Equal(t, "estargz_16", Packing{Format: EStargz, ChunkSize: 16}.String())
}

package lab

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEntriesImage(t *testing.T) {
	t.Setenv("LAZYKIT_CACHE", t.TempDir())
	one, err := EntriesImage(t.Context(), 1, 1000)
	require.NoError(t, err)
	require.Equal(t, "entries:1000-1", one.Tag())
	files, err := one.Files()
	require.NoError(t, err)
	require.Len(t, files, 1000-5, "the others are directories")

	again, err := EntriesImage(t.Context(), 1, 1000)
	require.NoError(t, err)
	require.Equal(t, one, again)
	other, err := EntriesImage(t.Context(), 2, 1000)
	require.NoError(t, err)
	require.NotEqual(t, one.Layers[0].Digest, other.Layers[0].Digest)
}

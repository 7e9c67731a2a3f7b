package worker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRemoveChecks(t *testing.T) {
	dir := t.TempDir()
	check := filepath.Join(dir, ".fsverity-check-123")
	require.NoError(t, os.MkdirAll(check, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(check, "supported"), nil, 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "blobs"), 0o755))
	require.NoError(t, removeChecks(dir))
	require.NoDirExists(t, check)
	require.DirExists(t, filepath.Join(dir, "blobs"))
	require.NoError(t, removeChecks(dir))
}

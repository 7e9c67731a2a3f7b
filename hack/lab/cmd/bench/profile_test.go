package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestBytesReadOfProfiles(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	_, err := bytesRead(nil)
	require.ErrorContains(t, err, "empty")

	write("a.json", `{"layer": "sha256:aa", "steps": [
		{"step": "one", "ranges": [[100, 50], [0, 10]]},
		{"step": "two", "ranges": [[120, 10], [140, 20], [1000, 1]]}]}`)
	write("b.json", `{"layer": "sha256:bb", "steps": [{"step": "one", "ranges": [[100, 50]]}], "version": 1}`)
	write("lock", "")
	profiles, err := readProfiles(dir)
	require.NoError(t, err)
	require.Len(t, profiles, 2)
	n, err := bytesRead(profiles)
	require.NoError(t, err)
	require.EqualValues(t, 10+60+1+50, n)

	write("b.json", `{"layer": "sha256:bb", "steps": [{"step": "one", "ranges": [[-1, 50]]}]}`)
	profiles, err = readProfiles(dir)
	require.NoError(t, err)
	_, err = bytesRead(profiles)
	require.ErrorContains(t, err, "sha256:bb")

	write("b.json", `{}`)
	_, err = readProfiles(dir)
	require.ErrorContains(t, err, "b.json: it names no layer")
	write("b.json", `{`)
	_, err = readProfiles(dir)
	require.ErrorContains(t, err, "b.json")
}

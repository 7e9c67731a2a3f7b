package lab

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// entries reads a tar as lines of type, name and link or content.
func entries(t *testing.T, data []byte) []string {
	t.Helper()
	var lines []string
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		hdr, err := tr.Next()
		if err == io.EOF {
			return lines
		}
		require.NoError(t, err)
		require.LessOrEqual(t, hdr.ModTime.Unix(), int64(epoch))
		content, err := io.ReadAll(tr)
		require.NoError(t, err)
		lines = append(lines, strings.TrimSpace(string(hdr.Typeflag)+" "+hdr.Name+" "+hdr.Linkname+string(content)))
	}
}

func TestLayerHoldsWhatChanged(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(content), 0o644))
	}
	write("same/file", "same")
	write("deep/er/changed", "old")
	write("gone/with/all", "x")
	write("gone-file", "x")
	require.NoError(t, os.Link(filepath.Join(dir, "same/file"), filepath.Join(dir, "same/link")))
	require.NoError(t, os.Symlink("file", filepath.Join(dir, "same/symlink")))

	before, err := stampTree(dir)
	require.NoError(t, err)
	var whole bytes.Buffer
	n, err := writeTree(&whole, dir, nil)
	require.NoError(t, err)
	require.Equal(t, []string{
		"5 deep/", "5 deep/er/", "0 deep/er/changed old",
		"5 gone/", "0 gone-file x", "5 gone/with/", "0 gone/with/all x",
		"5 same/", "0 same/file same", "1 same/link same/file", "2 same/symlink file",
	}, entries(t, whole.Bytes()))
	require.Equal(t, 11, n)

	// An mtime of the past does not hide a change: the inode's own time can't be set.
	write("deep/er/changed", "new")
	past := time.Unix(1e9, 0)
	require.NoError(t, os.Chtimes(filepath.Join(dir, "deep/er/changed"), past, past))
	require.NoError(t, os.RemoveAll(filepath.Join(dir, "gone")))
	require.NoError(t, os.Remove(filepath.Join(dir, "gone-file")))
	write("added/file", "1")
	var diff bytes.Buffer
	_, err = writeTree(&diff, dir, before)
	require.NoError(t, err)
	require.Equal(t, []string{
		"5 added/", "0 added/file 1", "5 deep/", "5 deep/er/", "0 deep/er/changed new",
		"0 .wh.gone", "0 .wh.gone-file",
	}, entries(t, diff.Bytes()))

	var again bytes.Buffer
	_, err = writeTree(&again, dir, before)
	require.NoError(t, err)
	require.Equal(t, diff.Bytes(), again.Bytes(), "the same tree gives the same bytes")
}

func TestDirectoryThatBecameAFileHasNoWhiteoutsInIt(t *testing.T) {
	dirStamp, fileStamp := stamp{ino: 1, mode: syscall.S_IFDIR}, stamp{ino: 2, mode: syscall.S_IFREG}
	names, whiteouts := changes(
		map[string]stamp{"a": dirStamp, "a/b": fileStamp, "a/b/c": fileStamp},
		map[string]stamp{"a": fileStamp},
	)
	require.Equal(t, []string{"a"}, names)
	require.Empty(t, whiteouts)
}

package lazyfs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// TestWalkOfATree reads all of a layer as tar does: most of the files are in the
// kernel's cache before they are read, with the right bytes; and a file that is not
// read in its order has its own.
func TestWalkOfATree(t *testing.T) {
	const dirs, files = 60, 20
	body := func(d, f int) []byte { return estargztest.Bytes(uint64(d*files+f+1), (d*7919+f*104729)%30_000) }
	var entries []estargztest.Entry
	for d := range dirs {
		entries = append(entries, estargztest.Dir(fmt.Sprintf("d%02d", d)))
		for f := range files {
			entries = append(entries, estargztest.File(fmt.Sprintf("d%02d/f%02d", d, f), body(d, f)))
		}
	}
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "repo:1", estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, Level: 1}, entries...))
	dir, _ := w.resolved(src)
	read := func(d int, name string, want []byte) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprintf("d%02d", d), name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), "d%02d/%s", d, name)
	}
	for d := range dirs {
		list, err := os.ReadDir(filepath.Join(dir, fmt.Sprintf("d%02d", d)))
		require.NoError(t, err)
		for f, e := range list {
			read(d, e.Name(), body(d, f))
		}
		if d%10 == 9 {
			read((d*31)%dirs, "f07", body((d*31)%dirs, 7))
		}
	}
	sent := w.server.Requests()
	t.Log(sent)
	require.NotZero(t, sent["STORE"], "how many depends on who is faster, the reader or what runs ahead of it")
	require.Less(t, sent["READ"], uint64(dirs*files))
}

package fuse_test

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
	ft "github.com/lazykit/lazykit/fuse/fusetest"
)

// walked is a content that has the files behind each in memory.
type walked struct {
	fuse.Content
	files   uint32
	refused atomic.Int64
}

func (w *walked) Walked() bool { return true }

func (w *walked) Beside(inode uint32, give func(uint32, []byte) bool) {
	toc, err := w.Acquire()
	if err != nil {
		return
	}
	defer w.Release()
	dir, _ := toc.Parent(inode)
	for i := inode + 1; i <= inode+w.files; i++ {
		var node estargz.Inode
		if d, err := toc.Parent(i); err != nil || d != dir || toc.Inode(i, &node) != nil || node.Mode&unix.S_IFMT != unix.S_IFREG {
			return
		}
		data := make([]byte, node.Size)
		if n, err := w.ReadAt(context.Background(), i, data, 0); err != nil || n != len(data) {
			return
		}
		if !give(i, data) {
			w.refused.Add(1)
			return
		}
	}
}

// TestFilesAreGivenAhead reads a tree whose files are put into the kernel's cache
// before they are asked for: fewer READs, and the same bytes.
func TestFilesAreGivenAhead(t *testing.T) {
	const dirs, files = 4, 100
	body := func(d, f int) string { return pattern((d*files + f) * 37 % 20_000) }
	var entries []ft.Entry
	for d := range dirs {
		entries = append(entries, ft.Dir(fmt.Sprintf("d%02d", d), 0o755))
		for f := range files {
			entries = append(entries, ft.File(fmt.Sprintf("d%02d/f%03d", d, f), 0o644, body(d, f)))
		}
	}
	for _, through := range []string{"directly", "overlay"} {
		t.Run(through, func(t *testing.T) {
			s := newServer(t, fuse.Options{})
			c := &walked{Content: ft.Layer(t, ft.Tar(t, entries...)), files: 32}
			dir := add(t, s, c).Path()
			if through == "overlay" {
				dir = ft.Overlay(t, dir)
			}
			sent := messages(s, func() {
				for d := range dirs {
					list, err := os.ReadDir(filepath.Join(dir, fmt.Sprintf("d%02d", d)))
					require.NoError(t, err)
					require.Len(t, list, files)
					for f, e := range list {
						name := filepath.Join(dir, fmt.Sprintf("d%02d", d), e.Name())
						data, err := os.ReadFile(name)
						require.NoError(t, err)
						require.Equal(t, sha256.Sum256([]byte(body(d, f))), sha256.Sum256(data), "%d/%s", d, e.Name())
					}
				}
			})
			// The pages are those of before: nothing is read again.
			out, err := child("tails", dir).CombinedOutput()
			require.NoError(t, err, string(out))
			t.Log(sent)
			if !fuse.ClearsTails() {
				require.Zero(t, sent["STORE"], "this kernel would show what was in the memory before")
				return
			}
			require.Greater(t, sent["STORE"], uint64(100))
			require.Less(t, sent["READ"], uint64(dirs*files))
			require.Zero(t, c.refused.Load(), "the kernel has listed the directory")
		})
	}
}

func TestSinceWhichKernel(t *testing.T) {
	for release, want := range map[string]bool{
		"6.11.0": true, "6.18.44-fc-v857": true, "7.0": true, "6.10.14": false, "6.1.0-26-amd64": false, "5.15.0-1-generic": false, "": false, "next": false,
	} {
		require.Equal(t, want, fuse.IsSince(release, 6, 11), release)
	}
}

package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse/fusetest"
	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
)

// The layers of a real Debian image, served lazily, are the trees of their tars:
// entry by entry and byte by byte, directly and through an overlay of the chain.
func TestDebianTreeEqualsTheTar(t *testing.T) {
	privileged(t)
	t.Parallel()
	for _, format := range []lab.Format{lab.EStargz, lab.Stargz, lab.ZstdChunked} {
		t.Run(string(format), func(t *testing.T) {
			ctx := testContext(t)
			r := registry(t)
			img := image(t, format)
			name := onLink(t, r, img)
			root := stateDir(t)
			fs, err := lazyfs.New(ctx, lazyfs.Options{
				Root:      filepath.Join(root, "lazy"),
				MountRoot: filepath.Join(root, "m"),
				Hosts: func(string) blob.Hosts {
					return func(context.Context) ([]docker.RegistryHost, error) {
						return []docker.RegistryHost{{
							Scheme: "http", Host: r.Link, Path: "/v2",
							Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve,
						}}, nil
					}
				},
			})
			require.NoError(t, err)
			defer func() { require.NoError(t, fs.Close()) }()

			var srcs []remotesnapshot.Source
			for _, l := range img.Layers {
				srcs = append(srcs, remotesnapshot.Source{Reference: name, Digest: l.Digest, Annotations: l.Annotations})
			}
			for i, err := range fs.Resolve(ctx, srcs...) {
				require.NoError(t, err, "layer %d", i)
			}
			var lowers []string
			for i, src := range srcs {
				layer, err := fs.Open(src, false)
				require.NoError(t, err)
				defer layer.Close()
				dir, err := layer.Dir(0, remotesnapshot.ExactXattrs)
				require.NoError(t, err)
				fusetest.CompareTree(t, dir, openTar(t, img.Sources[i]), fusetest.CompareOptions{})
				lowers = append([]string{dir}, lowers...)
			}
			compareMerged(t, root, lowers, img)
		})
	}
}

// compareMerged mounts the chain as an overlay and compares it with what GNU tar
// makes of the layers, extracted one over the other: names, types, modes, owners,
// sizes, times, links and contents.
func compareMerged(t *testing.T, root string, lowers []string, img *lab.Image) {
	t.Helper()
	merged, plain := filepath.Join(root, "merged"), filepath.Join(root, "plain")
	require.NoError(t, os.MkdirAll(merged, 0o755))
	require.NoError(t, os.MkdirAll(plain, 0o755))
	require.NoError(t, unix.Mount("overlay", merged, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lowers, ":")))
	defer func() { require.NoError(t, unix.Unmount(merged, 0)) }()
	for _, source := range img.Sources {
		c := exec.Command("tar", "-x", "-p", "--xattrs", "--xattrs-include=*", "--numeric-owner", "--exclude=.wh.*", "-C", plain)
		c.Stdin = openTar(t, source)
		out, err := c.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	list := func(dir string) []byte {
		c := exec.Command("sh", "-c", `find . -mindepth 1 -printf '%P|%y|%m|%U:%G|%l|' \( -type d -printf '\n' -o -printf '%s|%T@\n' \) | LC_ALL=C sort; find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum`)
		c.Dir = dir
		out, err := c.Output()
		require.NoError(t, err)
		return out
	}
	want, got := list(plain), list(merged)
	require.Greater(t, bytes.Count(want, []byte("\n")), 5000, "a real tree")
	if !bytes.Equal(want, got) {
		w, g := strings.Split(string(want), "\n"), strings.Split(string(got), "\n")
		for i := range min(len(w), len(g)) {
			require.Equal(t, w[i], g[i])
		}
		require.Len(t, g, len(w))
	}
}

package e2e

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// mixedImage is the demo base with a plain gzip layer below an eStargz one.
func mixedImage(t *testing.T) *lab.Image {
	t.Helper()
	b, err := lab.FindBase("demo")
	require.NoError(t, err)
	img, err := lab.MixedImage(testContext(t), b, lab.Packing{Format: lab.Gzip}, lab.Packing{Format: lab.EStargz})
	require.NoError(t, err)
	return img
}

// hasBlob says whether a daemon's content store has a blob.
func hasBlob(t *testing.T, d *lab.Daemon, dgst digest.Digest) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(d.Root, "runc-stargz", "content", "blobs", "sha256", dgst.Encoded()))
	if !os.IsNotExist(err) {
		require.NoError(t, err)
	}
	return err == nil
}

// Of a plain layer below a lazy one only the plain one is pulled, and the progress
// says so of each.
func TestMixedChainPullsOnlyThePlainLayer(t *testing.T) {
	privileged(t)
	r := registry(t)
	img := mixedImage(t)
	base := onLink(t, r, img)
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
	reset(t, r)
	out := t.TempDir()
	res := build(t, d, lab.BuildOptions{
		Dockerfile: dockerfile(helloDockerfile, base) + "FROM scratch\nCOPY --from=0 /out.txt /\n",
		OutputDir:  out,
	})
	got, err := os.ReadFile(filepath.Join(out, "out.txt"))
	require.NoError(t, err)
	require.Equal(t, "{\"python\": 3}\n", string(got))

	plain, lazy := img.Layers[0], img.Layers[1]
	s := stats(t, r)
	t.Logf("plain layer: %d of %d bytes; lazy layer: %d of %d", s.Blobs[plain.Digest.String()].Bytes, plain.Size, s.Blobs[lazy.Digest.String()].Bytes, lazy.Size)
	require.LessOrEqual(t, s.Blobs[plain.Digest.String()].Bytes, plain.Size+plain.Size/100)
	require.Less(t, s.Blobs[lazy.Digest.String()].Bytes, lazy.Size/2)
	require.True(t, hasBlob(t, d, plain.Digest))
	require.False(t, hasBlob(t, d, lazy.Digest))

	require.Regexp(t, regexp.MustCompile(lazy.Digest.String()+` lazy\b`), res.Logs)
	require.Regexp(t, regexp.MustCompile(plain.Digest.String()+` not lazy: \w+`), res.Logs)
}

// The progress of a build names every base layer that is mounted lazily, how much of
// it the steps needed, and at the end the whole image.
func TestProgressNamesLazyLayers(t *testing.T) {
	privileged(t)
	r := registry(t)
	img := image(t, lab.EStargz)
	base := onLink(t, r, img)
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
	res := build(t, d, lab.BuildOptions{
		Dockerfile: dockerfile(helloDockerfile, base),
		Exports:    []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": "x"}}},
	})
	require.Regexp(t, `lazy image `+regexp.QuoteMeta(base)+`[@\S]*: [0-9.]+ of [0-9.]+ MB fetched, 2 of 2 layers lazy`, res.Logs, "at the end, a line for each image")
	for _, l := range img.Layers {
		require.Regexp(t, regexp.MustCompile(l.Digest.String()+` lazy\b`), res.Logs, "what became of the layer")
		require.Regexp(t, regexp.MustCompile(`lazy `+l.Digest.String()+` [0-9.]+[kMG]?B / [0-9.]+[kMG]?B`), res.Logs, "what was needed of it")
	}
}

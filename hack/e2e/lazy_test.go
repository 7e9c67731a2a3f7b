package e2e

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/fault"
)

const helloDockerfile = `FROM %BASE%
RUN python3 -c 'import json, sys; print(json.dumps({"python": sys.version_info[0]}))' > /out.txt
`

func dockerfile(text, base string) string { return strings.ReplaceAll(text, "%BASE%", base) }

// share is the part of an image's compressed bytes that a registry sent, in percent.
func share(bytes int64, img *lab.Image) float64 { return 100 * float64(bytes) / float64(img.Size()) }

func TestLazyRun(t *testing.T) {
	privileged(t)
	r := registry(t)
	for _, format := range []lab.Format{lab.EStargz, lab.ZstdChunked} {
		t.Run(string(format), func(t *testing.T) {
			img := image(t, format)
			base := onLink(t, r, img)
			d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
			reset(t, r)
			out := t.TempDir()
			build(t, d, lab.BuildOptions{
				Dockerfile: dockerfile(helloDockerfile, base) + "FROM scratch\nCOPY --from=0 /out.txt /\n",
				OutputDir:  out,
			})
			got, err := os.ReadFile(filepath.Join(out, "out.txt"))
			require.NoError(t, err)
			require.Equal(t, "{\"python\": 3}\n", string(got))
			s := stats(t, r)
			t.Logf("%d layer requests, %d bytes, %.1f %% of the image", s.LayerGets, s.LayerBytes, share(s.LayerBytes, img))
			require.Less(t, share(s.LayerBytes, img), 50.0, "the base is lazy")

			// The same step again, on the same daemon: the cache has it. Another
			// step that reads the same files asks for nothing.
			reset(t, r)
			build(t, d, lab.BuildOptions{Dockerfile: dockerfile(helloDockerfile, base) + "RUN python3 -c 'import json'\n"})
			require.Zero(t, stats(t, r).LayerGets, "bytes that are here are not fetched again")
		})
	}
}

// An export needs the whole base. What the step read already is not fetched
// again, and the result is right.
func TestExportFetchesOnlyTheRest(t *testing.T) {
	privileged(t)
	r := registry(t)
	img := image(t, lab.EStargz)
	base := onLink(t, r, img)
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}})
	reset(t, r)
	out := filepath.Join(t.TempDir(), "image.tar")
	build(t, d, lab.BuildOptions{
		Dockerfile: dockerfile(helloDockerfile, base),
		Exports:    []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"name": "x"}, Output: toFile(out)}},
	})
	s := stats(t, r)
	t.Logf("%d layer requests, %d bytes of %d", s.LayerGets, s.LayerBytes, img.Size())
	require.LessOrEqual(t, share(s.LayerBytes, img), 101.0)

	f, err := os.Open(out)
	require.NoError(t, err)
	defer f.Close()
	names := strings.Join(tarNames(t, f), "\n")
	for _, l := range img.Layers {
		require.Contains(t, names, l.Digest.Encoded())
	}
	blob := blobInTar(t, out, img.Layers[1].Digest)
	require.Equal(t, img.Layers[1].Digest, blob, "the base's layer is exported as it came")
}

// The tables of contents of layers are asked for when the manifest has come, beside the
// image's config.
func TestLayersAreAskedForBesideTheConfig(t *testing.T) {
	privileged(t)
	p, ref, img := front(t, fault.Options{})
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{p.Addr}})
	p.Set(
		fault.Fault{On: []fault.Kind{fault.Manifest}, Skip: 2, Hang: true}, // HEAD and GET of the manifest pass
		fault.Fault{On: []fault.Kind{fault.TOC}, Delay: time.Millisecond},
	)
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	done := make(chan error, 1)
	opts := lab.BuildOptions{Dockerfile: reading(ref, "", "some", "1", "/a")}
	go func() {
		_, err := lab.Build(ctx, d.Addr, opts)
		done <- err
	}()
	require.Eventually(t, func() bool { return p.Hits() >= 1+len(img.Layers) }, 20*time.Second, 10*time.Millisecond)
	cancel()
	require.Error(t, <-done)
	p.Set()
	build(t, d, opts)
}

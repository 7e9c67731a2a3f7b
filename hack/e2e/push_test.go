package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/identity"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// pushTo exports a build as an image to a registry.
func pushTo(ref string) []client.ExportEntry {
	return []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": ref, "push": "true", "oci-mediatypes": "true"}}}
}

// layersInRegistry are the layers of an image that was pushed, for its one platform.
func layersInRegistry(t *testing.T, host, repo, tag string) (layers []digest.Digest) {
	t.Helper()
	var m struct {
		Manifests []ocispecs.Descriptor
		Layers    []ocispecs.Descriptor
	}
	for at := tag; at != ""; {
		req, err := http.NewRequestWithContext(testContext(t), http.MethodGet, "http://"+host+"/v2/"+repo+"/manifests/"+at, nil)
		require.NoError(t, err)
		req.Header.Set("Accept", ocispecs.MediaTypeImageManifest+", "+ocispecs.MediaTypeImageIndex)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		require.NoError(t, err)
		require.Equal(t, http.StatusOK, resp.StatusCode, "%s", body)
		m.Manifests, at = nil, ""
		require.NoError(t, json.Unmarshal(body, &m))
		if len(m.Manifests) > 0 {
			at = m.Manifests[0].Digest.String()
		}
	}
	for _, l := range m.Layers {
		layers = append(layers, l.Digest)
	}
	return layers
}

// A step ran on a lazy base for a client that has gone. Another client pushes the
// result: to the base's registry nothing of the base moves, to another one each
// byte of it comes down once and goes up once.
func TestPushOfALazyBase(t *testing.T) {
	privileged(t)
	for _, restart := range []bool{false, true} {
		name := "after the client has gone"
		if restart {
			name = "after a restart"
		}
		t.Run(name, func(t *testing.T) {
			r, other := registry(t), emptyRegistry(t)
			img := image(t, lab.EStargz)
			base := onLink(t, r, img)
			opts := lab.DaemonOptions{Program: ours(t), Root: stateDir(t), Snapshotter: "stargz", Registries: []string{r.Link, other.Link}}
			text := dockerfile(helloDockerfile, base)
			d := daemon(t, opts)
			reset(t, r)
			build(t, d, lab.BuildOptions{Dockerfile: text})
			read := stats(t, r).LayerBytes
			if restart {
				require.NoError(t, d.Stop())
				d = daemon(t, opts)
			}
			push := func(ref string) {
				t.Helper()
				reset(t, r)
				res := build(t, d, lab.BuildOptions{Dockerfile: text, Exports: pushTo(ref), Attrs: map[string]string{"attest:provenance": "disabled=true"}})
				require.NotZero(t, res.Cached, res.Logs)
			}
			repo := "pushed-" + identity.NewID()

			push(r.Link + "/" + repo + ":1")
			s := stats(t, r)
			t.Logf("same registry: %d requests, %d layer bytes, %d bytes pushed", s.Requests, s.LayerBytes, s.PushedBytes)
			require.Zero(t, s.LayerBytes, "nothing comes down")
			require.Less(t, s.PushedBytes, int64(100_000), "nothing of the base goes up")
			got := layersInRegistry(t, r.Direct, repo, "1")
			require.Len(t, got, 3)
			require.Equal(t, []digest.Digest{img.Layers[0].Digest, img.Layers[1].Digest}, got[:2])

			push(other.Link + "/" + repo + ":1")
			down, up := stats(t, r), stats(t, other)
			t.Logf("other registry: %d bytes down, %d bytes up, of %d, %d of which were here", down.LayerBytes, up.PushedBytes, img.Size(), read)
			require.LessOrEqual(t, down.LayerBytes, img.Size()-read+img.Size()/100)
			require.GreaterOrEqual(t, up.PushedBytes, img.Size())
			require.LessOrEqual(t, up.PushedBytes, img.Size()+img.Size()/100)
			require.Equal(t, got, layersInRegistry(t, other.Direct, repo, "1"))
		})
	}
}

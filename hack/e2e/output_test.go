package e2e

import (
	"archive/tar"
	"encoding/json"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/moby/buildkit/session/filesync"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
)

// toFile is an output that ends in a file.
func toFile(path string) filesync.FileOutputFunc {
	return func(map[string]string) (io.WriteCloser, error) { return os.Create(path) }
}

// inTar calls f with the contents of each file of an OCI tar.
func inTar(t *testing.T, path string, f func(name string, r io.Reader)) {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	tr := tar.NewReader(file)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		require.NoError(t, err)
		f(h.Name, tr)
	}
}

// blobInTar is the digest of what lies at d's place in an OCI tar.
func blobInTar(t *testing.T, path string, d digest.Digest) (got digest.Digest) {
	t.Helper()
	inTar(t, path, func(name string, r io.Reader) {
		if strings.HasSuffix(name, d.Encoded()) {
			var err error
			got, err = digest.FromReader(r)
			require.NoError(t, err)
		}
	})
	return got
}

// layersInTar are the layer digests of the one image in an OCI tar.
func layersInTar(t *testing.T, path string) []digest.Digest {
	t.Helper()
	small := map[string][]byte{}
	inTar(t, path, func(name string, r io.Reader) {
		data, err := io.ReadAll(io.LimitReader(r, 1<<20))
		require.NoError(t, err)
		small[name] = data
	})
	desc := ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageIndex}
	data := small["index.json"]
	for desc.MediaType == ocispecs.MediaTypeImageIndex {
		var index ocispecs.Index
		require.NoError(t, json.Unmarshal(data, &index))
		require.NotEmpty(t, index.Manifests)
		// The image comes first; attestations, if any, follow.
		desc = index.Manifests[0]
		data = small["blobs/sha256/"+desc.Digest.Encoded()]
	}
	var m ocispecs.Manifest
	require.NoError(t, json.Unmarshal(data, &m))
	var layers []digest.Digest
	for _, l := range m.Layers {
		layers = append(layers, l.Digest)
	}
	return layers
}

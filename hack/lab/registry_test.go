package lab

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab/link"
)

// TestPushAndRead sends an image to a real registry and reads it over the link.
func TestPushAndRead(t *testing.T) {
	dir := t.TempDir()
	source := smallLayer(t)
	img, err := pack(t.Context(), Base{Name: "small"}, EStargz, dir, []string{source.Name()})
	require.NoError(t, err)
	require.Equal(t, "small:estargz", img.Tag())

	r, err := StartRegistry(t.Context(), RegistryOptions{Dir: filepath.Join(dir, "registry"), Log: filepath.Join(dir, "log")})
	require.NoError(t, err)
	defer r.Stop()
	for range 2 { // the second one finds everything there
		ref, err := Push(t.Context(), r.Direct, img)
		require.NoError(t, err)
		require.Equal(t, r.Direct+"/small:estargz", ref)
	}
	require.NoError(t, r.Warm(img))

	read := func(path, ranges string) []byte {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+r.Link+path, nil)
		require.NoError(t, err)
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		req.Header.Set("Accept", img.Manifest.MediaType)
		resp, err := http.DefaultClient.Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.Less(t, resp.StatusCode, 300, "%s", body)
		return body
	}
	manifest, err := os.ReadFile(img.Blob(img.Manifest.Digest))
	require.NoError(t, err)
	layer, err := os.ReadFile(img.Blob(img.Layers[0].Digest))
	require.NoError(t, err)
	require.Equal(t, manifest, read("/v2/small/manifests/estargz", ""))
	require.Equal(t, layer[10:20], read("/v2/small/blobs/"+img.Layers[0].Digest.String(), "bytes=10-19"))
	require.NoError(t, r.AddTails(t.Context(), img))
	read("/v2/small/blobs/"+img.Layers[0].Digest.String(), "bytes=-51")
	require.NotEmpty(t, read("/v2/small/blobs/"+img.Config.Digest.String(), ""))

	s, err := r.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, 4, s.Requests, "pushes go past the link")
	require.Equal(t, 2, s.LayerGets)
	require.Equal(t, 1, s.DataGets)
	require.EqualValues(t, 10, s.DataBytes)
	require.Equal(t, 1, s.Configs)
	require.Equal(t, link.Blob{Gets: 2, Bytes: 61, Ranges: []string{"bytes=10-19", "bytes=-51"}}, s.Blobs[img.Layers[0].Digest.String()])

	require.NoError(t, r.SetShape(t.Context(), link.Shape{RTT: 100 * time.Millisecond}))
	require.NoError(t, r.Reset(t.Context()))
	http.DefaultClient.CloseIdleConnections()
	start := time.Now()
	read("/v2/small/manifests/estargz", "")
	require.GreaterOrEqual(t, time.Since(start), 200*time.Millisecond)
	s, err = r.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, s.Requests)
}

func TestImageThatLacksABlobIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	img, err := pack(t.Context(), Base{Name: "small"}, Gzip, dir, []string{smallLayer(t).Name()})
	require.NoError(t, err)
	index := filepath.Join(dir, "gzip.json")
	require.NoError(t, writeFile(index, []byte(`{"Name":"small","Format":"gzip","Manifest":{"digest":"`+
		img.Manifest.Digest.String()+`","size":1},"Config":{"digest":"`+img.Config.Digest.String()+`","size":1}}`)))
	_, err = readImage(index, dir)
	require.ErrorContains(t, err, img.Manifest.Digest.String())
}

package buildx

import (
	"archive/tar"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// image is a result that was read back: from a registry, an OCI layout or a
// docker tar.
type image struct {
	config ocispecs.Image
	layers []layer // lowest first
}

type layer struct {
	digest digest.Digest // of the blob
	open   func() (io.ReadCloser, error)
}

// file finds a file in the uppermost layer that has it.
func (i image) file(t *testing.T, name string) string {
	t.Helper()
	for n := len(i.layers) - 1; n >= 0; n-- {
		if text, ok := i.layers[n].file(t, name); ok {
			return text
		}
	}
	t.Errorf("no layer of the image has %s", name)
	return ""
}

// file reads one file of a layer.
func (l layer) file(t *testing.T, name string) (text string, found bool) {
	t.Helper()
	l.walk(t, func(h *tar.Header, r io.Reader) bool {
		if path.Clean("/"+h.Name) != path.Clean("/"+name) {
			return true
		}
		data, err := io.ReadAll(r)
		must(t, err)
		text, found = string(data), true
		return false
	})
	return text, found
}

// walk calls f for the entries of a layer until it returns false.
func (l layer) walk(t *testing.T, f func(h *tar.Header, r io.Reader) bool) {
	t.Helper()
	rc, err := l.open()
	must(t, err)
	defer rc.Close()
	plain, err := decompress(rc)
	must(t, err)
	tr := tar.NewReader(plain)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatalf("layer %s: %v", l.digest, err)
		}
		if !f(h, tr) {
			return
		}
	}
}

// decompress tells gzip, zstd and plain apart by their first bytes.
func decompress(r io.Reader) (io.Reader, error) {
	br := bufio.NewReader(r)
	magic, err := br.Peek(4)
	if err != nil {
		return nil, err
	}
	switch {
	case magic[0] == 0x1f && magic[1] == 0x8b:
		return gzip.NewReader(br)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return zstd.NewReader(br, zstd.WithDecoderConcurrency(1))
	}
	return br, nil
}

// pull reads a single-platform image from a registry.
func pull(t *testing.T, host, name, tag string) image {
	t.Helper()
	return readImage(t, fetchManifest(t, host, name, tag), func(d digest.Digest) (io.ReadCloser, error) {
		return fetch(fmt.Sprintf("http://%s/v2/%s/blobs/%s", host, name, d), "")
	})
}

func fetchManifest(t *testing.T, host, name, tag string) []byte {
	t.Helper()
	accept := ocispecs.MediaTypeImageManifest + ", application/vnd.docker.distribution.manifest.v2+json, " + ocispecs.MediaTypeImageIndex
	rc, err := fetch(fmt.Sprintf("http://%s/v2/%s/manifests/%s", host, name, tag), accept)
	must(t, err)
	defer rc.Close()
	data, err := io.ReadAll(rc)
	must(t, err)
	return data
}

func fetch(url, accept string) (io.ReadCloser, error) {
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", url, resp.Status)
	}
	return resp.Body, nil
}

// readOCITar reads the one image of an OCI layout in a tar.
func readOCITar(t *testing.T, file string) image {
	t.Helper()
	files := readTar(t, file)
	var index ocispecs.Index
	must(t, json.Unmarshal(files["index.json"], &index))
	if len(index.Manifests) != 1 {
		t.Fatalf("index.json of %s names %d manifests, want 1", file, len(index.Manifests))
	}
	blob := func(d digest.Digest) []byte { return files["blobs/sha256/"+d.Encoded()] }
	return readImage(t, blob(index.Manifests[0].Digest), func(d digest.Digest) (io.ReadCloser, error) {
		return memory(blob(d), d.String())
	})
}

// readDockerTar reads the one image of a tar as "docker save" writes it.
func readDockerTar(t *testing.T, file string) (image, []string) {
	t.Helper()
	files := readTar(t, file)
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	must(t, json.Unmarshal(files["manifest.json"], &manifests))
	if len(manifests) != 1 {
		t.Fatalf("manifest.json of %s names %d images, want 1", file, len(manifests))
	}
	var img image
	must(t, json.Unmarshal(files[manifests[0].Config], &img.config))
	for _, name := range manifests[0].Layers {
		img.layers = append(img.layers, layer{
			digest: digest.FromBytes(files[name]),
			open:   func() (io.ReadCloser, error) { return memory(files[name], name) },
		})
	}
	img.check(t)
	return img, manifests[0].RepoTags
}

// readImage reads what a manifest names; every blob is checked against its digest
// as it is opened.
func readImage(t *testing.T, manifest []byte, open func(digest.Digest) (io.ReadCloser, error)) image {
	t.Helper()
	var m ocispecs.Manifest
	must(t, json.Unmarshal(manifest, &m))
	if m.Config.Digest == "" {
		t.Fatalf("not a manifest of one image: %s", manifest)
	}
	checked := func(d ocispecs.Descriptor) (io.ReadCloser, error) {
		rc, err := open(d.Digest)
		if err != nil {
			return nil, err
		}
		defer rc.Close()
		data, err := io.ReadAll(rc)
		if err != nil {
			return nil, err
		}
		if got := digest.FromBytes(data); got != d.Digest || int64(len(data)) != d.Size {
			return nil, fmt.Errorf("blob %s of %d bytes has digest %s and %d bytes", d.Digest, d.Size, got, len(data))
		}
		return memory(data, "")
	}
	rc, err := checked(m.Config)
	must(t, err)
	var img image
	must(t, json.NewDecoder(rc).Decode(&img.config))
	for _, d := range m.Layers {
		img.layers = append(img.layers, layer{digest: d.Digest, open: func() (io.ReadCloser, error) { return checked(d) }})
	}
	img.check(t)
	return img
}

// check compares the layers with the config's list of their contents' digests.
func (i image) check(t *testing.T) {
	t.Helper()
	if len(i.config.RootFS.DiffIDs) != len(i.layers) {
		t.Fatalf("config names %d layers, manifest %d", len(i.config.RootFS.DiffIDs), len(i.layers))
	}
	for n, l := range i.layers {
		rc, err := l.open()
		must(t, err)
		plain, err := decompress(rc)
		must(t, err)
		got, err := digest.FromReader(plain)
		must(t, err)
		rc.Close()
		if want := i.config.RootFS.DiffIDs[n]; got != want {
			t.Errorf("layer %d (%s) has diff ID %s, the config says %s", n, l.digest, got, want)
		}
	}
}

// readTar reads a whole tar into memory, by cleaned name.
func readTar(t *testing.T, file string) map[string][]byte {
	t.Helper()
	f, err := os.Open(file)
	must(t, err)
	defer f.Close()
	files := map[string][]byte{}
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return files
		}
		must(t, err)
		if h.Typeflag != tar.TypeReg {
			continue
		}
		data, err := io.ReadAll(tr)
		must(t, err)
		files[strings.TrimPrefix(path.Clean(h.Name), "/")] = data
	}
}

func memory(data []byte, name string) (io.ReadCloser, error) {
	if data == nil {
		return nil, fmt.Errorf("%s is not there", name)
	}
	return io.NopCloser(bytes.NewReader(data)), nil
}

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"testing"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestImages checks that digests and sizes are those of the bytes, that both
// kinds of layer hold the file, and that a second run gives the same image.
func TestImages(t *testing.T) {
	for _, kind := range []base{baseGzip, baseEstargz} {
		t.Run(string(kind), func(t *testing.T) {
			first, second := makeTestImage(t, kind), makeTestImage(t, kind)
			if !bytes.Equal(first.manifest, second.manifest) {
				t.Errorf("two images of one tar differ:\n%s\n%s", first.manifest, second.manifest)
			}
			var m ocispecs.Manifest
			if err := json.Unmarshal(first.manifest, &m); err != nil {
				t.Fatal(err)
			}
			layer := first.blobs[1]
			if m.Layers[0].Digest != digest.FromBytes(layer.data) || m.Layers[0].Size != int64(len(layer.data)) {
				t.Errorf("descriptor %v of a layer of %d bytes, %s", m.Layers[0], len(layer.data), digest.FromBytes(layer.data))
			}
			if has := m.Layers[0].Annotations[estargz.TOCJSONDigestAnnotation] != ""; has != (kind == baseEstargz) {
				t.Errorf("annotations of the layer: %v", m.Layers[0].Annotations)
			}
			checkLayer(t, layer)
		})
	}
}

func makeTestImage(t *testing.T, kind base) image {
	t.Helper()
	tarball, err := smallTar("greeting", "hello\n")
	if err != nil {
		t.Fatal(err)
	}
	layer, err := makeLayer(tarball, kind)
	if err != nil {
		t.Fatal(err)
	}
	img, err := ociImage(layer)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func checkLayer(t *testing.T, layer blob) {
	t.Helper()
	zr, err := gzip.NewReader(bytes.NewReader(layer.data))
	if err != nil {
		t.Fatal(err)
	}
	plain, err := io.ReadAll(zr)
	if err != nil {
		t.Fatal(err)
	}
	if got := digest.FromBytes(plain); got != layer.diffID {
		t.Errorf("diff ID %s, contents have %s", layer.diffID, got)
	}
	tr := tar.NewReader(bytes.NewReader(plain))
	for {
		h, err := tr.Next()
		if err != nil {
			t.Fatalf("the file is not in the layer: %v", err)
		}
		if h.Name != "greeting" {
			continue
		}
		text, err := io.ReadAll(tr)
		if err != nil || string(text) != "hello\n" {
			t.Errorf("contents %q, %v", text, err)
		}
		return
	}
}

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"

	"github.com/containerd/stargz-snapshotter/estargz"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// base is how the layers of the stand-in images are written.
type base string

const (
	baseGzip    base = "gzip"
	baseEstargz base = "estargz"
)

// Docker's media types: the image with a foreign layer is a schema 2 one, as
// the original is.
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerLayer        = "application/vnd.docker.image.rootfs.diff.tar.gzip"
	dockerForeignLayer = "application/vnd.docker.image.rootfs.foreign.diff.tar"
)

// blob is a layer with its contents.
type blob struct {
	desc   ocispecs.Descriptor
	diffID digest.Digest
	data   []byte
}

// image is what gets pushed: a manifest and the blobs that it names.
type image struct {
	mediaType string
	manifest  []byte
	blobs     []blob
}

// makeLayer compresses a tar as the kind of base asks.
func makeLayer(tarball []byte, kind base) (blob, error) {
	if kind == baseEstargz {
		return makeEstargz(tarball)
	}
	var buf bytes.Buffer
	zw := gzip.NewWriter(&buf)
	if _, err := zw.Write(tarball); err != nil {
		return blob{}, err
	}
	if err := zw.Close(); err != nil {
		return blob{}, err
	}
	return newBlob(buf.Bytes(), digest.FromBytes(tarball), nil), nil
}

func makeEstargz(tarball []byte) (blob, error) {
	r, err := estargz.Build(io.NewSectionReader(bytes.NewReader(tarball), 0, int64(len(tarball))))
	if err != nil {
		return blob{}, fmt.Errorf("write estargz: %w", err)
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return blob{}, fmt.Errorf("write estargz: %w", err)
	}
	// The size is what containers/storage and BuildKit record beside the digest
	// of the TOC; readers need the digest only.
	return newBlob(data, r.DiffID(), map[string]string{estargz.TOCJSONDigestAnnotation: r.TOCDigest().String()}), nil
}

func newBlob(data []byte, diffID digest.Digest, annotations map[string]string) blob {
	return blob{
		desc: ocispecs.Descriptor{
			MediaType:   ocispecs.MediaTypeImageLayerGzip,
			Digest:      digest.FromBytes(data),
			Size:        int64(len(data)),
			Annotations: annotations,
		},
		diffID: diffID,
		data:   data,
	}
}

// smallTar is a layer of one file.
func smallTar(name, contents string) ([]byte, error) {
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := writeFile(tw, name, 0o644, []byte(contents)); err != nil {
		return nil, err
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// ociImage is an image of the given layers, without an index around it: the
// harness, too, puts single manifests in its mirror.
func ociImage(layers ...blob) (image, error) {
	config, err := makeConfig(ocispecs.MediaTypeImageConfig, layers)
	if err != nil {
		return image{}, err
	}
	return makeManifest(ocispecs.MediaTypeImageManifest, config, layers)
}

// foreignImage is a schema 2 image of two layers. The first, not compressed, is
// foreign: its bytes are said to lie at url.
func foreignImage(foreign, plain blob, url string) (image, error) {
	foreign.desc.MediaType = dockerForeignLayer
	foreign.desc.URLs = []string{url}
	plain.desc.MediaType = dockerLayer
	layers := []blob{foreign, plain}
	config, err := makeConfig(dockerConfig, layers)
	if err != nil {
		return image{}, err
	}
	return makeManifest(dockerManifest, config, layers)
}

func makeConfig(mediaType string, layers []blob) (blob, error) {
	img := ocispecs.Image{
		Created:  &epoch,
		Platform: ocispecs.Platform{OS: "linux", Architecture: goarch},
		Config: ocispecs.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"sh"},
		},
		RootFS: ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{}},
	}
	for i, l := range layers {
		img.RootFS.DiffIDs = append(img.RootFS.DiffIDs, l.diffID)
		img.History = append(img.History, ocispecs.History{Created: &epoch, CreatedBy: fmt.Sprintf("layer %d", i)})
	}
	data, err := json.Marshal(img)
	if err != nil {
		return blob{}, err
	}
	b := newBlob(data, "", nil)
	b.desc.MediaType = mediaType
	return b, nil
}

// makeManifest lists layers in a manifest.
func makeManifest(mediaType string, config blob, layers []blob) (image, error) {
	m := ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: mediaType,
		Config:    config.desc,
		Layers:    []ocispecs.Descriptor{},
	}
	for _, l := range layers {
		m.Layers = append(m.Layers, l.desc)
	}
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return image{}, err
	}
	return image{mediaType: mediaType, manifest: data, blobs: append([]blob{config}, layers...)}, nil
}

package lab

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// RawLayer is a layer as it is to lie in a registry, whatever is wrong with it.
type RawLayer struct {
	Blob   []byte
	Desc   ocispecs.Descriptor // of the manifest; an empty Digest and a Size of 0 are filled in
	DiffID digest.Digest       // of the config; "" is the digest of nothing
}

// With returns an image of i's layers and more above them, called name:tag after i's
// name. Nothing of the layers is checked. dir is where its blobs are kept.
func (i *Image) With(dir, tag string, layers ...RawLayer) (*Image, error) {
	img := &Image{Name: i.Name, Format: Format(tag), Dir: dir, Layers: append([]ocispecs.Descriptor(nil), i.Layers...)}
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("make image %s: %w", img.Tag(), err)
	}
	for _, l := range i.Layers {
		if err := os.Symlink(i.Blob(l.Digest), img.Blob(l.Digest)); err != nil && !os.IsExist(err) {
			return nil, fmt.Errorf("make image %s: %w", img.Tag(), err)
		}
	}
	data, err := os.ReadFile(i.Blob(i.Config.Digest))
	if err != nil {
		return nil, fmt.Errorf("make image %s: %w", img.Tag(), err)
	}
	var config ocispecs.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return nil, fmt.Errorf("make image %s: %w", img.Tag(), err)
	}
	for _, l := range layers {
		desc := l.Desc
		if desc.Digest == "" {
			desc.Digest = digest.FromBytes(l.Blob)
		}
		if desc.Size == 0 {
			desc.Size = int64(len(l.Blob))
		}
		if l.DiffID == "" {
			l.DiffID = digest.FromBytes(nil)
		}
		if err := writeFile(img.Blob(desc.Digest), l.Blob); err != nil {
			return nil, fmt.Errorf("make image %s: %w", img.Tag(), err)
		}
		img.Layers = append(img.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, l.DiffID)
		config.History = append(config.History, ocispecs.History{Created: config.Created, CreatedBy: "hack/lab"})
	}
	return img, img.describe(config)
}

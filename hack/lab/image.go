package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
	specs "github.com/opencontainers/image-spec/specs-go"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image is a base image in one format, complete on disk.
type Image struct {
	Name     string // of the base
	Format   Format
	Manifest ocispecs.Descriptor
	Config   ocispecs.Descriptor
	Layers   []ocispecs.Descriptor // lowest first
	Dir      string                // an OCI layout's directory: blobs/sha256/<hex>
	Sources  []string              // the layers' contents as .tar.zst files; legacy stargz and the like add their own entries to them
}

// Blob is the path of a blob of the image.
func (i *Image) Blob(d digest.Digest) string { return blobPath(i.Dir, d) }

// Size is the sum of the layers' compressed sizes in bytes.
func (i *Image) Size() int64 {
	var n int64
	for _, l := range i.Layers {
		n += l.Size
	}
	return n
}

// Tag is how the image is called in a registry: base:format.
func (i *Image) Tag() string { return i.Name + ":" + string(i.Format) }

// Packing is how a layer is packed.
type Packing struct {
	Format    Format
	ChunkSize int // most bytes of a file in a chunk, where the format has chunks; 0 is the usual 4 MiB
}

// MakeImage returns the base image in format. The first call on a machine makes
// it, which takes minutes; later ones read a file.
func MakeImage(ctx context.Context, base Base, format Format) (*Image, error) {
	return makeImage(ctx, base, format, []Packing{{Format: format}, {Format: format}})
}

// MixedImage is MakeImage for an image whose two layers are packed each in a way
// of its own. It is called by both ways.
func MixedImage(ctx context.Context, base Base, bottom, top Packing) (*Image, error) {
	return makeImage(ctx, base, Format(bottom.String()+"-"+top.String()), []Packing{bottom, top})
}

// String is a word for the packing: its format, and the chunk size if it is unusual.
func (p Packing) String() string {
	if p.ChunkSize == 0 {
		return string(p.Format)
	}
	return fmt.Sprintf("%s_%d", p.Format, p.ChunkSize)
}

// makeImage makes the image that is called after format.
func makeImage(ctx context.Context, base Base, format Format, layers []Packing) (*Image, error) {
	rel := hostRelease(ctx)
	dir, err := base.dir(rel)
	if err != nil {
		return nil, err
	}
	index := filepath.Join(dir, string(format)+".json")
	if img, err := readImage(index, dir); err == nil {
		return img, nil
	}
	var img *Image
	err = locked(ctx, "images", func() error {
		if img, err = readImage(index, dir); err == nil {
			return nil
		}
		sources, err := base.layers(ctx, rel)
		if err != nil {
			return err
		}
		start := time.Now()
		img, err = packMixed(ctx, base, format, dir, sources, layers)
		if err != nil {
			return fmt.Errorf("make image %s:%s: %w", base.Name, format, err)
		}
		data, err := json.MarshalIndent(img, "", "\t")
		if err != nil {
			return fmt.Errorf("make image %s:%s: %w", base.Name, format, err)
		}
		Logf("%s packed in %.1f s, %.1f MB", img.Tag(), time.Since(start).Seconds(), float64(img.Size())/1e6)
		return writeFile(index, data)
	})
	return img, err
}

// readImage reads what MakeImage left, and checks that its blobs are there.
func readImage(index, dir string) (*Image, error) {
	data, err := os.ReadFile(index)
	if err != nil {
		return nil, fmt.Errorf("read image: %w", err)
	}
	img := &Image{}
	if err := json.Unmarshal(data, img); err != nil {
		return nil, fmt.Errorf("read image %s: %w", index, err)
	}
	img.Dir = dir
	for _, d := range append([]ocispecs.Descriptor{img.Manifest, img.Config}, img.Layers...) {
		info, err := os.Stat(img.Blob(d.Digest))
		if err != nil {
			return nil, fmt.Errorf("read image %s: %w", index, err)
		}
		if info.Size() != d.Size {
			return nil, fmt.Errorf("read image %s: blob %s has %d bytes, not %d", index, d.Digest, info.Size(), d.Size)
		}
	}
	return img, nil
}

// pack converts the layers, all to one format, and writes config and manifest.
func pack(ctx context.Context, base Base, format Format, dir string, sources []string) (*Image, error) {
	return packMixed(ctx, base, format, dir, sources, slices.Repeat([]Packing{{Format: format}}, len(sources)))
}

// packMixed is pack with a packing for each of the layers.
func packMixed(ctx context.Context, base Base, format Format, dir string, sources []string, layers []Packing) (*Image, error) {
	img := &Image{Name: base.Name, Format: format, Dir: dir, Sources: sources}
	created := time.Unix(epoch, 0).UTC()
	config := ocispecs.Image{
		Created:  &created,
		Platform: ocispecs.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config: ocispecs.ImageConfig{
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Cmd: []string{"sh"},
		},
		RootFS: ocispecs.RootFS{Type: "layers"},
	}
	for i, source := range sources {
		desc, diffID, err := packed(dir, i, layers[i])
		if err != nil {
			desc, diffID, err = packLayer(ctx, dir, source, layers[i])
		}
		if err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, ocispecs.History{Created: &created, CreatedBy: "hack/lab"})
	}
	return img, img.describe(config)
}

// describe writes the config, and the manifest of the layers that img has.
func (img *Image) describe(config ocispecs.Image) (err error) {
	if img.Config, err = writeJSONBlob(img.Dir, ocispecs.MediaTypeImageConfig, config); err != nil {
		return err
	}
	img.Manifest, err = writeJSONBlob(img.Dir, ocispecs.MediaTypeImageManifest, ocispecs.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispecs.MediaTypeImageManifest,
		Config:    img.Config,
		Layers:    img.Layers,
	})
	return err
}

// packed finds a layer in the image that has all of them in its packing.
func packed(dir string, i int, p Packing) (desc ocispecs.Descriptor, diffID digest.Digest, err error) {
	img, err := readImage(filepath.Join(dir, p.String()+".json"), dir)
	if err != nil {
		return desc, "", err
	}
	data, err := os.ReadFile(img.Blob(img.Config.Digest))
	if err != nil {
		return desc, "", fmt.Errorf("read image: %w", err)
	}
	var config ocispecs.Image
	if err := json.Unmarshal(data, &config); err != nil {
		return desc, "", fmt.Errorf("read image: %w", err)
	}
	return img.Layers[i], config.RootFS.DiffIDs[i], nil
}

// packLayer converts one layer into a blob of the layout at dir.
func packLayer(ctx context.Context, dir, source string, p Packing) (ocispecs.Descriptor, digest.Digest, error) {
	var none ocispecs.Descriptor
	in, err := os.Open(source)
	if err != nil {
		return none, "", fmt.Errorf("open layer: %w", err)
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return none, "", fmt.Errorf("make the blobs' directory: %w", err)
	}
	out, err := os.CreateTemp(dir, "blob")
	if err != nil {
		return none, "", fmt.Errorf("create blob: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	counted := &countingDigest{d: digest.Canonical.Digester(), w: out}
	desc, diffID, err := convert(ctx, in, p, counted)
	if err != nil {
		return none, "", err
	}
	if err := out.Close(); err != nil {
		return none, "", fmt.Errorf("write blob: %w", err)
	}
	desc.Digest, desc.Size = counted.d.Digest(), counted.n
	if err := os.Rename(out.Name(), blobPath(dir, desc.Digest)); err != nil {
		return none, "", fmt.Errorf("write blob: %w", err)
	}
	return desc, diffID, nil
}

// countingDigest passes writes on to w.
type countingDigest struct {
	d digest.Digester
	n int64
	w *os.File
}

func (c *countingDigest) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.d.Hash().Write(p[:n])
	c.n += int64(n)
	return n, err
}

func blobPath(dir string, d digest.Digest) string {
	return filepath.Join(dir, "blobs", d.Algorithm().String(), d.Encoded())
}

func writeJSONBlob(dir, mediaType string, v any) (ocispecs.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispecs.Descriptor{}, fmt.Errorf("encode %s: %w", mediaType, err)
	}
	desc := ocispecs.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return desc, writeFile(blobPath(dir, desc.Digest), data)
}

// writeFile replaces the file at path in one step.
func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".part", data, 0o644); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(path+".part", path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

package lab

import (
	"archive/tar"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/containerd/stargz-snapshotter/estargz"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// readsRecipe changes whenever ReadsImage would make another image.
const readsRecipe = "2"

// What a layer of ReadsImage holds. The contents can't be compressed.
const (
	readsSmall     = 48      // files of some tens of kilobytes
	readsLarge     = 4       // files of readsLargeSize bytes
	readsLargeSize = 2 << 20 // in chunks of readsChunk
	readsChunk     = 256 << 10
)

// ReadsImage returns an eStargz image of two layers, /a and /b, of 10 MB each, and
// hack/lab/cmd/reader as /reader: the smallest base on which a step reads here and
// there. Images of two seeds share no layer. It is made once, in a second.
func ReadsImage(ctx context.Context, seed int) (*Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "images", "reads-"+readsRecipe)
	index := filepath.Join(dir, fmt.Sprintf("%d.json", seed))
	if img, err := readImage(index, dir); err == nil {
		return img, nil
	}
	reader, err := goBuild(ctx, "lab-reader", "./hack/lab/cmd/reader")
	if err != nil {
		return nil, err
	}
	var img *Image
	err = locked(ctx, "reads", func() error {
		if img, err = readImage(index, dir); err == nil {
			return nil
		}
		if img, err = makeReads(dir, seed, reader); err != nil {
			return fmt.Errorf("make the image of reads: %w", err)
		}
		data, err := json.MarshalIndent(img, "", "\t")
		if err != nil {
			return fmt.Errorf("make the image of reads: %w", err)
		}
		return writeFile(index, data)
	})
	return img, err
}

func makeReads(dir string, seed int, reader string) (*Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("make the blobs' directory: %w", err)
	}
	img := &Image{Name: "reads", Format: Format(fmt.Sprintf("estargz-%d", seed)), Dir: dir}
	created := time.Unix(epoch, 0).UTC()
	config := ocispecs.Image{
		Created:  &created,
		Platform: ocispecs.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispecs.RootFS{Type: "layers"},
	}
	for i, name := range []string{"a", "b"} {
		program := ""
		if i == 0 {
			program = reader
		}
		desc, diffID, err := packStream(dir, readsChunk, func(w io.Writer) error { return writeReads(w, name, seed, program) })
		if err != nil {
			return nil, err
		}
		img.Layers = append(img.Layers, desc)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, diffID)
		config.History = append(config.History, ocispecs.History{Created: &created, CreatedBy: "hack/lab"})
	}
	return img, img.describe(config)
}

// packStream packs the tar that write makes into an eStargz blob of the layout at dir.
func packStream(dir string, chunk int, write func(io.Writer) error) (desc ocispecs.Descriptor, diffID digest.Digest, err error) {
	out, err := os.CreateTemp(dir, "blob")
	if err != nil {
		return desc, "", fmt.Errorf("create blob: %w", err)
	}
	defer os.Remove(out.Name())
	defer out.Close()
	counted := &countingDigest{d: digest.Canonical.Digester(), w: out}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(write(w)) }()
	packer := estargz.NewWriterLevel(counted, 1)
	packer.ChunkSize = chunk
	if err := packer.AppendTar(r); err != nil {
		return desc, "", fmt.Errorf("pack layer: %w", err)
	}
	toc, err := packer.Close()
	if err != nil {
		return desc, "", fmt.Errorf("pack layer: %w", err)
	}
	if err := out.Close(); err != nil {
		return desc, "", fmt.Errorf("write blob: %w", err)
	}
	desc = ocispecs.Descriptor{
		MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: counted.d.Digest(), Size: counted.n,
		Annotations: map[string]string{estargz.TOCJSONDigestAnnotation: toc.String()},
	}
	if err := os.Rename(out.Name(), blobPath(dir, desc.Digest)); err != nil {
		return desc, "", fmt.Errorf("write blob: %w", err)
	}
	return desc, digest.Digest(packer.DiffID()), nil
}

// writeReads writes the tar of one layer: a directory of random files and, if it is
// named, a program.
func writeReads(w io.Writer, name string, seed int, program string) error {
	tw := tar.NewWriter(w)
	if program != "" {
		data, err := os.ReadFile(program)
		if err != nil {
			return fmt.Errorf("read the program: %w", err)
		}
		if err := writeRegular(tw, "reader", 0o755, data); err != nil {
			return err
		}
	}
	rnd := rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-20s%12d", name, seed))))
	if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: time.Unix(epoch, 0)}); err != nil {
		return fmt.Errorf("write directory %s: %w", name, err)
	}
	for i := range readsSmall + readsLarge {
		size := 16<<10 + int(rnd.Uint64()%(48<<10))
		if i%(readsSmall/readsLarge) == 5 {
			size = readsLargeSize
		}
		data := make([]byte, size)
		rnd.Read(data) // never fails
		if err := writeRegular(tw, fmt.Sprintf("%s/%03d", name, i), 0o644, data); err != nil {
			return err
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("end the tar: %w", err)
	}
	return nil
}

func writeRegular(tw *tar.Writer, name string, mode int64, data []byte) error {
	hdr := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(data)), ModTime: time.Unix(epoch, 0)}
	if err := tw.WriteHeader(hdr); err != nil {
		return fmt.Errorf("write entry %s: %w", name, err)
	}
	if _, err := tw.Write(data); err != nil {
		return fmt.Errorf("write entry %s: %w", name, err)
	}
	return nil
}

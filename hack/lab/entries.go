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

	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// entriesRecipe changes whenever EntriesImage would make another image.
const entriesRecipe = "1"

// EntriesImage returns an eStargz image of one layer with n entries below its root,
// of which most are empty files. Images of two seeds share no layer. It is made once,
// in about two seconds for 40,000 entries.
func EntriesImage(ctx context.Context, seed, n int) (*Image, error) {
	cache, err := CacheDir()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(cache, "images", fmt.Sprintf("entries-%s-%d", entriesRecipe, n))
	index := filepath.Join(dir, fmt.Sprintf("%d.json", seed))
	if img, err := readImage(index, dir); err == nil {
		return img, nil
	}
	var img *Image
	err = locked(ctx, "entries", func() error {
		if img, err = readImage(index, dir); err == nil {
			return nil
		}
		if img, err = makeEntries(dir, seed, n); err != nil {
			return fmt.Errorf("make an image of %d entries: %w", n, err)
		}
		data, err := json.MarshalIndent(img, "", "\t")
		if err != nil {
			return fmt.Errorf("make an image of %d entries: %w", n, err)
		}
		Logf("image %s made, %.1f MB", img.Tag(), float64(img.Size())/1e6)
		return writeFile(index, data)
	})
	return img, err
}

func makeEntries(dir string, seed, n int) (*Image, error) {
	if err := os.MkdirAll(filepath.Join(dir, "blobs", "sha256"), 0o755); err != nil {
		return nil, fmt.Errorf("make the blobs' directory: %w", err)
	}
	layer, diffID, err := packStream(dir, 0, func(w io.Writer) error { return writeEntries(w, seed, n) })
	if err != nil {
		return nil, err
	}
	img := &Image{Name: "entries", Format: Format(fmt.Sprintf("%d-%d", n, seed)), Dir: dir, Layers: []ocispecs.Descriptor{layer}}
	created := time.Unix(epoch, 0).UTC()
	return img, img.describe(ocispecs.Image{
		Created:  &created,
		Platform: ocispecs.Platform{OS: "linux", Architecture: runtime.GOARCH},
		RootFS:   ocispecs.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History:  []ocispecs.History{{Created: &created, CreatedBy: "hack/lab"}},
	})
}

// writeEntries writes a tar of n entries: directories of some hundred files each,
// with names, modes and owners as random as those of packages, and a few bytes in
// one file of a hundred.
func writeEntries(w io.Writer, seed, n int) error {
	rnd := rand.New(rand.NewPCG(uint64(seed), uint64(n)))
	tw := tar.NewWriter(w)
	dir := ""
	for i := range n {
		hdr := &tar.Header{Mode: 0o644, ModTime: time.Unix(epoch-int64(rnd.IntN(1<<28)), 0)}
		const filesOfDir = 200
		if i%filesOfDir == 0 {
			dir = fmt.Sprintf("dir-%d-%x/", i/filesOfDir, rnd.Uint32())
			hdr.Typeflag, hdr.Name, hdr.Mode = tar.TypeDir, dir, 0o755
		} else {
			hdr.Typeflag, hdr.Name = tar.TypeReg, fmt.Sprintf("%sfile-%x.txt", dir, rnd.Uint64())
			if i%100 == 1 {
				hdr.Size = 8
			}
		}
		if err := tw.WriteHeader(hdr); err != nil {
			return fmt.Errorf("write entry %s: %w", hdr.Name, err)
		}
		if hdr.Size > 0 {
			if _, err := fmt.Fprintf(tw, "%08x", rnd.Uint32()); err != nil {
				return fmt.Errorf("write entry %s: %w", hdr.Name, err)
			}
		}
	}
	if err := tw.Close(); err != nil {
		return fmt.Errorf("end the tar: %w", err)
	}
	return nil
}

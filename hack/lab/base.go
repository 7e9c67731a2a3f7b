package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/klauspost/compress/zstd"
	digest "github.com/opencontainers/go-digest"
)

// Base is what an image holds: a minimal Debian as its first layer, and
// packages installed on it as its second.
type Base struct {
	Name       string
	Packages   []string
	Recommends bool // install what the packages recommend as well, as apt-get does unasked
}

// Bases are the known base images. "bench" is what a CI job's build image
// looks like (1.4 GB); "demo" is small enough to be made in a minute or two.
var Bases = []Base{
	{Name: "bench", Packages: []string{"gcc", "g++", "python3", "python3-numpy", "nodejs", "golang-go", "git", "make", "cmake", "curl", "ca-certificates"}, Recommends: true},
	{Name: "demo", Packages: []string{"gcc", "libc6-dev", "python3"}},
}

// FindBase finds a base by its name.
func FindBase(name string) (Base, error) {
	var names []string
	for _, b := range Bases {
		if b.Name == name {
			return b, nil
		}
		names = append(names, b.Name)
	}
	return Base{}, fmt.Errorf("unknown base %q (known: %s)", name, strings.Join(names, ", "))
}

// recipe changes whenever this package would make other layers from the same
// packages, so that old ones in caches are not used.
const recipe = "1"

// dir is where the base's layers and blobs are kept.
func (b Base) dir(rel release) (string, error) {
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	key := digest.FromString(strings.Join(append([]string{recipe, rel.Codename, runtime.GOARCH, fmt.Sprint(b.Recommends)}, b.Packages...), " ")).Encoded()[:12]
	return filepath.Join(cache, "images", fmt.Sprintf("%s-%s-%s", b.Name, rel.Codename, key)), nil
}

// layers returns the .tar.zst files of the base's two layers, and makes what is
// missing of them. The caller holds the lock of the images.
func (b Base) layers(ctx context.Context, rel release) ([]string, error) {
	minbase := Base{Name: "minbase"}
	bottomDir, err := minbase.dir(rel)
	if err != nil {
		return nil, err
	}
	topDir, err := b.dir(rel)
	if err != nil {
		return nil, err
	}
	bottom, top := filepath.Join(bottomDir, "layer.tar.zst"), filepath.Join(topDir, "layer.tar.zst")
	if !exists(bottom) {
		err := inScratch(bottomDir, func(root string) error {
			if err := debootstrap(ctx, rel, root); err != nil {
				return err
			}
			return writeLayer(bottom, root, nil)
		})
		if err != nil {
			return nil, fmt.Errorf("make the minimal Debian: %w", err)
		}
	}
	if !exists(top) {
		err := inScratch(topDir, func(root string) error {
			if err := unpackLayer(ctx, bottom, root); err != nil {
				return err
			}
			before, err := stampTree(root)
			if err != nil {
				return err
			}
			if err := aptInstall(ctx, root, b); err != nil {
				return err
			}
			return writeLayer(top, root, before)
		})
		if err != nil {
			return nil, fmt.Errorf("make base %s: %w", b.Name, err)
		}
	}
	return []string{bottom, top}, nil
}

// inScratch calls f with the path of a directory to be made below dir, and
// removes it afterwards, as well as what a process that was killed left there.
func inScratch(dir string, f func(root string) error) error {
	root := filepath.Join(dir, "rootfs")
	if err := os.RemoveAll(root); err != nil {
		return fmt.Errorf("clear an old tree: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	defer os.RemoveAll(root)
	return f(root)
}

// writeLayer writes what changed in the tree at root as a .tar.zst file.
func writeLayer(path, root string, before map[string]stamp) (err error) {
	file, err := os.Create(path + ".part")
	if err != nil {
		return fmt.Errorf("create layer: %w", err)
	}
	defer os.Remove(path + ".part")
	defer file.Close()
	zw, err := zstd.NewWriter(file, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return fmt.Errorf("compress layer: %w", err)
	}
	n, err := writeTree(zw, root, before)
	if cerr := zw.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	Logf("layer of %d entries written", n)
	if err := file.Close(); err != nil {
		return fmt.Errorf("write layer: %w", err)
	}
	return os.Rename(path+".part", path)
}

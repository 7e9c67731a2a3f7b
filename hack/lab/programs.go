package lab

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	digest "github.com/opencontainers/go-digest"
)

// stockVersion is BuildKit's release that everything is compared with. It is
// the one that go.mod requires.
const stockVersion = "v0.33.1"

// Programs are the paths of a daemon and its client.
type Programs struct {
	Buildkitd string
	Buildctl  string
	Lazyctl   string // of ours only
}

// Ours builds this repository's buildkitd and lazyctl, and BuildKit's buildctl. Go's own
// cache makes it quick when nothing changed.
func Ours(ctx context.Context) (Programs, error) {
	daemon, err := goBuild(ctx, "buildkitd", "./cmd/buildkitd")
	if err != nil {
		return Programs{}, err
	}
	ctl, err := goBuild(ctx, "buildctl", "github.com/moby/buildkit/cmd/buildctl")
	if err != nil {
		return Programs{}, err
	}
	tool, err := goBuild(ctx, "lazyctl", "./cmd/lazyctl")
	if err != nil {
		return Programs{}, err
	}
	return Programs{Buildkitd: daemon, Buildctl: ctl, Lazyctl: tool}, nil
}

// Stock builds BuildKit's own buildkitd and buildctl, once for each cache, from
// a copy of its module with the versions that its go.mod pins.
func Stock(ctx context.Context) (Programs, error) {
	cache, err := CacheDir()
	if err != nil {
		return Programs{}, err
	}
	bin := filepath.Join(cache, "stock", stockVersion, "bin")
	programs := Programs{Buildkitd: filepath.Join(bin, "buildkitd"), Buildctl: filepath.Join(bin, "buildctl")}
	complete := func() bool { return exists(programs.Buildkitd) && exists(programs.Buildctl) }
	if complete() {
		return programs, nil
	}
	err = locked(ctx, "stock", func() error {
		if complete() {
			return nil
		}
		return buildStock(ctx, bin)
	})
	return programs, err
}

func buildStock(ctx context.Context, bin string) error {
	root, err := RepoRoot()
	if err != nil {
		return err
	}
	const module = "github.com/moby/buildkit"
	Logf("building stock buildkitd and buildctl %s", stockVersion)
	if err := quietIn(ctx, root, nil, "go", "mod", "download", module); err != nil {
		return err
	}
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}} {{.Dir}}", module)
	list.Dir = root
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("find %s: %w", module, err)
	}
	version, dir, _ := strings.Cut(strings.TrimSpace(string(out)), " ")
	if version != stockVersion {
		return fmt.Errorf("go.mod requires %s %s, and the comparison is with %s", module, version, stockVersion)
	}
	source := filepath.Join(filepath.Dir(bin), "src")
	if err := os.RemoveAll(source); err != nil {
		return fmt.Errorf("clear an old copy of %s: %w", module, err)
	}
	defer os.RemoveAll(source)
	if err := copyWritable(source, dir); err != nil {
		return fmt.Errorf("copy %s: %w", module, err)
	}
	for _, name := range []string{"buildctl", "buildkitd"} {
		part := filepath.Join(bin, name+".part")
		err := quietIn(ctx, source, []string{"CGO_ENABLED=0"}, "go", "build", "-mod=mod", "-buildvcs=false",
			"-ldflags", "-X "+module+"/version.Version="+stockVersion, "-o", part, "./cmd/"+name)
		if err != nil {
			return err
		}
		if err := os.Rename(part, filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("place %s: %w", name, err)
		}
	}
	return nil
}

// copyWritable copies the files of a module, which are read-only in Go's cache.
func copyWritable(to, from string) error {
	return filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		target := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		return os.WriteFile(target, data, 0o644)
	})
}

// goBuild builds a package of this repository into the cache and returns the
// program's path.
func goBuild(ctx context.Context, name, pkg string) (string, error) {
	root, err := RepoRoot()
	if err != nil {
		return "", err
	}
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	// Checkouts that share a cache would run each other's programs.
	path := filepath.Join(cache, "bin", digest.FromString(root).Encoded()[:8], name)
	err = locked(ctx, "build-"+name, func() error {
		return quietIn(ctx, root, []string{"CGO_ENABLED=0"}, "go", "build", "-buildvcs=false", "-o", path, pkg)
	})
	if err != nil {
		return "", fmt.Errorf("build %s: %w", pkg, err)
	}
	return path, nil
}

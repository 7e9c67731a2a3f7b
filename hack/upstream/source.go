package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// buildkitModule is the module whose tests are run; its version is the one
// that our go.mod requires.
const buildkitModule = "github.com/moby/buildkit"

// module is what "go list -m -json" says of one module.
type module struct {
	Path, Version, Dir string
}

// findModule returns a module of our build list, downloading it if it is not
// in the module cache yet. repo is the directory of our go.mod.
func findModule(ctx context.Context, repo, path string) (module, error) {
	var m module
	if err := runQuiet(ctx, repo, nil, "go", "mod", "download", path); err != nil {
		return m, err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-json", path)
	cmd.Dir = repo
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return m, fmt.Errorf("go list -m %s: %w", path, err)
	}
	if err := json.Unmarshal(out, &m); err != nil {
		return m, fmt.Errorf("go list -m %s: %w", path, err)
	}
	if m.Dir == "" {
		return m, fmt.Errorf("module %s has no directory", path)
	}
	return m, nil
}

// writableCopy copies a module out of the (read-only) module cache. The copy
// is complete when its marker file is there; a partial one is made again.
func writableCopy(m module, dst string) error {
	marker := filepath.Join(dst, ".copied-"+m.Version)
	if _, err := os.Stat(marker); err == nil {
		return nil
	}
	if err := os.RemoveAll(dst); err != nil {
		return fmt.Errorf("remove partial copy: %w", err)
	}
	err := filepath.WalkDir(m.Dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(m.Dir, path)
		if err != nil {
			return err
		}
		return copyEntry(path, filepath.Join(dst, rel), d)
	})
	if err != nil {
		return fmt.Errorf("copy module %s: %w", m.Path, err)
	}
	return os.WriteFile(marker, nil, 0o644)
}

// copyEntry copies one file, link or directory, with the owner's write
// permission added.
func copyEntry(src, dst string, d fs.DirEntry) error {
	info, err := d.Info()
	if err != nil {
		return err
	}
	switch {
	case d.IsDir():
		return os.MkdirAll(dst, 0o755)
	case info.Mode()&fs.ModeSymlink != 0:
		target, err := os.Readlink(src)
		if err != nil {
			return err
		}
		return os.Symlink(target, dst)
	default:
		data, err := os.ReadFile(src)
		if err != nil {
			return err
		}
		return os.WriteFile(dst, data, info.Mode().Perm()|0o200)
	}
}

// runQuiet runs a command and shows its output only if it fails.
func runQuiet(ctx context.Context, dir string, env []string, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// RepoRoot is the directory of this repository's go.mod, from which programs
// are built. It is found from the working directory upwards, and from where
// this file was compiled otherwise.
func RepoRoot() (string, error) {
	starts := []string{}
	if wd, err := os.Getwd(); err == nil {
		starts = append(starts, wd)
	}
	if _, file, _, ok := runtime.Caller(0); ok && filepath.IsAbs(file) {
		starts = append(starts, filepath.Dir(file))
	}
	for _, dir := range starts {
		for {
			data, err := os.ReadFile(filepath.Join(dir, "go.mod"))
			if err == nil && strings.HasPrefix(string(data), "module github.com/lazykit/lazykit\n") {
				return dir, nil
			}
			parent := filepath.Dir(dir)
			if parent == dir {
				break
			}
			dir = parent
		}
	}
	return "", fmt.Errorf("no go.mod of this repository above %v", starts)
}

// CacheDir is where images, programs and the registry's contents are kept:
// $LAZYKIT_CACHE, or .cache in the repository. It exists on return.
func CacheDir() (string, error) {
	dir := os.Getenv("LAZYKIT_CACHE")
	if dir == "" {
		root, err := RepoRoot()
		if err != nil {
			return "", fmt.Errorf("find the cache directory: %w", err)
		}
		dir = filepath.Join(root, ".cache")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("find the cache directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the cache directory: %w", err)
	}
	return dir, nil
}

// locked runs f while this process alone, of all that share the cache, holds
// name's lock. The lock ends with the process, so a crash leaves none behind.
func locked(ctx context.Context, name string, f func() error) error {
	cache, err := CacheDir()
	if err != nil {
		return err
	}
	dir := filepath.Join(cache, "locks")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the lock directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, name), os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return fmt.Errorf("open lock %s: %w", name, err)
	}
	defer file.Close()
	for said := false; ; {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return f()
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			return fmt.Errorf("lock %s: %w", name, err)
		}
		if !said {
			Logf("waiting for another process that makes %s", name)
			said = true
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for lock %s: %w", name, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

var output sync.Mutex

// Logf reports progress on standard error, one line each, without its end. It may be
// called at any time.
func Logf(format string, args ...any) {
	output.Lock()
	defer output.Unlock()
	fmt.Fprintf(os.Stderr, "# "+format+"\n", args...)
}

// exists says whether path names something.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

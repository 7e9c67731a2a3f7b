package e2e

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/link"
)

// privileged skips the test where it can't run: daemons mount file systems and
// start containers. LAZYKIT_PRIVILEGED=1, which hack/test sets, makes that a
// failure.
func privileged(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		t.Fatal("needs root: it mounts file systems and starts containers")
	}
	t.Skip("needs root: it mounts file systems and starts containers")
}

// testContext ends a minute before the test binary's own deadline, so that
// daemons are stopped and their logs seen.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx := t.Context()
	if d, ok := t.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, d.Add(-time.Minute))
		t.Cleanup(cancel)
	}
	return ctx
}

func ours(t *testing.T) string {
	t.Helper()
	p, err := lab.Ours(testContext(t))
	require.NoError(t, err)
	return p.Buildkitd
}

func stock(t *testing.T) string {
	t.Helper()
	p, err := lab.Stock(testContext(t))
	require.NoError(t, err)
	return p.Buildkitd
}

// image makes the demo base in a format.
func image(t *testing.T, f lab.Format) *lab.Image {
	t.Helper()
	b, err := lab.FindBase("demo")
	require.NoError(t, err)
	img, err := lab.MakeImage(testContext(t), b, f)
	require.NoError(t, err)
	return img
}

func registry(t *testing.T) *lab.Registry {
	t.Helper()
	r, err := lab.StartRegistry(testContext(t), lab.RegistryOptions{})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	return r
}

// onLink pushes img and returns its name as seen through the counted link.
func onLink(t *testing.T, r *lab.Registry, img *lab.Image) string {
	t.Helper()
	_, err := lab.Push(testContext(t), r.Direct, img)
	require.NoError(t, err)
	return r.Link + "/" + img.Tag()
}

// daemon starts a buildkitd that is stopped at the end of the test, and fails
// the test when it does not stop well or leaves mounts.
func daemon(t *testing.T, opts lab.DaemonOptions) *lab.Daemon {
	t.Helper()
	d, err := lab.StartDaemon(testContext(t), opts)
	require.NoError(t, err)
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("stop: %v", err)
		}
		if t.Failed() {
			t.Logf("log of %s:\n%s", filepath.Base(opts.Program), d.LogTail(60))
		}
		if err := d.Remove(); err != nil {
			t.Errorf("remove: %v", err)
		}
	})
	return d
}

func build(t *testing.T, d *lab.Daemon, opts lab.BuildOptions) *lab.BuildResult {
	t.Helper()
	res, err := lab.Build(testContext(t), d.Addr, opts)
	require.NoError(t, err)
	return res
}

func stats(t *testing.T, r *lab.Registry) link.Stats {
	t.Helper()
	s, err := r.Stats(testContext(t))
	require.NoError(t, err)
	return s
}

func reset(t *testing.T, r *lab.Registry) {
	t.Helper()
	require.NoError(t, r.Reset(testContext(t)))
}

// stateDir is a state directory that outlives one daemon. Whatever a daemon
// left mounted in it is detached at the end.
func stateDir(t *testing.T) string {
	t.Helper()
	cache, err := lab.CacheDir()
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(cache, "run"), 0o755))
	dir, err := os.MkdirTemp(filepath.Join(cache, "run"), "state-")
	require.NoError(t, err)
	t.Cleanup(func() {
		for _, m := range mountsBelow(t, dir) {
			if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
				t.Errorf("unmount %s: %v", m, err)
			}
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	return dir
}

func mountsBelow(t *testing.T, dir string) []string {
	t.Helper()
	mounts, err := (&lab.Daemon{Root: dir}).Mounts()
	require.NoError(t, err)
	return mounts
}

// openTar opens one of an image's source layers.
func openTar(t *testing.T, path string) io.Reader {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	z, err := zstd.NewReader(f)
	require.NoError(t, err)
	t.Cleanup(z.Close)
	return z
}

// tarNames lists a tar with types, sizes and contents left out.
func tarNames(t *testing.T, r io.Reader) []string {
	t.Helper()
	var names []string
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return names
		}
		require.NoError(t, err)
		names = append(names, fmt.Sprintf("%c %s", h.Typeflag, strings.TrimPrefix(h.Name, "./")))
	}
}

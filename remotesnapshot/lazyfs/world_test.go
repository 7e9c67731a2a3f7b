package lazyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse/fusetest"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a file system with the registries that it may ask, by the host in an
// image's reference.
type world struct {
	*FS
	t    *testing.T
	opts Options
}

func hostsOf(regs ...*blobtest.Registry) func(string) blob.Hosts {
	return func(reference string) blob.Hosts {
		for _, r := range regs {
			if len(reference) > len(r.Host()) && reference[:len(r.Host())] == r.Host() {
				return r.Hosts()
			}
		}
		return nil
	}
}

// start needs root and FUSE. opts lack what is derived here.
func start(t *testing.T, opts Options, regs ...*blobtest.Registry) *world {
	t.Helper()
	fusetest.RequireFUSE(t)
	if opts.Root == "" {
		opts.Root = filepath.Join(t.TempDir(), "lazy")
	}
	opts.MountRoot = filepath.Join(t.TempDir(), "m")
	if opts.Hosts == nil {
		opts.Hosts = hostsOf(regs...)
	}
	fs, err := New(t.Context(), opts)
	require.NoError(t, err)
	w := &world{fs, t, opts}
	t.Cleanup(func() { require.NoError(t, fs.Close()) })
	return w
}

// restart ends the file system and starts another one on the same directories.
func (w *world) restart() *world {
	w.t.Helper()
	require.NoError(w.t, w.Close())
	opts := w.opts
	return start(w.t, opts)
}

// resolved resolves a layer, opens it and returns its directory.
func (w *world) resolved(src remotesnapshot.Source) (dir string, l remotesnapshot.Layer) {
	w.t.Helper()
	require.NoError(w.t, w.Resolve(w.t.Context(), src)[0])
	return w.open(src)
}

// open opens a layer that was resolved before and returns its directory.
func (w *world) open(src remotesnapshot.Source) (dir string, l remotesnapshot.Layer) {
	w.t.Helper()
	l, err := w.Open(src, false)
	require.NoError(w.t, err)
	w.t.Cleanup(func() { require.NoError(w.t, l.Close()) })
	dir, err = l.Dir(0, remotesnapshot.FastXattrs)
	require.NoError(w.t, err)
	return dir, l
}

// push makes a layer available in a registry.
func push(reg *blobtest.Registry, image string, l estargztest.Layer) remotesnapshot.Source {
	reg.AddBlob(l.Blob)
	return remotesnapshot.Source{Reference: reg.Reference(image), Digest: digest.FromBytes(l.Blob), Annotations: l.Annotations}
}

// layerOf has files of 100,000 bytes that do not compress, and a small one.
func layerOf(t *testing.T, seed uint64, names ...string) estargztest.Layer {
	entries := []estargztest.Entry{estargztest.Dir("d"), estargztest.File("d/small", []byte("a few bytes"))}
	for i, name := range names {
		entries = append(entries, estargztest.File(name, contents(seed, i)))
	}
	// What comes last is fetched with the TOC.
	entries = append(entries, estargztest.File("zz-padding", estargztest.Bytes(seed+99, 400_000)))
	return estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, Level: 1}, entries...)
}

func contents(seed uint64, i int) []byte { return estargztest.Bytes(seed+uint64(i), 100_000) }

// varied is a layer with an entry of each kind, and files of many sizes.
func varied(t *testing.T, opts estargztest.Options) estargztest.Layer {
	entries := []fusetest.Entry{
		fusetest.Dir("etc", 0o755), fusetest.File("etc/shadow", 0o600, "secret").Owned(0, 42),
		fusetest.Dir("bin", 0o755), fusetest.File("bin/su", 0o4755, "#!"), fusetest.Link("bin/hard", "bin/su"), fusetest.Symlink("bin/sh", "su"),
		fusetest.File("bin/ping", 0o755, "ping").Xattr("security.capability", "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		fusetest.Dir("dev", 0o755), fusetest.Device("dev/null", 'c', 1, 3), fusetest.Device("dev/sda", 'b', 8, 0), fusetest.Fifo("dev/fifo"),
		fusetest.Dir("tmp", 0o1777).Owned(7, 8), fusetest.Dir("opaque", 0o755), fusetest.Opaque("opaque"), fusetest.Whiteout("etc/motd"),
		fusetest.Dir("data", 0o755),
	}
	for i, n := range []int{0, 1, 4095, 4096, 4097, 50_000, 131_072, 300_001, 1_000_000} {
		body := estargztest.Bytes(uint64(i), n)
		if i%2 == 0 {
			body = bytes.Repeat([]byte("compresses well "), n/16+1)[:n]
		}
		entries = append(entries, fusetest.File(fmt.Sprintf("data/%d", i), 0o644, string(body)))
	}
	entries = append(entries, fusetest.File("data/zeros", 0o644, string(make([]byte, 200_000))))
	if opts.ChunkSize == 0 {
		opts.ChunkSize = 64 << 10
	}
	opts.Level = 1
	return estargztest.FromTar(t, bytes.NewReader(fusetest.Tar(t, entries...)), opts)
}

// check reads a file whose contents are known.
func check(t *testing.T, dir, name string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "%s: %d bytes, want %d", name, len(got), len(want))
}

// eventually waits for a condition without guessing how long it takes.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 20*time.Second, time.Millisecond, what)
}

// impatient gives up soon on a registry that is away.
func impatient() Options {
	return Options{Blob: blob.Options{
		GiveUp: 500 * time.Millisecond, BackoffMin: 10 * time.Millisecond, BackoffMax: 50 * time.Millisecond,
		HeaderTimeout: time.Second, StallTimeout: time.Second,
	}}
}

// errGone is why the callers of withCancel leave.
var errGone = errors.New("the caller has gone")

func withCancel(t *testing.T) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(t.Context())
	return ctx, func() { cancel(errGone) }
}

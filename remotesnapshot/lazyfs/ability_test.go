package lazyfs

import (
	"bytes"
	"context"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// unlazied makes src local and checks the file.
func (w *world) unlazied(src remotesnapshot.Source, want []byte) (path string, release func()) {
	w.t.Helper()
	path, release, err := w.Unlazy(w.t.Context(), src)
	require.NoError(w.t, err)
	got, err := os.ReadFile(path)
	require.NoError(w.t, err)
	require.True(w.t, bytes.Equal(want, got))
	return path, release
}

func TestUnlazyOfALayerThatIsNotOpen(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	l := layerOf(t, 1, "a", "b", "c", "d", "e", "f")
	src := push(reg, "app:latest", l)
	dir, _ := w.resolved(src)
	check(t, dir, "b", contents(1, 1))
	again := w.restart()
	reg.Reset()
	had := again.Info(src.Digest)
	require.Positive(t, had.Fetched)
	require.Less(t, had.Fetched, had.Size)
	_, release := again.unlazied(src, l.Blob)
	require.Equal(t, had.Size-had.Fetched, reg.Bytes(), "what was missing, and nothing else")
	require.Empty(t, again.Report().Layers, "it needs no TOC")
	require.True(t, again.Info(src.Digest).Local)
	release()
	release()

	reg.Stop()
	_, release = again.unlazied(src, l.Blob)
	release()
	dir, _ = again.open(src)
	check(t, dir, "a", contents(1, 0))
}

func TestUnlazyOfAnOpenLayer(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	l := layerOf(t, 1, "a", "b")
	src := push(reg, "app:latest", l)
	dir, _ := w.resolved(src)
	check(t, dir, "a", contents(1, 0))
	_, release := w.unlazied(remotesnapshot.Source{Digest: src.Digest}, l.Blob)
	defer release()
	require.Equal(t, int64(len(l.Blob)), reg.Bytes(), "each byte once; the open layer knows where")
	reg.Stop()
	check(t, dir, "b", contents(1, 1))
}

func TestUnlazyOfAnOrdinaryLayer(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	data := estargztest.Bytes(1, 500_000)
	src := remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: reg.AddBlob(data)}
	_, release := w.unlazied(src, data)
	release()
}

func TestUnlazyCancelledByOneOfTwo(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{Blob: blob.Options{StallTimeout: 500 * time.Millisecond}}, reg)
	l := layerOf(t, 1, "a", "b")
	src := push(reg, "app:latest", l)
	stall := reg.Fault(blobtest.Fault{Stall: true, After: 1000, Times: 1})
	ctx, leave := withCancel(t)
	first, second := make(chan error, 1), make(chan error, 1)
	go func() {
		_, _, err := w.Unlazy(ctx, src)
		first <- err
	}()
	eventually(t, "the first waits", func() bool { return stall.Hits() > 0 })
	go func() {
		_, release, err := w.Unlazy(t.Context(), src)
		if err == nil {
			release()
		}
		second <- err
	}()
	time.Sleep(20 * time.Millisecond) // mostly the second has joined; both orders are right
	leave()
	require.ErrorIs(t, <-first, errGone)
	require.NoError(t, <-second)
	require.True(t, w.Info(src.Digest).Local)
}

func TestUnlazyEndsWithItsLastCaller(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a", "b"))
	stall := reg.Fault(blobtest.Fault{Stall: true, After: 1000})
	ctx, leave := withCancel(t)
	done := make(chan error, 1)
	go func() {
		_, _, err := w.Unlazy(ctx, src)
		done <- err
	}()
	eventually(t, "it waits", func() bool { return stall.Hits() > 0 })
	leave()
	err := <-done
	require.ErrorIs(t, err, errGone)
	require.False(t, cerrdefs.IsUnavailable(err), "the caller's error is no class")
	eventually(t, "nothing is held", func() bool { return w.Remove(src.Digest) == nil })
}

func TestUnlaziedFileStaysWhileHeld(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{KeepBytes: -1}, reg)
	l := layerOf(t, 1, "a")
	src := push(reg, "app:latest", l)
	path, release := w.unlazied(src, l.Blob)
	_, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.ErrorIs(t, w.Remove(src.Digest), cerrdefs.ErrFailedPrecondition)
	require.FileExists(t, path)
	release()
	freed, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, freed, int64(len(l.Blob)))
	require.NoFileExists(t, path)
}

func TestErrorsNameLayerAndImageAndKeepTheirClass(t *testing.T) {
	all := func(blobtest.Request) bool { return true }
	for name, c := range map[string]struct {
		behave func(reg *blobtest.Registry, l estargztest.Layer)
		is     func(error) bool
	}{
		"no such blob": {func(reg *blobtest.Registry, l estargztest.Layer) { reg.RemoveBlob(digest.FromBytes(l.Blob)) }, cerrdefs.IsNotFound},
		"forbidden": {func(reg *blobtest.Registry, _ estargztest.Layer) {
			reg.Fault(blobtest.Fault{Match: all, Status: http.StatusForbidden})
		}, cerrdefs.IsPermissionDenied},
		"no login": {func(reg *blobtest.Registry, _ estargztest.Layer) {
			reg.RequireToken("user", "secret", time.Hour)
		}, cerrdefs.IsUnauthorized},
		"broken": {func(reg *blobtest.Registry, _ estargztest.Layer) {
			reg.Fault(blobtest.Fault{Match: all, Status: http.StatusInternalServerError})
		}, cerrdefs.IsUnavailable},
		"away": {func(reg *blobtest.Registry, _ estargztest.Layer) { reg.Stop() }, cerrdefs.IsUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			reg := blobtest.New(t)
			opts := impatient()
			opts.Hosts = func(string) blob.Hosts {
				return func(context.Context) ([]docker.RegistryHost, error) { return reg.AnonymousHosts()("") }
			}
			w := start(t, opts)
			l := layerOf(t, 1, "a")
			src := push(reg, "app:latest", l)
			c.behave(reg, l)
			_, release, unlazy := w.Unlazy(t.Context(), src)
			require.Nil(t, release)
			for call, err := range map[string]error{
				"resolve":   w.Resolve(t.Context(), src)[0],
				"unlazy":    unlazy,
				"authorize": w.Authorize(t.Context(), src, nil),
			} {
				require.Error(t, err)
				require.True(t, c.is(err), "%s: %v", call, err)
				require.ErrorContains(t, err, call+" layer "+src.Digest.String()+" of "+src.Reference)
				temporary := call == "resolve" || name == "broken" || name == "away"
				require.Equal(t, temporary, cerrdefs.IsUnavailable(err), "%s: %v", call, err)
			}
		})
	}

	t.Run("other bytes", func(t *testing.T) {
		reg := blobtest.New(t)
		w := start(t, impatient(), reg)
		src := remotesnapshot.Source{Reference: reg.Reference("liar:latest"), Digest: digest.FromString("x")}
		reg.AddBlobAs(src.Digest, estargztest.Bytes(1, 1000))
		_, _, err := w.Unlazy(t.Context(), src)
		require.True(t, cerrdefs.IsDataLoss(err), "%v", err)
		require.False(t, cerrdefs.IsUnavailable(err), "%v", err)
	})
	t.Run("no digest", func(t *testing.T) {
		w := start(t, impatient())
		_, _, err := w.Unlazy(t.Context(), remotesnapshot.Source{Digest: "x"})
		require.True(t, cerrdefs.IsInvalidArgument(err), "%v", err)
		require.True(t, cerrdefs.IsInvalidArgument(w.Authorize(t.Context(), remotesnapshot.Source{}, nil)))
		require.Zero(t, w.Info("x").Size)
	})
}

func TestBusyRegistryIsAskedAgainForRights(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	blobs := func(q blobtest.Request) bool { return q.Blob != "" }
	for _, fault := range []blobtest.Fault{{Status: http.StatusTooManyRequests}, {Status: http.StatusServiceUnavailable}, {Hangup: true}} {
		fault.Match, fault.Times = blobs, 4 // net/http itself asks twice on a connection that is closed
		busy := reg.Fault(fault)
		require.NoError(t, w.Authorize(t.Context(), src, nil))
		require.Equal(t, fault.Times, busy.Hits())
	}
	require.Zero(t, reg.Bytes(), "no byte of the layer is asked for")
	refused := reg.Fault(blobtest.Fault{Match: blobs, Status: http.StatusForbidden})
	require.True(t, cerrdefs.IsPermissionDenied(w.Authorize(t.Context(), src, nil)))
	require.Equal(t, 1, refused.Hits(), "an answer is an answer")
}

// oneSession lets only the session "good" read, and remembers nothing.
type oneSession struct{ nobody }

func (oneSession) Prove(ctx context.Context, _ string, s func() []string, check func(context.Context, string) error) (err error) {
	for _, id := range s() {
		if err = check(ctx, id); err == nil {
			return nil
		}
	}
	return err
}

func TestAuthorizeAsksAsOneSession(t *testing.T) {
	reg := blobtest.New(t)
	reg.RequireToken("user", "secret", time.Hour)
	w := start(t, Options{
		Hosts:    hostsOf(reg),
		Sessions: oneSession{},
		HostsOf: func(_, session string) blob.Hosts {
			if session == "good" {
				return reg.Hosts()
			}
			return func(context.Context) ([]docker.RegistryHost, error) { return reg.AnonymousHosts()("") }
		},
	})
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	w.resolved(src) // Hosts has credentials, and a token
	of := func(ids ...string) remotesnapshot.Sessions { return func() []string { return ids } }
	err := w.Authorize(t.Context(), src, of("bad"))
	require.True(t, cerrdefs.IsUnauthorized(err), "%v", err)
	require.NoError(t, w.Authorize(t.Context(), src, of("bad", "good")))
	w.Hold(src, nil)()
	w.Vouch(src, nil)
}

func TestUsageAndCollectOfALinkedBlob(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{TTL: -1, KeepBytes: -1}, reg)
	l := layerOf(t, 1, "a")
	src := push(reg, "app:latest", l)
	usage := func() int64 {
		n, err := w.Usage(src.Digest)
		require.NoError(t, err)
		return n
	}
	path, release := w.unlazied(src, l.Blob)
	require.GreaterOrEqual(t, usage(), int64(len(l.Blob)))
	content := filepath.Join(t.TempDir(), "content")
	require.NoError(t, os.Link(path, content))
	require.Less(t, usage(), int64(64<<10), "the other store counts it")
	release()
	_, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.FileExists(t, path, "to free it would free nothing")
	require.NoError(t, os.Remove(content))
	freed, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.GreaterOrEqual(t, freed, int64(len(l.Blob)))
	require.Zero(t, usage())
}

func TestUsageCountsTheTOC(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	w.resolved(src)
	blobs, err := w.blobs.Usage(src.Digest)
	require.NoError(t, err)
	all, err := w.Usage(src.Digest)
	require.NoError(t, err)
	require.Greater(t, all, blobs)
}

func TestInfoOfALayerThatIsNotOpen(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, impatient(), reg)
	l := layerOf(t, 1, "a")
	src := push(reg, "app:latest", l)
	require.Zero(t, w.Info(src.Digest))
	gone := reg.Fault(blobtest.Fault{Status: http.StatusNotFound})
	require.Error(t, w.Resolve(t.Context(), src)[0])
	require.Contains(t, w.Info(src.Digest).LastError, "404")
	gone.Clear()
	dir, _ := w.resolved(src)
	check(t, dir, "a", contents(1, 0))
	open := w.Info(src.Digest)
	require.True(t, open.Open)
	require.Empty(t, open.LastError)
	require.EqualValues(t, len(l.Blob), open.Size)
	reg.Stop()
	again := w.restart()
	require.Equal(t, remotesnapshot.LayerInfo{Size: open.Size, Fetched: open.Fetched, Local: open.Local}, again.Info(src.Digest))
	unknown := digest.FromString("unknown")
	require.Zero(t, again.Info(unknown))
	all, err := again.blobs.Digests()
	require.NoError(t, err)
	require.NotContains(t, all, unknown)
}

// TestAnnotationsOfADescriptorMakeZstdChunkedLazy, at first and after a restart,
// when only the labels of the snapshot are left.
func TestAnnotationsOfADescriptorMakeZstdChunkedLazy(t *testing.T) {
	for name, spelling := range map[string][2]string{
		"github": {remotesnapshot.AnnotationZstdChecksum, remotesnapshot.AnnotationZstdPosition},
		"legacy": {remotesnapshot.AnnotationZstdChecksumLegacy, remotesnapshot.AnnotationZstdPositionLegacy},
	} {
		t.Run(name, func(t *testing.T) {
			reg := blobtest.New(t)
			w := start(t, Options{}, reg)
			files := []estargztest.Entry{estargztest.File("a", contents(1, 0)), estargztest.File("b", contents(1, 1)), estargztest.File("padding", estargztest.Bytes(9, 3_000_000))}
			l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatZstdChunked, Storage: true, ChunkSize: 64 << 10, Level: 1}, files...)
			descriptor := map[string]string{"org.example.other": "x", remotesnapshot.AnnotationTOCDigest: ""}
			for k, v := range l.Annotations {
				for i, known := range [][2]string{
					{remotesnapshot.AnnotationZstdChecksum, remotesnapshot.AnnotationZstdChecksumLegacy},
					{remotesnapshot.AnnotationZstdPosition, remotesnapshot.AnnotationZstdPositionLegacy},
				} {
					if k == known[0] || k == known[1] {
						descriptor[spelling[i]] = v
					}
				}
			}
			src := push(reg, "app:latest", l)
			src.Annotations = remotesnapshot.KnownAnnotations(descriptor)
			require.Len(t, src.Annotations, 2)
			lazy := func(w *world, src remotesnapshot.Source) {
				t.Helper()
				reg.Reset()
				dir, _ := w.resolved(src)
				check(t, dir, "b", contents(1, 1))
				require.Less(t, reg.Bytes(), int64(len(l.Blob)/2), "in ranges")
				require.False(t, w.Info(src.Digest).Local)
			}
			lazy(w, src)

			restored, ok, err := remotesnapshot.ParseLabels(src.Labels())
			require.NoError(t, err)
			require.True(t, ok)
			require.Equal(t, src, restored)
			again := w.restart()
			dir, _ := again.open(restored) // from disk
			check(t, dir, "b", contents(1, 1))

			require.NoError(t, again.Close())
			require.NoError(t, os.RemoveAll(w.opts.Root))
			lazy(start(t, w.opts, reg), restored)
		})
	}
}

// TestAllLayersOfAnImageAtOnce: each is asked for once, whatever the labels say of
// neighbours, and none waits for another.
func TestAllLayersOfAnImageAtOnce(t *testing.T) {
	for _, neighbours := range []bool{false, true} {
		reg := blobtest.New(t)
		w := start(t, Options{}, reg)
		var srcs []remotesnapshot.Source
		for i := range 8 {
			srcs = append(srcs, push(reg, "app:latest", layerOf(t, uint64(i)*10, "a")))
		}
		for i := range srcs {
			for _, above := range srcs[i:] {
				if neighbours {
					srcs[i].Neighbours = append(srcs[i].Neighbours, above.Digest)
				}
			}
		}
		reg.SetLatency(300 * time.Millisecond)
		begin := time.Now()
		for _, err := range w.Resolve(t.Context(), srcs...) {
			require.NoError(t, err)
		}
		require.Less(t, time.Since(begin), 1500*time.Millisecond)
		require.Equal(t, len(srcs), reg.Requests())
	}
}

package lazyfs

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/fuse/fusetest"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// kinds are the ways in which a layer can be lazy.
var kinds = map[string]estargztest.Options{
	"estargz":                      {Format: estargz.FormatEStargz},
	"shared members":               {Format: estargz.FormatEStargz, ChunkSize: 16 << 10, MinChunkSize: 40_000},
	"legacy stargz":                {Format: estargz.FormatStargz},
	"zstd-chunked":                 {Format: estargz.FormatZstdChunked},
	"zstd-chunked by storage":      {Format: estargz.FormatZstdChunked, Storage: true},
	"estargz with an external TOC": {Format: estargz.FormatEStargzExtern},
}

// pushExternal makes the image available that holds the TOC of l.
func pushExternal(reg *blobtest.Registry, repo, tag string, l estargztest.Layer) {
	reg.AddImage(repo, tag+"-esgztoc", ocispecs.Image{}, ocispecs.Descriptor{
		MediaType: ocispecs.MediaTypeImageLayerGzip, Digest: reg.AddBlob(l.TOC), Size: int64(len(l.TOC)),
		Annotations: map[string]string{"containerd.io/snapshot/stargz/layer.digest": digest.FromBytes(l.Blob).String()},
	})
}

func TestTreeEqualsTheTar(t *testing.T) {
	for name, opts := range kinds {
		t.Run(name, func(t *testing.T) {
			reg := blobtest.New(t)
			w := start(t, Options{}, reg)
			l := varied(t, opts)
			src := push(reg, "varied:latest", l)
			if l.TOC != nil {
				pushExternal(reg, "varied", "latest", l)
			}
			dir, h := w.resolved(src)
			fusetest.CompareTree(t, dir, bytes.NewReader(l.Tar), fusetest.CompareOptions{})
			exact, err := h.Dir(0, remotesnapshot.ExactXattrs)
			require.NoError(t, err)
			fusetest.CompareTree(t, fusetest.Overlay(t, exact), bytes.NewReader(l.Tar), fusetest.CompareOptions{Merged: true})
		})
	}
}

func TestRestartNeedsNoNetwork(t *testing.T) {
	for name, opts := range kinds {
		t.Run(name, func(t *testing.T) {
			reg := blobtest.New(t)
			w := start(t, Options{}, reg)
			l := varied(t, opts)
			src := push(reg, "varied:latest", l)
			if l.TOC != nil {
				pushExternal(reg, "varied", "latest", l)
			}
			dir, _ := w.resolved(src)
			fusetest.CompareTree(t, dir, bytes.NewReader(l.Tar), fusetest.CompareOptions{})
			reg.Stop()
			again := w.restart()
			dir, _ = again.open(src)
			fusetest.CompareTree(t, dir, bytes.NewReader(l.Tar), fusetest.CompareOptions{})
			require.Zero(t, again.Report().Fetched.TotalRequests())
			require.NoError(t, again.Resolve(t.Context(), src)[0], "nor does Resolve")
		})
	}
}

func TestFilesComeWhenTheyAreRead(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a", "b", "c"))
	dir, _ := w.resolved(src)
	before := reg.Bytes()
	require.Equal(t, 1, reg.Requests(), "footer and TOC")
	check(t, dir, "b", contents(1, 1))
	require.Less(t, reg.Bytes()-before, int64(250_000), "one file and some neighbours")
	info := w.Info(src.Digest)
	require.True(t, info.Open)
	require.Less(t, info.Fetched, info.Size)
	require.NotZero(t, info.LastRead)
	require.NoError(t, w.Check(t.Context(), src.Digest))
}

func TestUnresolvedLayer(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	_, err := w.Open(src, false)
	require.ErrorIs(t, err, cerrdefs.ErrUnavailable)
	require.Empty(t, reg.Log(), "Open asks nobody")

	l, err := w.Open(src, true)
	require.NoError(t, err)
	defer l.Close()
	_, err = l.Dir(0, remotesnapshot.FastXattrs)
	require.ErrorIs(t, err, cerrdefs.ErrUnavailable)
	require.Empty(t, reg.Log())
	require.NoError(t, l.Resolve(t.Context()))
	dir, err := l.Dir(0, remotesnapshot.FastXattrs)
	require.NoError(t, err)
	check(t, dir, "a", contents(1, 0))
}

func TestRestoredLayerCanBeResolvedLater(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, impatient(), reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	l, err := w.Open(src, true)
	require.NoError(t, err)
	defer l.Close()
	away := reg.Fault(blobtest.Fault{Status: http.StatusServiceUnavailable})
	err = l.Resolve(t.Context())
	require.ErrorIs(t, err, cerrdefs.ErrUnavailable)
	require.False(t, IsFinal(err))
	require.Len(t, w.Report().NotLazy, 1)
	away.Clear()
	require.NoError(t, l.Resolve(t.Context()))
	require.Empty(t, w.Report().NotLazy)
}

func TestDeadRegistryStopsNobodyElse(t *testing.T) {
	good, dead := blobtest.New(t), blobtest.New(t)
	w := start(t, Options{}, good, dead)
	ok, stuck := push(good, "good:latest", layerOf(t, 1, "a", "b")), push(dead, "dead:latest", layerOf(t, 50, "a", "b"))
	okDir, _ := w.resolved(ok)
	stuckDir, _ := w.resolved(stuck)
	fault := dead.Fault(blobtest.Fault{Stall: true})

	const readers = 50
	errs := make(chan error, readers)
	for i := range readers {
		go func() {
			f, err := os.Open(filepath.Join(stuckDir, []string{"a", "b"}[i%2]))
			if err == nil {
				_, err = f.ReadAt(make([]byte, 100), int64(i/2)*4096)
				f.Close()
			}
			errs <- err
		}()
	}
	eventually(t, "readers wait", func() bool { return fault.Hits() > 0 })
	begin := time.Now()
	check(t, okDir, "a", contents(1, 0))
	check(t, okDir, "b", contents(1, 1))
	require.Less(t, time.Since(begin), 4*time.Second)
	select {
	case err := <-errs:
		t.Fatalf("a reader of the dead registry ended: %v", err)
	default:
	}
	begin = time.Now()
	require.NoError(t, w.Close())
	require.Less(t, time.Since(begin), 10*time.Second)
	for range readers {
		require.Error(t, <-errs)
	}
	left, err := os.ReadFile("/proc/self/mountinfo")
	require.NoError(t, err)
	require.NotContains(t, string(left), w.opts.MountRoot)
}

func TestReadIsServedFromAnotherImageOfTheLayer(t *testing.T) {
	first, second := blobtest.New(t), blobtest.New(t)
	w := start(t, Options{}, first, second)
	l := layerOf(t, 1, "a", "b")
	dir, _ := w.resolved(push(first, "one:latest", l))
	require.NoError(t, w.Resolve(t.Context(), push(second, "two:latest", l))[0])
	first.Stop()
	check(t, dir, "b", contents(1, 1))
	require.Positive(t, second.Requests())
}

func TestSameLayerTwiceInAChain(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, l := w.resolved(src)
	again, err := l.Dir(1, remotesnapshot.FastXattrs)
	require.NoError(t, err)
	require.NotEqual(t, dir, again)
	check(t, fusetest.Overlay(t, dir, again), "a", contents(1, 0))
	_, err = l.Dir(-1, remotesnapshot.FastXattrs)
	require.Error(t, err)
	_, err = l.Dir(maxCopies, remotesnapshot.FastXattrs)
	require.Error(t, err)
}

func TestFilesOfTwoLayersNeverShareAnInode(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	seen := map[[2]uint64]string{}
	for i := range 3 {
		dir, _ := w.resolved(push(reg, "app:latest", layerOf(t, uint64(i)*10, "a", "b")))
		for _, name := range []string{"a", "b", "d", "d/small"} {
			var st unix.Stat_t
			require.NoError(t, unix.Lstat(filepath.Join(dir, name), &st))
			id := [2]uint64{uint64(st.Dev), st.Ino}
			require.Empty(t, seen[id])
			seen[id] = filepath.Join(dir, name)
		}
	}
}

func TestImagesShareALayer(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	l := layerOf(t, 1, "a")
	one, two := push(reg, "one:latest", l), push(reg, "two:latest", l)
	srcs := []remotesnapshot.Source{}
	for range 10 {
		srcs = append(srcs, one, two)
	}
	for _, err := range w.Resolve(t.Context(), srcs...) {
		require.NoError(t, err)
	}
	require.Equal(t, 1, reg.Requests())
	a, _ := w.open(one)
	b, _ := w.open(two)
	require.Equal(t, a, b)
	r := w.Report()
	require.Len(t, r.Layers, 1)
	require.Equal(t, 2, r.Layers[0].Holds)
}

func TestLayersAreResolvedInParallel(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	var srcs []remotesnapshot.Source
	for i := range 6 {
		srcs = append(srcs, push(reg, "app:latest", layerOf(t, uint64(i)*10, "a")))
	}
	reg.SetLatency(300 * time.Millisecond)
	begin := time.Now()
	for _, err := range w.Resolve(t.Context(), srcs...) {
		require.NoError(t, err)
	}
	require.Less(t, time.Since(begin), 1500*time.Millisecond)
}

func TestNeighboursAreFetchedAhead(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{KeepBytes: -1}, reg)
	first, second := push(reg, "app:latest", layerOf(t, 1, "a")), push(reg, "app:latest", layerOf(t, 20, "a"))
	first.Neighbours = []digest.Digest{first.Digest, second.Digest, "not a digest"}
	require.NoError(t, w.Resolve(t.Context(), first)[0])
	eventually(t, "the neighbour's TOC is here", func() bool {
		b, err := w.openBlob(second.Digest, second.Reference)
		require.NoError(t, err)
		defer b.Close()
		return b.Fetched() > 0 && b.Present(b.Size()-1000, 1000)
	})
	eventually(t, "it was all", func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return !w.mu.ahead[second.Digest].IsZero()
	})
	reg.Stop()
	_, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.NoError(t, w.Resolve(t.Context(), second)[0], "a collection between the two spares it")

	t.Run("not those of ordinary images", func(t *testing.T) {
		reg := blobtest.New(t)
		w := start(t, Options{}, reg)
		plain := remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: reg.AddBlob(estargztest.Bytes(1, 500_000))}
		plain.Neighbours = []digest.Digest{reg.AddBlob(estargztest.Bytes(2, 500_000))}
		require.True(t, IsFinal(w.Resolve(t.Context(), plain)[0]))
		require.NoError(t, w.Close())
		require.Equal(t, 1, reg.Requests())
	})
}

func TestWhyALayerIsNotLazy(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, impatient(), reg)
	good := layerOf(t, 1, "a")
	liar := push(reg, "liar:latest", good)
	liar.Annotations = map[string]string{estargztest.AnnotationTOCDigest: digest.FromString("another TOC").String()}
	damaged := push(reg, "damaged:latest", layerOf(t, 10, "a"))
	reg.Fault(blobtest.Fault{Match: func(r blobtest.Request) bool { return r.Blob == damaged.Digest }, Flip: true, At: int64(len(good.Blob)) - 300})
	broken := push(reg, "broken:latest", layerOf(t, 20, "a"))
	reg.Fault(blobtest.Fault{Match: func(r blobtest.Request) bool { return r.Blob == broken.Digest }, Status: http.StatusBadGateway})
	for name, c := range map[string]struct {
		src   remotesnapshot.Source
		final bool
	}{
		"ordinary layer":        {remotesnapshot.Source{Reference: reg.Reference("x:latest"), Digest: reg.AddBlob(estargztest.Bytes(1, 1000))}, true},
		"another TOC digest":    {liar, true},
		"damaged on the way":    {damaged, true},
		"registry is broken":    {broken, false},
		"blob is not there":     {remotesnapshot.Source{Reference: reg.Reference("x:latest"), Digest: digest.FromString("x")}, false},
		"annotations are wrong": {remotesnapshot.Source{Reference: reg.Reference("x:latest"), Digest: digest.FromString("y"), Annotations: map[string]string{estargztest.AnnotationTOCDigest: "sha256:no"}}, true},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.Resolve(t.Context(), c.src)[0]
			require.Error(t, err)
			require.Equal(t, c.final, IsFinal(err), err)
			require.Equal(t, !c.final, cerrdefs.IsUnavailable(err), err)
			require.ErrorContains(t, err, c.src.Digest.String())
			reasons := w.Report().NotLazy
			require.Equal(t, c.src.Digest, reasons[0].Digest)
			require.Equal(t, c.final, reasons[0].Final)
			_, err = w.Open(c.src, false)
			require.Error(t, err)
		})
	}
	require.NoError(t, w.Resolve(t.Context(), push(reg, "good:latest", good))[0])
}

func TestExternalTOCThatIsMissing(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, impatient(), reg)
	l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargzExtern}, estargztest.File("a", []byte("x")))
	src := push(reg, "app:latest", l)
	require.True(t, IsFinal(w.Resolve(t.Context(), src)[0]), "no image of TOCs")
	other := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargzExtern}, estargztest.File("b", []byte("x")))
	pushExternal(reg, "app", "latest", other)
	require.True(t, IsFinal(w.Resolve(t.Context(), src)[0]), "its TOC is not among them")
	src.Reference = reg.Reference("app@" + src.Digest.String())
	require.True(t, IsFinal(w.Resolve(t.Context(), src)[0]), "a reference without a tag")
}

func TestExternalReference(t *testing.T) {
	for ref, want := range map[string]string{
		"r.io/a/b:1": "r.io/a/b:1-esgztoc",
		"r.io/a/b:1@" + digest.FromString("x").String(): "r.io/a/b:1-esgztoc",
		"r.io:5000/a:latest":                            "r.io:5000/a:latest-esgztoc",
		"r.io/a/b@" + digest.FromString("x").String():   "",
		"r.io/a/b":                "",
		"https://not a reference": "",
	} {
		got, err := externalReference(ref)
		require.Equal(t, want, got, ref)
		require.Equal(t, want == "", err != nil, ref)
	}
}

func TestResolveLeavesWithItsCaller(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, impatient(), reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	stall := reg.Fault(blobtest.Fault{Stall: true})
	ctx, cancel := withCancel(t)
	done := make(chan error, 1)
	go func() { done <- w.Resolve(ctx, src)[0] }()
	eventually(t, "asked", func() bool { return stall.Hits() > 0 })
	cancel()
	require.ErrorIs(t, <-done, errGone)
	stall.Clear()
	require.NoError(t, w.Resolve(t.Context(), src)[0], "the next one starts anew")
}

func TestLayerIsClosedAfterItsTTL(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{TTL: -1}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	require.NoError(t, w.Resolve(t.Context(), src)[0])
	eventually(t, "closed after Resolve", func() bool { return len(w.Report().Layers) == 0 })

	l, err := w.Open(src, false) // from disk
	require.NoError(t, err)
	dir, err := l.Dir(0, remotesnapshot.FastXattrs)
	require.NoError(t, err)
	check(t, dir, "a", contents(1, 0))
	require.ErrorIs(t, w.Remove(src.Digest), cerrdefs.ErrFailedPrecondition)
	require.NoError(t, l.Close())
	require.NoError(t, l.Close(), "twice is once")
	eventually(t, "closed", func() bool { return len(w.Report().Layers) == 0 })
	eventually(t, "directory is gone", func() bool {
		_, err := os.ReadFile(filepath.Join(dir, "a"))
		return errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOENT)
	})
	eventually(t, "blob is free", func() bool { return w.Remove(src.Digest) == nil })
	reg.Reset()
	require.NoError(t, w.Resolve(t.Context(), src)[0])
	l, err = w.Open(src, false)
	require.NoError(t, err)
	defer l.Close()
	dir, err = l.Dir(0, remotesnapshot.FastXattrs)
	require.NoError(t, err)
	check(t, dir, "a", contents(1, 0))
	require.Positive(t, reg.Requests(), "what was removed is fetched again")
}

func TestLayerStaysForItsTTL(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, l := w.resolved(src)
	require.NoError(t, l.Close())
	check(t, dir, "a", contents(1, 0))
	require.Len(t, w.Report().Layers, 1)
	again, _ := w.open(src)
	require.Equal(t, dir, again)
}

// book writes down what it is told of sessions.
type book struct {
	nobody
	lines []string
}

func (b *book) Hold(ref string, sessions func() []string) (release func()) {
	b.lines = append(b.lines, fmt.Sprint("hold ", ref, sessions()))
	return func() { b.lines = append(b.lines, fmt.Sprint("release ", ref, sessions())) }
}

func (b *book) Vouch(ref string, ids ...string) {
	b.lines = append(b.lines, fmt.Sprint("vouch ", ref, ids))
}

func TestHoldTellsTheSessions(t *testing.T) {
	reg := blobtest.New(t)
	b := &book{}
	w := start(t, Options{Sessions: b}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	require.NoError(t, w.Resolve(t.Context(), src)[0])
	require.Empty(t, b.lines, "to resolve names no session")
	ids := []string{"s1"}
	release := w.Hold(src, func() []string { return ids })
	ids = append(ids, "s2")
	release()
	w.Vouch(src, func() []string { return ids })
	require.Equal(t, []string{
		"hold " + src.Reference + "[s1]",
		"release " + src.Reference + "[s1 s2]",
		"vouch " + src.Reference + "[s1 s2]",
	}, b.lines)
}

func TestUsageAndCollect(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{TTL: -1, KeepBytes: -1}, reg)
	held, idle := push(reg, "held:latest", layerOf(t, 1, "a")), push(reg, "idle:latest", layerOf(t, 20, "a"))
	dir, _ := w.resolved(held)
	require.NoError(t, w.Resolve(t.Context(), idle)[0])
	for _, src := range []remotesnapshot.Source{held, idle} {
		n, err := w.Usage(src.Digest)
		require.NoError(t, err)
		require.Greater(t, n, int64(100_000), "footer, TOC and neighbours")
	}
	eventually(t, "idle layer is closed", func() bool { return len(w.Report().Layers) == 1 })
	eventually(t, "collected", func() bool {
		_, err := w.Collect(t.Context())
		require.NoError(t, err)
		n, err := w.Usage(idle.Digest)
		require.NoError(t, err)
		return n == 0
	})
	check(t, dir, "a", contents(1, 0))
	n, err := w.Usage(digest.FromString("unknown"))
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = w.Open(idle, false)
	require.ErrorIs(t, err, cerrdefs.ErrUnavailable, "its TOC is gone, too")
}

func TestCollectFreesWhatWasNotUsedForLongest(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{TTL: -1, KeepBytes: 400 << 10}, reg)
	var srcs []remotesnapshot.Source
	for i := range 3 {
		src := push(reg, "app:latest", layerOf(t, uint64(i)*10, "a"))
		require.NoError(t, w.Resolve(t.Context(), src)[0])
		srcs = append(srcs, src)
	}
	eventually(t, "closed", func() bool { return len(w.Report().Layers) == 0 })
	w.wg.Wait()                // closing notes the time
	for i, src := range srcs { // 1 is the latest, 0 the oldest
		b, err := w.blobs.Open(src.Digest, blob.Origin{})
		require.NoError(t, err)
		at := time.Now().Add(-time.Duration([]int{30, 10, 20}[i]) * time.Minute)
		require.NoError(t, b.Close())
		for _, path := range []string{b.Path(), b.Path() + ".ranges"} {
			require.NoError(t, os.Chtimes(path, at, at))
		}
	}
	freed, err := w.Collect(t.Context())
	require.NoError(t, err)
	require.Positive(t, freed)
	for i, kept := range []bool{false, true, false} {
		n, err := w.blobs.Usage(srcs[i].Digest)
		require.NoError(t, err)
		require.Equal(t, kept, n > 0, "layer %d", i)
	}
}

// Only FUSE has files that change.
func TestStateFile(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{NoImages: true}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	dir, _ := w.resolved(src)
	files, err := filepath.Glob(filepath.Join(dir, ".stargz-snapshotter", "*"+src.Digest.Encoded()+".json"))
	require.NoError(t, err)
	require.Len(t, files, 1)
	raw, err := os.ReadFile(files[0])
	require.NoError(t, err)
	var state map[string]any
	require.NoError(t, json.Unmarshal(raw, &state))
	info := w.Info(src.Digest)
	require.EqualValues(t, info.Size, state["size"])
	require.EqualValues(t, info.Fetched, state["fetchedSize"])
}

func TestClosedFileSystem(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	src := push(reg, "app:latest", layerOf(t, 1, "a"))
	_, l := w.resolved(src)
	require.NoError(t, w.Close())
	require.NoError(t, w.Close())
	_, err := w.Open(src, true)
	require.ErrorIs(t, err, ErrClosed)
	require.Error(t, w.Resolve(t.Context(), src)[0])
	_, err = l.Dir(5, remotesnapshot.FastXattrs)
	require.Error(t, err)
}

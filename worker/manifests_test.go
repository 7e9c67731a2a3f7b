package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// job has a session, and an end.
type job struct {
	solver.JobContext
	g   bksession.Group
	end func() error
}

func (j *job) Session() bksession.Group { return j.g }

func (j *job) Cleanup(f func() error) error {
	j.end = f
	return nil
}

const tocDigest = "sha256:1111111111111111111111111111111111111111111111111111111111111111"

func manifestOf(t *testing.T, layers ...ocispecs.Descriptor) (ocispecs.Descriptor, []byte) {
	t.Helper()
	body, err := json.Marshal(ocispecs.Manifest{MediaType: ocispecs.MediaTypeImageManifest, Layers: layers})
	require.NoError(t, err)
	return ocispecs.Descriptor{MediaType: ocispecs.MediaTypeImageManifest, Digest: digest.FromBytes(body), Size: int64(len(body))}, body
}

// TestManifestsAreLookedAt: what is pulled is, when it is an image's manifest and whole.
func TestManifestsAreLookedAt(t *testing.T) {
	lazy := ocispecs.Descriptor{
		Digest: digest.FromString("lazy"), Size: 40,
		Annotations: map[string]string{remotesnapshot.AnnotationTOCDigest: tocDigest, "other": "x"},
	}
	plain := ocispecs.Descriptor{Digest: digest.FromString("plain"), Size: 50}
	want := []remotesnapshot.Source{{
		Reference: "example.com/a:1", Digest: lazy.Digest, Size: 40,
		Annotations: map[string]string{remotesnapshot.AnnotationTOCDigest: tocDigest},
	}}
	desc, body := manifestOf(t, plain, lazy)
	build := &job{g: bksession.NewGroup("one", "two")}
	pulled := withPulling(t.Context(), "example.com/a:1", build)

	type seen struct {
		layers   []remotesnapshot.Source
		sessions []string
	}
	var during context.Context
	newStore := func(t *testing.T) (manifests, *[]seen) {
		store, err := local.NewStore(t.TempDir())
		require.NoError(t, err)
		var all []seen
		return manifests{store, func(ctx context.Context, layers []remotesnapshot.Source, s remotesnapshot.Sessions) {
			during = ctx
			all = append(all, seen{layers, s()})
		}}, &all
	}

	t.Run("a pull", func(t *testing.T) {
		m, all := newStore(t)
		require.NoError(t, content.WriteBlob(pulled, m, "r", bytes.NewReader(body), desc))
		require.Equal(t, []seen{{want, []string{"one", "two"}}}, *all)
		require.NoError(t, during.Err())
		require.NoError(t, build.end())
		require.Error(t, during.Err(), "the build has ended")
		got, err := content.ReadBlob(t.Context(), m, desc)
		require.NoError(t, err)
		require.Equal(t, body, got)
		require.NoError(t, content.WriteBlob(pulled, m, "r", bytes.NewReader(body), desc))
		require.Len(t, *all, 1, "it was there")
	})
	t.Run("nobody pulls", func(t *testing.T) {
		m, all := newStore(t)
		for _, ctx := range []context.Context{t.Context(), withPulling(t.Context(), "example.com/a:1", nil)} {
			require.NoError(t, content.WriteBlob(ctx, m, "r", bytes.NewReader(body), desc))
		}
		require.Empty(t, *all)
	})
	t.Run("something else", func(t *testing.T) {
		m, all := newStore(t)
		config := desc
		config.MediaType = ocispecs.MediaTypeImageConfig
		require.NoError(t, content.WriteBlob(pulled, m, "r", bytes.NewReader(body), config))
		require.Empty(t, *all)
	})
	t.Run("in two pieces, of two writers", func(t *testing.T) {
		m, all := newStore(t)
		for _, part := range [][]byte{body[:10], body[10:]} {
			w, err := m.Writer(pulled, content.WithRef("r"), content.WithDescriptor(desc))
			require.NoError(t, err)
			_, err = w.Write(part)
			require.NoError(t, err)
			if st, err := w.Status(); err == nil && st.Offset == desc.Size {
				require.NoError(t, w.Commit(t.Context(), desc.Size, desc.Digest))
			}
			require.NoError(t, w.Close())
		}
		require.Empty(t, *all)
	})
	t.Run("begun again", func(t *testing.T) {
		m, all := newStore(t)
		w, err := m.Writer(pulled, content.WithRef("r"), content.WithDescriptor(desc))
		require.NoError(t, err)
		_, err = io.WriteString(w, "something that was cut")
		require.NoError(t, err)
		require.NoError(t, w.Truncate(0))
		_, err = w.Write(body)
		require.NoError(t, err)
		require.NoError(t, w.Commit(t.Context(), desc.Size, desc.Digest))
		require.Len(t, *all, 1)
	})
	t.Run("with another digest", func(t *testing.T) {
		m, all := newStore(t)
		wrong := desc
		wrong.Digest = digest.FromString("wrong")
		require.Error(t, content.WriteBlob(pulled, m, "r", bytes.NewReader(body), wrong))
		require.Empty(t, *all)
	})
	t.Run("with no lazy layer, or too many", func(t *testing.T) {
		m, all := newStore(t)
		for _, layers := range [][]ocispecs.Descriptor{{plain}, slices.Repeat([]ocispecs.Descriptor{lazy}, maxStacked+1)} {
			desc, body := manifestOf(t, layers...)
			require.NoError(t, content.WriteBlob(pulled, m, "r"+desc.Digest.Encoded(), bytes.NewReader(body), desc))
		}
		require.Empty(t, *all)
	})
}

func FuzzLazyLayers(f *testing.F) {
	f.Add([]byte(`{"layers":[{"digest":"` + tocDigest + `","size":-1,"annotations":{"` + remotesnapshot.AnnotationTOCDigest + `":"x"}}]}`))
	f.Add([]byte(`{"layers":[{}]}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, manifest []byte) {
		for _, l := range lazyLayers("example.com/a:1", manifest) {
			if l.Digest.Validate() != nil || l.Size < 0 || remotesnapshot.TOCDigest(l.Annotations) == "" {
				t.Fatalf("%+v", l)
			}
		}
	})
}

// TestExpectedLayers: what is expected is resolved by who pulls, and costs no request later.
func TestExpectedLayers(t *testing.T) {
	g := newGuarded(t)
	alice, _ := g.client("secret")
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	g.Expect(gone, []remotesnapshot.Source{g.src}, of(alice))
	bad := g.src
	bad.Annotations = map[string]string{remotesnapshot.AnnotationTOCDigest: "no digest"}
	g.Expect(t.Context(), []remotesnapshot.Source{bad}, of(alice))
	g.Expect(t.Context(), slices.Repeat([]remotesnapshot.Source{g.src}, 300), of(alice))
	time.Sleep(50 * time.Millisecond)
	require.Empty(t, g.reg.Log(), "the build has ended, it can't be understood, and it is too much")
	require.Empty(t, g.Info(g.src.Digest).LastError)

	g.Expect(t.Context(), []remotesnapshot.Source{g.src}, of(alice))
	require.Eventually(t, func() bool { return g.Info(g.src.Digest).Open }, 20*time.Second, time.Millisecond)
	asked := len(g.reg.Log())
	require.NotZero(t, asked)
	require.NoError(t, g.Resolve(t.Context(), g.src)[0])
	require.Len(t, g.reg.Log(), asked)
}

package worker

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/identity"
	"github.com/moby/buildkit/snapshot"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// recorder is both sides of the decorator, lazySide being one: it writes down what
// it is asked, in order.
type recorder struct {
	snapshot.Snapshotter
	calls      []string
	labels     map[string]string // of the last Prepare or Update
	attached   []remotesnapshot.Source
	resolveErr error
	prepareErr error
}

func (r *recorder) Prepare(_ context.Context, key, parent string, opts ...snapshots.Opt) error {
	r.calls = append(r.calls, "prepare "+key+" on "+parent)
	var info snapshots.Info
	for _, o := range opts {
		if err := o(&info); err != nil {
			return err
		}
	}
	r.labels = info.Labels
	return r.prepareErr
}

func (r *recorder) Update(_ context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	r.calls = append(r.calls, fmt.Sprint("update ", fieldpaths))
	return info, nil
}

func (r *recorder) Remove(_ context.Context, key string) error {
	r.calls = append(r.calls, "remove "+key)
	return nil
}

// lazySide is the lazy file system.
type lazySide struct{ *recorder }

func (r lazySide) Resolve(_ context.Context, srcs ...remotesnapshot.Source) []error {
	errs := make([]error, len(srcs))
	for i, s := range srcs {
		r.calls = append(r.calls, "resolve "+s.Digest.Encoded()[:4])
		errs[i] = r.resolveErr
	}
	return errs
}

func (r lazySide) Attach(src remotesnapshot.Source) { r.attached = append(r.attached, src) }

const (
	testRef    = "registry.example/app:v1"
	labelsPath = "containerd.io/snapshot/remote/stargz."
)

var testDigest = digest.FromString("a layer")

// buildkitLabels are what BuildKit's cache manager says of a layer: lasting
// labels, and temporary ones for the sessions.
func buildkitLabels(sessions ...string) (lasting, temporary map[string]string) {
	lasting = map[string]string{
		labelsPath + "reference":                   testRef,
		labelsPath + "digest":                      testDigest.String(),
		labelsPath + "layers":                      testDigest.String(),
		"containerd.io/snapshot/stargz/toc.digest": digest.FromString("toc").String(),
	}
	temporary = map[string]string{}
	id := identity.NewID()
	for k, v := range lasting {
		temporary[k+"."+id] = v
	}
	for i, s := range sessions {
		temporary[fmt.Sprintf("%ssession.%d.%s", labelsPath, i, id)] = s
	}
	return lasting, temporary
}

func newRecorded(r *recorder) *lazySnapshotter {
	return &lazySnapshotter{Snapshotter: r, lazy: lazySide{r}, steps: newStepMounts(fastTwins), starting: &starting{}}
}

// fastTwins know the directories /x/... by the name /p/....
func fastTwins(dirs []string) ([]string, error) {
	out := make([]string, len(dirs))
	for i, d := range dirs {
		if d == "/x/broken" {
			return nil, errors.New("layer is gone")
		}
		out[i] = strings.Replace(d, "/x/", "/p/", 1)
	}
	return out, nil
}

// prepareLazy is BuildKit's request for a lazy layer.
func prepareLazy(s *lazySnapshotter, sessions ...string) error {
	lasting, temporary := buildkitLabels(sessions...)
	lasting[remotesnapshot.LabelTarget] = "target"
	return s.Prepare(context.Background(), "tmp", "parent", snapshots.WithLabels(lasting), snapshots.WithLabels(temporary))
}

func TestPrepareResolvesFirst(t *testing.T) {
	r := &recorder{prepareErr: cerrdefs.ErrAlreadyExists}
	err := prepareLazy(newRecorded(r), "s1", "s2")
	require.True(t, cerrdefs.IsAlreadyExists(err))
	require.Equal(t, []string{"resolve " + testDigest.Encoded()[:4], "prepare tmp on parent"}, r.calls)
	require.Len(t, r.attached, 1)
	require.Equal(t, []string{"s1", "s2"}, r.attached[0].Sessions)
	require.Equal(t, testRef, r.attached[0].Reference)

	want, _ := buildkitLabels()
	want[remotesnapshot.LabelTarget] = "target"
	require.Equal(t, want, r.labels, "temporary labels are not stored")
}

func TestPrepareOfALayerThatIsNotLazy(t *testing.T) {
	why := errors.New("no table of contents")
	r := &recorder{resolveErr: why}
	err := prepareLazy(newRecorded(r))
	require.ErrorIs(t, err, why)
	require.False(t, cerrdefs.IsAlreadyExists(err))
	require.Len(t, r.calls, 1, "no snapshot is made")
}

// TestPrepareThatMadeAPlainSnapshot: BuildKit would neither use nor remove it.
func TestPrepareThatMadeAPlainSnapshot(t *testing.T) {
	r := &recorder{}
	err := prepareLazy(newRecorded(r))
	require.Error(t, err)
	require.False(t, cerrdefs.IsAlreadyExists(err))
	require.Equal(t, "remove tmp", r.calls[len(r.calls)-1])
}

func TestPrepareWithoutALayer(t *testing.T) {
	r := &recorder{}
	s := newRecorded(r)
	require.NoError(t, s.Prepare(t.Context(), "k", "p", snapshots.WithLabels(map[string]string{"a": "b"})))
	require.Equal(t, []string{"prepare k on p"}, r.calls, "plain snapshots pass")
	require.Equal(t, map[string]string{"a": "b"}, r.labels)

	r.calls = nil
	err := s.Prepare(t.Context(), "k", "p", snapshots.WithLabels(map[string]string{remotesnapshot.LabelTarget: "t"}))
	require.True(t, cerrdefs.IsUnavailable(err))
	err = s.Prepare(t.Context(), "k", "p", snapshots.WithLabels(map[string]string{
		remotesnapshot.LabelTarget: "t", labelsPath + "reference": testRef, labelsPath + "digest": "none"}))
	require.ErrorContains(t, err, "none")
	require.Empty(t, r.calls)
}

func TestUpdateOfTemporaryLabels(t *testing.T) {
	r := &recorder{}
	s := newRecorded(r)
	_, temporary := buildkitLabels("s1")
	info := snapshots.Info{Name: "snap", Labels: temporary}
	var fields []string
	for k := range temporary {
		fields = append(fields, "labels."+k)
	}
	_, err := s.Update(t.Context(), info, fields...)
	require.NoError(t, err)
	require.Len(t, r.attached, 1)
	require.Equal(t, []string{"s1"}, r.attached[0].Sessions)
	require.Equal(t, testDigest, r.attached[0].Digest)

	// BuildKit takes them away again by empty values.
	for k := range info.Labels {
		info.Labels[k] = ""
	}
	_, err = s.Update(t.Context(), info, fields...)
	require.NoError(t, err)
	require.Len(t, r.attached, 1)

	// A layer without labels makes an update of no field, which would replace all.
	_, err = s.Update(t.Context(), snapshots.Info{Name: "snap"})
	require.NoError(t, err)
	require.Empty(t, r.calls, "nothing is stored")
}

func TestUpdateOfOtherFields(t *testing.T) {
	id, id2 := identity.NewID(), identity.NewID()
	for _, fields := range [][]string{
		{"labels"},
		{"labels.containerd.io/gc.root"},
		{"labels.containerd.io/snapshot/remote/stargz.reference"},
		{"labels.a." + id, "labels.b"},
		{"labels.a." + id, "labels.b." + id2},
		{"parent." + id},
		{"labels.a." + id[1:]},
	} {
		r := &recorder{}
		_, err := newRecorded(r).Update(t.Context(), snapshots.Info{Name: "s"}, fields...)
		require.NoError(t, err)
		require.Len(t, r.calls, 1, "%v is stored", fields)
	}
}

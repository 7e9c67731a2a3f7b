package worker

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/snapshot"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// stored are snapshots with their labels, as the database has them.
type stored struct {
	snapshots.Snapshotter
	infos []snapshots.Info
}

func (s stored) Walk(ctx context.Context, fn snapshots.WalkFunc, _ ...string) error {
	if _, err := namespaces.NamespaceRequired(ctx); err != nil {
		return err
	}
	for _, i := range s.infos {
		if err := fn(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// statted is BuildKit's view of a remote snapshot.
type statted struct {
	snapshot.Snapshotter
	labels map[string]string
}

func (s statted) Stat(context.Context, string) (snapshots.Info, error) {
	return snapshots.Info{Labels: s.labels}, nil
}

// noContent has no blob.
type noContent struct{ content.Store }

func (noContent) Info(context.Context, digest.Digest) (content.Info, error) {
	return content.Info{}, cerrdefs.ErrNotFound
}

func TestBoot(t *testing.T) {
	remote, _ := buildkitLabels()
	remote[remotesnapshot.LabelRemote] = "x"
	plain, _ := buildkitLabels()
	plain[labelsPath+"digest"] = digest.FromString("a plain layer").String()

	b := &boot{}
	sn := &bootSnapshotter{statted{labels: remote}, b}
	cs := &bootContent{noContent{}, b}
	looksLazy := func() bool { // as BuildKit asks
		if _, err := cs.Info(t.Context(), testDigest); err != nil {
			return true
		}
		info, err := sn.Stat(t.Context(), "snap")
		require.NoError(t, err)
		_, ok := info.Labels[remotesnapshot.LabelRemote]
		return ok
	}
	require.True(t, looksLazy())
	require.NoError(t, b.begin(t.Context(), stored{infos: []snapshots.Info{
		{Name: "a", Labels: remote},
		{Name: "b", Labels: plain},
		{Name: "c", Labels: map[string]string{remotesnapshot.LabelRemote: "x"}},
	}}))
	require.False(t, looksLazy(), "during the start")
	_, err := cs.Info(t.Context(), digest.FromString("a plain layer"))
	require.True(t, cerrdefs.IsNotFound(err), "a layer without a remote snapshot is as lazy as ever")
	b.end()
	require.True(t, looksLazy())
	require.Contains(t, remote, remotesnapshot.LabelRemote, "the labels are the snapshotter's")
}

package worker

import (
	"context"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/require"
)

// mountable is an overlay mount.
type mountable struct {
	lower    string
	released int
}

func (m *mountable) Mount() ([]mount.Mount, func() error, error) {
	return []mount.Mount{{Type: "overlay", Options: []string{"workdir=/w", "upperdir=/x/up", "lowerdir=" + m.lower, "index=off"}}},
		func() error { m.released++; return nil }, nil
}

func (m *mountable) IdentityMapping() *user.IdentityMapping { return nil }

func (r *recorder) Mounts(context.Context, string) (snapshot.Mountable, error) {
	return &mountable{lower: "/x/1:/s/fs:/x/2"}, nil
}

func (r *recorder) Commit(context.Context, string, string, ...snapshots.Opt) error { return nil }

func lowersOf(t *testing.T, s *lazySnapshotter, key string) string {
	t.Helper()
	m, err := s.Mounts(t.Context(), key)
	require.NoError(t, err)
	mounts, release, err := m.Mount()
	require.NoError(t, err)
	require.NoError(t, release())
	require.Equal(t, []string{"workdir=/w", "upperdir=/x/up"}, mounts[0].Options[:2])
	return mounts[0].Options[2]
}

const (
	exactLowers = "lowerdir=/x/1:/s/fs:/x/2"
	fastLowers  = "lowerdir=/p/1:/s/fs:/p/2"
)

func TestStepsMountFast(t *testing.T) {
	s := newRecorded(&recorder{})
	require.NoError(t, s.Prepare(t.Context(), "step", "base"))
	require.Equal(t, fastLowers, lowersOf(t, s, "step"), "the step itself")
	require.Equal(t, exactLowers, lowersOf(t, s, "step"), "BuildKit, reading what the step has left")
	require.Equal(t, exactLowers, lowersOf(t, s, "found at start"))

	require.NoError(t, s.Prepare(t.Context(), "step", "base"))
	require.NoError(t, s.Commit(t.Context(), "done", "step"))
	require.Equal(t, exactLowers, lowersOf(t, s, "step"), "nothing is remembered of a snapshot that is gone")
}

// TestFastMountable mounts as often as it is asked, and releases what it can't use.
func TestFastMountable(t *testing.T) {
	s := newStepMounts(fastTwins)
	inner := &mountable{lower: "/x/1"}
	m := s.wrap(inner)
	for range 2 {
		mounts, release, err := m.Mount()
		require.NoError(t, err)
		require.Equal(t, "lowerdir=/p/1", mounts[0].Options[2])
		require.NoError(t, release())
	}
	require.Equal(t, 2, inner.released)
	inner.lower = "/x/broken"
	_, _, err := m.Mount()
	require.ErrorContains(t, err, "gone")
	require.Equal(t, 3, inner.released)
}

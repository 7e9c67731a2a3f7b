package worker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	bkmetadata "github.com/moby/buildkit/cache/metadata"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

func TestChoose(t *testing.T) {
	works := func(string) error { return nil }
	fails := func(string) error { return errors.New("it is broken") }
	all := probes{overlay: works, fuseOverlay: works, fuse: works}
	for _, c := range []struct {
		name    string
		records []string // snapshotters with a cache
		opened  []string // snapshotters that were started once, without a build
		probes  probes
		want    string
		reason  string
	}{
		{"a fresh root", nil, nil, all, Stargz, "overlayfs and FUSE work"},
		{"no FUSE", nil, nil, probes{works, works, fails}, Overlay, "FUSE does not work"},
		{"no overlayfs", nil, nil, probes{fails, works, works}, FUSEOverlay, "overlayfs does not work"},
		{"nothing", nil, nil, probes{fails, fails, works}, Native, "nor does fuse-overlayfs"},
		{"overlayfs has a cache", []string{Overlay}, nil, all, Overlay, "runc-overlayfs has a cache and"},
		{"both have one", []string{Overlay, Stargz}, nil, all, Stargz, "work"},
		{"overlayfs was only started", nil, []string{Overlay}, all, Stargz, "work"},
		{"stargz was only started", []string{Overlay}, []string{Stargz}, all, Overlay, "has a cache"},
		{"both have one, and FUSE broke", []string{Overlay, Stargz}, nil, probes{works, works, fails}, Overlay, "FUSE does not work"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			for _, name := range c.opened {
				openRecords(t, root, name, 0)
			}
			for _, name := range c.records {
				openRecords(t, root, name, 1)
			}
			got := choose(root, c.probes)
			require.Equal(t, c.want, got.Name)
			require.Contains(t, got.Reason, c.reason)
		})
	}
}

// TestDemand: a snapshotter that was asked for by name is replaced by one that works,
// whatever caches there are.
func TestDemand(t *testing.T) {
	works := func(string) error { return nil }
	fails := func(string) error { return errors.New("it is broken") }
	for _, c := range []struct {
		name   string
		probes probes
		want   string
		why    string
	}{
		{"all works", probes{works, works, works}, Stargz, ""},
		{"no FUSE", probes{works, works, fails}, Overlay, "FUSE does not work here: it is broken"},
		{"no overlayfs", probes{fails, works, works}, FUSEOverlay, "overlayfs does not work here: it is broken"},
		{"nothing", probes{fails, fails, fails}, Native, "overlayfs does not work here: it is broken"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := t.TempDir()
			openRecords(t, root, Overlay, 1)
			got := demand(root, c.probes)
			require.Equal(t, c.want, got.Name)
			if c.why == "" {
				require.NoError(t, got.NotLazy)
				return
			}
			require.EqualError(t, got.NotLazy, c.why)
			require.Contains(t, got.Reason, "it is broken")
		})
	}
}

func TestChooseDamagedCache(t *testing.T) {
	root := t.TempDir()
	require.NoError(t, os.MkdirAll(StateDir(root, Overlay), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(StateDir(root, Overlay), metadataFile), []byte("no database"), 0o600))
	works := func(string) error { return nil }
	got := choose(root, probes{works, works, works})
	require.Equal(t, Overlay, got.Name, "what can't be read may be a cache")
	require.Contains(t, got.Reason, "can't be read")
}

// openRecords makes the cache manager's database as BuildKit does.
func openRecords(t *testing.T, root, snapshotter string, n int) {
	t.Helper()
	require.NoError(t, os.MkdirAll(StateDir(root, snapshotter), 0o700))
	s, err := bkmetadata.NewStore(filepath.Join(StateDir(root, snapshotter), metadataFile))
	require.NoError(t, err)
	defer s.Close()
	if n > 0 {
		item, ok := s.Get("a-record")
		require.False(t, ok)
		v, err := bkmetadata.NewValue("x")
		require.NoError(t, err)
		item.Queue(func(b *bolt.Bucket) error { return item.SetValue(b, "key", v) })
		require.NoError(t, item.Commit())
	}
}

// TestFUSEProbe leaves nothing behind, whatever it finds.
func TestFUSEProbe(t *testing.T) {
	dir := t.TempDir()
	err := fuseWorks(dir)
	left, rerr := os.ReadDir(dir)
	require.NoError(t, rerr)
	require.Empty(t, left)
	if os.Getenv("LAZYKIT_PRIVILEGED") == "1" {
		require.NoError(t, err)
	}
	require.Error(t, fuseWorks(filepath.Join(dir, "missing")))
}

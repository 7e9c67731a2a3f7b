package blob_test

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

func TestStateOfABlob(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	state := func() blob.State {
		t.Helper()
		s, err := r.store.State(r.dgst)
		require.NoError(t, err)
		return s
	}
	require.Zero(t, state())
	r.reads(b, blob.Blocked, 0, 100)
	open := state()
	require.EqualValues(t, mib, open.Size)
	require.Equal(t, b.Fetched(), open.Fetched)
	require.False(t, open.Local)
	require.NoError(t, b.Close())
	require.Equal(t, open, state(), "closed")

	b = r.open()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	whole := blob.State{Size: mib, Fetched: mib, Local: true}
	require.Equal(t, whole, state())
	r.restart()
	r.open().Close()
	require.Equal(t, whole, state(), "after a restart")

	path := b.Path()
	require.NoError(t, os.WriteFile(path+".ranges", []byte("rubbish"), 0o600))
	require.Zero(t, state(), "a damaged list counts as none")

	unknown := digest.FromString("unknown")
	s, err := r.store.State(unknown)
	require.NoError(t, err)
	require.Zero(t, s)
	all, err := r.store.Digests()
	require.NoError(t, err)
	require.NotContains(t, all, unknown, "to look leaves nothing behind")
	_, err = r.store.State("no digest")
	require.Error(t, err)
}

func TestUsageOfALinkedBlob(t *testing.T) {
	r := newRig(t, mib)
	b := r.open()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	linked := func() bool {
		t.Helper()
		l, err := r.store.Linked(r.dgst)
		require.NoError(t, err)
		return l
	}
	usage := func() int64 {
		t.Helper()
		u, err := r.store.Usage(r.dgst)
		require.NoError(t, err)
		return u
	}
	require.False(t, linked())
	require.GreaterOrEqual(t, usage(), int64(mib))
	other := filepath.Join(r.opts.Root, "..", "elsewhere")
	require.NoError(t, os.Link(b.Path(), other))
	require.True(t, linked())
	require.Less(t, usage(), int64(64*kib), "the other store counts it")
	require.NoError(t, os.Remove(other))
	require.False(t, linked())
	require.GreaterOrEqual(t, usage(), int64(mib), "ours alone again")
	for _, d := range []digest.Digest{"no digest", digest.FromString("unknown")} {
		l, err := r.store.Linked(d)
		require.Equal(t, d == "no digest", err != nil)
		require.False(t, l)
	}
}

// TestCheckOfOneOrigin says no when the registry does, whatever its mirrors say.
func TestCheckOfOneOrigin(t *testing.T) {
	r := newRig(t, 1000)
	b := r.open()
	mirror, registry := blobtest.New(t), blobtest.New(t)
	origin := blob.Origin{Reference: registry.Reference("repo"), Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		var both []docker.RegistryHost
		for _, reg := range []*blobtest.Registry{mirror, registry} {
			hosts, err := reg.Hosts()(ctx)
			if err != nil {
				return nil, err
			}
			both = append(both, hosts...)
		}
		return both, nil
	}}
	all := func(blobtest.Request) bool { return true }
	check := func() error { return b.CheckOrigin(context.Background(), origin) }

	err := check()
	require.True(t, errdefs.IsNotFound(err), "%v", err)
	away := mirror.Fault(blobtest.Fault{Match: all, Status: http.StatusServiceUnavailable})
	forbidden := registry.Fault(blobtest.Fault{Match: all, Status: http.StatusForbidden})
	err = check()
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	require.False(t, errdefs.IsUnavailable(err), "%v", err)
	require.ErrorContains(t, err, mirror.Host())
	away.Clear()
	forbidden.Clear()
	registry.Fault(blobtest.Fault{Match: all, Status: http.StatusServiceUnavailable})
	err = check()
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.False(t, errdefs.IsNotFound(err), "%v", err)
	mirror.AddBlobAs(r.dgst, r.data)
	require.NoError(t, check(), "a mirror may let anybody in")
}

// TestCheckAsksTheRegistryItself, not where another request was redirected to.
func TestCheckAsksTheRegistryItself(t *testing.T) {
	r := newRig(t, mib)
	r.reg.Redirect(time.Hour)
	r.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Method == http.MethodHead }, Status: http.StatusMethodNotAllowed})
	b := r.open()
	r.reads(b, blob.Blocked, 0, 100)
	r.reg.RequireToken("user", "secret", time.Hour)
	o := r.reg.Origin("repo:tag")
	o.Hosts = blob.Hosts(func(context.Context) ([]docker.RegistryHost, error) { return r.reg.AnonymousHosts()("") })
	err := b.CheckOrigin(context.Background(), o)
	require.True(t, errdefs.IsUnauthorized(err), "%v", err)
	require.False(t, errors.Is(err, errdefs.ErrUnavailable))
}

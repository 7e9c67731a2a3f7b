package worker

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
	"github.com/lazykit/lazykit/session"
)

// login is a client's credentials for all hosts.
type login struct {
	auth.UnimplementedAuthServer
	password string
}

func (l login) Register(s *grpc.Server) { auth.RegisterAuthServer(s, l) }

func (l login) Credentials(context.Context, *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	return &auth.CredentialsResponse{Username: "user", Secret: l.password}, nil
}

// guarded is a lazy file system behind clients' sessions, and a registry that lets
// in whoever has the password "secret".
type guarded struct {
	*lazyfs.FS
	t   *testing.T
	sm  *bksession.Manager
	reg *blobtest.Registry
	src remotesnapshot.Source
}

func newGuarded(t *testing.T) *guarded {
	needRoot(t)
	g := &guarded{t: t, reg: blobtest.New(t)}
	g.reg.RequireToken("user", "secret", time.Hour)
	var err error
	g.sm, err = bksession.NewManager()
	require.NoError(t, err)
	dir := t.TempDir()
	opts := lazyfs.Options{Root: filepath.Join(dir, "lazy"), MountRoot: filepath.Join(dir, "m")}
	opts.Blob.BackoffMin, opts.Blob.GiveUp = time.Millisecond, 5*time.Second
	askThrough(&opts, session.New(g.reg.AnonymousHosts(), g.sm), newTraffic())
	g.FS, err = lazyfs.New(t.Context(), opts)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, g.Close()) })
	l := estargztest.Build(t, estargztest.Options{Format: estargz.FormatEStargz, ChunkSize: 64 << 10, Level: 1},
		estargztest.File("a", estargztest.Bytes(1, 100_000)), estargztest.File("padding", estargztest.Bytes(2, 1_500_000)))
	g.src = remotesnapshot.Source{Reference: g.reg.Reference("app:v1"), Digest: g.reg.AddBlob(l.Blob), Annotations: remotesnapshot.KnownAnnotations(l.Annotations)}
	return g
}

// client connects a client with a password.
func (g *guarded) client(password string) (id string, leave func()) {
	g.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := bksession.NewSession(ctx, "")
	require.NoError(g.t, err)
	s.Allow(login{password: password})
	var wg sync.WaitGroup
	wg.Go(func() {
		_ = s.Run(ctx, func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			client, server := net.Pipe()
			wg.Go(func() { _ = g.sm.HandleConn(ctx, server, meta) })
			return client, nil
		})
	})
	require.Eventually(g.t, func() bool {
		c, err := g.sm.Get(ctx, s.ID(), true)
		return err == nil && c != nil
	}, 5*time.Second, time.Millisecond)
	leave = func() {
		cancel()
		s.Close()
		wg.Wait()
	}
	g.t.Cleanup(leave)
	return s.ID(), leave
}

func of(ids ...string) remotesnapshot.Sessions { return func() []string { return ids } }

// TestRightsToALazyLayer follows one layer through the builds of three clients.
func TestRightsToALazyLayer(t *testing.T) {
	g := newGuarded(t)
	alice, aliceLeaves := g.client("secret")
	bob, _ := g.client("secret")
	eve, _ := g.client("guess")

	release := g.Hold(g.src, of("not connected", alice))
	g.Vouch(g.src, of(alice))
	require.NoError(t, g.Authorize(t.Context(), g.src, of(alice)))
	require.Empty(t, g.reg.Log(), "she has read the manifest")
	require.NoError(t, g.Resolve(t.Context(), g.src)[0])
	l, err := g.Open(g.src, false)
	require.NoError(t, err)
	defer l.Close()
	dir, err := l.Dir(0, remotesnapshot.FastXattrs)
	require.NoError(t, err)

	err = g.Authorize(t.Context(), g.src, of(eve))
	require.True(t, cerrdefs.IsUnauthorized(err), "%v", err)
	require.ErrorContains(t, err, g.src.Digest.String())
	require.ErrorContains(t, err, g.src.Reference)
	require.NoError(t, g.Authorize(t.Context(), g.src, of(bob)))
	asked := len(g.reg.Log())
	require.NoError(t, g.Authorize(t.Context(), g.src, of(eve, bob)))
	require.Len(t, g.reg.Log(), asked, "one of the group is enough")

	begin := time.Now()
	aliceLeaves()
	releaseBob := g.Hold(g.src, of(alice, bob))
	release()
	got, err := os.ReadFile(filepath.Join(dir, "a"))
	require.NoError(t, err)
	require.Equal(t, estargztest.Bytes(1, 100_000), got, "read with what bob has")
	require.Less(t, time.Since(begin), 4*time.Second)
	releaseBob()
	_, _, err = g.Unlazy(t.Context(), g.src)
	require.True(t, cerrdefs.IsUnauthorized(err), "nobody holds it: %v", err)
	releaseEve := g.Hold(g.src, of(eve))
	_, _, err = g.Unlazy(t.Context(), g.src)
	require.True(t, cerrdefs.IsUnauthorized(err), "%v", err)
	releaseBob = g.Hold(g.src, of(bob))
	_, release, err = g.Unlazy(t.Context(), g.src)
	require.NoError(t, err)
	release()
	releaseBob()
	releaseEve()
	err = g.Authorize(t.Context(), g.src, of(alice))
	require.True(t, cerrdefs.IsUnavailable(err), "she has left: %v", err)
}

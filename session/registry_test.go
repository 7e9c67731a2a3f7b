package session_test

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
	"github.com/lazykit/lazykit/session"
)

// login is a client's credentials for all hosts.
type login struct {
	auth.UnimplementedAuthServer
	user, password string
	asked          atomic.Int32
}

func (l *login) Register(s *grpc.Server) { auth.RegisterAuthServer(s, l) }

func (l *login) Credentials(context.Context, *auth.CredentialsRequest) (*auth.CredentialsResponse, error) {
	l.asked.Add(1)
	return &auth.CredentialsResponse{Username: l.user, Secret: l.password}, nil
}

// bench is a session manager, a registry that wants tokens, and a blob in it.
type bench struct {
	*testing.T
	sm    *bksession.Manager
	reg   *blobtest.Registry
	r     *session.Registry
	store *blob.Store
	n     int
}

func newBench(t *testing.T) *bench {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	b := &bench{T: t, sm: sm, reg: blobtest.New(t)}
	b.reg.RequireToken("user", "secret", time.Hour)
	b.r = session.New(b.reg.AnonymousHosts(), sm)
	b.store, err = blob.NewStore(blob.Options{Root: t.TempDir(), BackoffMin: time.Millisecond, GiveUp: 10 * time.Second})
	require.NoError(t, err)
	t.Cleanup(func() { b.store.Close() })
	return b
}

// connect starts a client; the function ends its session and waits until the
// manager has noticed.
func (b *bench) connect(l bksession.Attachable) (id string, leave func()) {
	b.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := bksession.NewSession(ctx, "")
	require.NoError(b, err)
	if l != nil {
		s.Allow(l)
	}
	done := make(chan struct{})
	handled := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx, func(_ context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() { // the daemon's side ends with the client's stream
				defer close(handled)
				b.sm.HandleConn(ctx, server, meta)
			}()
			return client, nil
		})
	}()
	there := func() bool {
		c, err := b.sm.Get(context.Background(), s.ID(), true)
		return err == nil && c != nil
	}
	require.Eventually(b, there, 5*time.Second, time.Millisecond)
	leave = func() {
		cancel()
		s.Close()
		<-done
		<-handled
	}
	b.Cleanup(leave)
	return s.ID(), leave
}

// read fetches a new blob of the repository through the registry's sessions.
func (b *bench) read(ref string) error {
	b.Helper()
	b.n++
	return b.readFrom(blob.Origin{Reference: ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		return b.r.Hosts(ctx, ref)
	}})
}

func (b *bench) readFrom(o blob.Origin) error {
	b.Helper()
	data := []byte(fmt.Sprintf("blob %d", b.n))
	bl, err := b.store.Open(b.reg.AddBlob(data), o)
	require.NoError(b, err)
	defer bl.Close()
	got := make([]byte, len(data))
	_, err = bl.ReadAt(context.Background(), blob.Blocked, got, 0)
	if err == nil {
		require.Equal(b, data, got)
	}
	return err
}

func TestReadsUseHeldSessions(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	require.ErrorIs(t, b.read(ref), errdefs.ErrUnauthenticated, "nobody holds it")
	l := &login{user: "user", password: "secret"}
	id, leave := b.connect(l)
	defer b.r.Hold(ref, of(id))()
	require.NoError(t, b.read(ref))
	asked := l.asked.Load()
	for range 3 {
		require.NoError(t, b.read(ref))
	}
	require.NoError(t, b.read(b.reg.Reference("repo@sha256:"+strings.Repeat("0", 64))), "the repository counts, not the tag")
	require.Equal(t, asked, l.asked.Load(), "the token is kept")
	b.reg.RevokeTokens()
	require.NoError(t, b.read(ref), "a token that became invalid is renewed")
	require.Greater(t, l.asked.Load(), asked)

	require.ErrorIs(t, b.read(b.reg.Reference("other:tag")), errdefs.ErrUnauthenticated, "another repository")
	leave()
	start := time.Now()
	require.ErrorIs(t, b.read(ref), errdefs.ErrUnauthenticated, "the session has ended, and its token with it")
	require.Less(t, time.Since(start), 2*time.Second, "a dead session is not waited for")
}

func TestHoldsOfDeadSessionsCostNothing(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	var dead []string
	for i := range 10 {
		dead = append(dead, fmt.Sprintf("dead%d", i))
	}
	id, _ := b.connect(&login{user: "user", password: "secret"})
	defer b.r.Hold(ref, of(id))()
	defer b.r.Hold(ref, of(dead...))() // in front of the one that lives
	start := time.Now()
	require.NoError(t, b.read(ref))
	require.Less(t, time.Since(start), 2*time.Second)
}

func TestSessionsWithoutALogin(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	bare, _ := b.connect(nil)       // knows no credentials service
	empty, _ := b.connect(&login{}) // has no login for this host
	wrong, _ := b.connect(&login{user: "user", password: "old"})
	good, _ := b.connect(&login{user: "user", password: "secret"})
	defer b.r.Hold(ref, of(bare, empty, wrong, good))()
	require.NoError(t, b.read(ref))
	b.reg.Reset()
	require.NoError(t, b.read(ref))
	refused := 0
	for _, q := range b.reg.Log() {
		if q.Status == http.StatusUnauthorized {
			refused++
		}
	}
	require.Zero(t, refused, "the one that worked is asked first now")
}

func TestForbiddenGoesToTheNextSession(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	one, _ := b.connect(&login{user: "user", password: "secret"})
	two, _ := b.connect(&login{user: "user", password: "secret"})
	defer b.r.Hold(ref, of(one, two))()
	f := b.reg.Fault(blobtest.Fault{Status: 403, Times: 1})
	require.NoError(t, b.read(ref))
	require.Equal(t, 1, f.Hits())
	require.Zero(t, b.store.Stats().Retries, "within one request")
}

func TestPublicImagesNeedNoSession(t *testing.T) {
	b := newBench(t)
	b.reg.RequireToken("", "", time.Hour) // tokens for anybody
	ref := b.reg.Reference("repo:tag")
	require.NoError(t, b.read(ref))
	id, leave := b.connect(nil)
	defer b.r.Hold(ref, of(id))()
	require.NoError(t, b.read(ref))
	leave()
	require.NoError(t, b.read(ref))
	alone := session.New(b.reg.AnonymousHosts(), nil)
	defer alone.Hold(ref, of("x"))()
	b.n++
	require.NoError(t, b.readFrom(blob.Origin{Reference: ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		return alone.Hosts(ctx, ref)
	}}))
}

func TestBasicCredentials(t *testing.T) {
	b := newBench(t)
	b.reg.RequireBasic("user", "secret")
	ref := b.reg.Reference("repo:tag")
	wrong, _ := b.connect(&login{user: "user", password: "old"})
	good, _ := b.connect(&login{user: "user", password: "secret"})
	defer b.r.Hold(ref, of(wrong, good))()
	require.NoError(t, b.read(ref))
}

func TestHostsOfOneSession(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	good, leave := b.connect(&login{user: "user", password: "secret"})
	wrong, _ := b.connect(&login{user: "user", password: "old"})
	data := []byte("checked")
	bl, err := b.store.Open(b.reg.AddBlob(data), blob.Origin{})
	require.NoError(t, err)
	defer bl.Close()
	check := func(id string) error {
		return bl.CheckOrigin(context.Background(), blob.Origin{Reference: ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
			return b.r.HostsOf(ctx, ref, id)
		}})
	}
	require.NoError(t, check(good))
	require.Error(t, check(wrong), "its own rights count, not those of others")
	leave()
	require.ErrorIs(t, check(good), bksession.ErrNoActiveSessions)
}

func TestMirrorsComeFirst(t *testing.T) {
	hosts := func(host string) ([]docker.RegistryHost, error) {
		require.Equal(t, "registry.example", host)
		return []docker.RegistryHost{
			{Host: "mirror.example", Scheme: "https", Path: "/v2", Capabilities: docker.HostCapabilityPull},
			{Host: host, Scheme: "https", Path: "/v2", Capabilities: docker.HostCapabilityPull},
		}, nil
	}
	got, err := session.New(hosts, nil).Hosts(context.Background(), "registry.example/repo:tag")
	require.NoError(t, err)
	require.Len(t, got, 2)
	require.Equal(t, "mirror.example", got[0].Host)
	require.NotNil(t, got[0].Authorizer)
	require.NotSame(t, got[0].Authorizer, got[1].Authorizer)
	_, err = session.New(hosts, nil).Hosts(context.Background(), "://")
	require.Error(t, err)
}

package session_test

import (
	"context"
	"crypto/rand"
	"net/http"
	"testing"
	"time"

	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/session/auth"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/nacl/sign"
	"google.golang.org/grpc"

	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// authority is a client that keeps its password to itself and fetches tokens, as
// docker's and BuildKit's clients do.
type authority struct {
	auth.UnimplementedAuthServer
	password string
	pub      *[32]byte
	key      *[64]byte
}

func newAuthority(t *testing.T, password string) *authority {
	pub, key, err := sign.GenerateKey(rand.Reader)
	require.NoError(t, err)
	return &authority{password: password, pub: pub, key: key}
}

func (a *authority) Register(s *grpc.Server) { auth.RegisterAuthServer(s, a) }

func (a *authority) GetTokenAuthority(context.Context, *auth.GetTokenAuthorityRequest) (*auth.GetTokenAuthorityResponse, error) {
	return &auth.GetTokenAuthorityResponse{PublicKey: a.pub[:]}, nil
}

func (a *authority) VerifyTokenAuthority(_ context.Context, req *auth.VerifyTokenAuthorityRequest) (*auth.VerifyTokenAuthorityResponse, error) {
	return &auth.VerifyTokenAuthorityResponse{Signed: sign.Sign(nil, req.Payload, a.key)}, nil
}

func (a *authority) FetchToken(ctx context.Context, req *auth.FetchTokenRequest) (*auth.FetchTokenResponse, error) {
	resp, err := dockerauth.FetchToken(ctx, http.DefaultClient, nil, dockerauth.TokenOptions{
		Realm: req.Realm, Service: req.Service, Scopes: req.Scopes, Username: "user", Secret: a.password,
	})
	if err != nil {
		return nil, err
	}
	return &auth.FetchTokenResponse{Token: resp.Token, ExpiresIn: int64(resp.ExpiresInSeconds), IssuedAt: resp.IssuedAt.Unix()}, nil
}

func TestClientsThatFetchTokens(t *testing.T) {
	p := newProver(t)
	defer http.DefaultClient.CloseIdleConnections()
	good, leave := p.connect(newAuthority(t, "secret"))
	bad, _ := p.connect(newAuthority(t, "old"))
	other, _ := p.good()
	defer p.r.Hold(p.ref, of(bad, other, good))()
	require.NoError(t, p.prove(good))
	refusal(t, p.prove(bad))
	require.NoError(t, p.prove(other))
	refusal(t, p.prove(bad))
	require.NoError(t, p.read(p.ref))
	begin := time.Now()
	hold := p.r.Hold(p.reg.Reference("alone:v1"), of(bad))
	require.ErrorIs(t, p.read(p.reg.Reference("alone:v1")), errdefs.ErrUnauthenticated)
	require.Less(t, time.Since(begin), 3*time.Second, "a refusal is not tried until it goes away")
	hold()

	busy := p.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Blob != "" }, Status: http.StatusServiceUnavailable})
	fresh, _ := p.connect(newAuthority(t, "secret"))
	unknown(t, p.prove(fresh))
	busy.Clear()
	require.NoError(t, p.prove(fresh))
	leave()
	unknown(t, p.prove(good))
}

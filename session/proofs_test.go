package session_test

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
	"github.com/lazykit/lazykit/session"
)

// prover asks a registry what sessions may read, and counts.
type prover struct {
	*bench
	blob  *blob.Blob
	ref   string
	asked atomic.Int32
}

func newProver(t *testing.T) *prover {
	b := newBench(t)
	bl, err := b.store.Open(b.reg.AddBlob([]byte("a layer")), blob.Origin{})
	require.NoError(t, err)
	t.Cleanup(func() { bl.Close() })
	return &prover{bench: b, blob: bl, ref: b.reg.Reference("repo:tag")}
}

func (p *prover) check(ctx context.Context, id string) error {
	p.asked.Add(1)
	return p.blob.CheckOrigin(ctx, blob.Origin{Reference: p.ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		return p.r.HostsOf(ctx, p.ref, id)
	}})
}

func (p *prover) prove(ids ...string) error {
	return p.r.Prove(context.Background(), p.ref, of(ids...), p.check)
}

// refusal fails the test unless err says that nobody may.
func refusal(t *testing.T, err error) {
	t.Helper()
	require.True(t, errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err), "%v", err)
	require.False(t, errdefs.IsUnavailable(err), "%v", err)
}

// unknown fails the test unless err says that nobody could be asked.
func unknown(t *testing.T, err error) {
	t.Helper()
	require.True(t, errdefs.IsUnavailable(err), "%v", err)
	require.False(t, errdefs.IsUnauthorized(err) || errdefs.IsPermissionDenied(err) || errdefs.IsNotFound(err), "%v", err)
}

func TestRightsAreProvedOnce(t *testing.T) {
	p := newProver(t)
	good, leave := p.good()
	require.NoError(t, p.prove(good))
	require.NoError(t, p.prove(good))
	require.NoError(t, p.prove("dead", p.bad(), good), "one of them is enough, and was asked before")
	require.EqualValues(t, 1, p.asked.Load())
	require.NoError(t, p.r.Prove(t.Context(), p.reg.Reference("repo:v2"), of(good), p.check), "the repository counts")
	require.EqualValues(t, 1, p.asked.Load())
	require.NoError(t, p.r.Prove(t.Context(), p.reg.Reference("other:v2"), of(good), p.check))
	require.EqualValues(t, 2, p.asked.Load(), "another repository")
	leave()
	start := time.Now()
	unknown(t, p.prove(good))
	require.Less(t, time.Since(start), 2*time.Second, "no waiting for a session that is gone")
}

func TestNoProofThroughTheTokenOfAnother(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	bad := p.bad()
	bare, _ := p.connect(nil)
	empty, _ := p.connect(&login{})
	defer p.r.Hold(p.ref, of(good, bad, bare, empty))()
	require.NoError(t, p.prove(good))
	require.NoError(t, p.read(p.ref), "a token is at hand")
	for _, id := range []string{bad, bare, empty} {
		for range 2 {
			err := p.prove(id)
			refusal(t, err)
			require.ErrorContains(t, err, id)
		}
	}
	require.EqualValues(t, 7, p.asked.Load(), "a no is not remembered")
	refusal(t, p.prove(bad, bare, empty))
	refusal(t, p.prove())
	require.NoError(t, p.prove(good))
}

func TestNoProofThroughTheRedirectOfAnother(t *testing.T) {
	p := newProver(t)
	p.reg.Redirect(time.Hour)
	p.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Method == http.MethodHead }, Status: http.StatusMethodNotAllowed})
	good, _ := p.good()
	defer p.r.Hold(p.ref, of(good))()
	p.blob.AddOrigin(blob.Origin{Reference: p.ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		return p.r.Hosts(ctx, p.ref)
	}})
	_, err := p.blob.ReadAt(t.Context(), blob.Blocked, make([]byte, 3), 0)
	require.NoError(t, err, "the address that the registry redirected to is known")
	refusal(t, p.prove(p.bad()))
	require.NoError(t, p.prove(good))
}

func TestRevokedRights(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	defer p.r.Hold(p.ref, of(good))()
	require.NoError(t, p.prove(good))
	p.reg.RequireToken("user", "changed", time.Hour)
	require.ErrorIs(t, p.read(p.ref), errdefs.ErrUnauthenticated)
	refusal(t, p.prove(good))
	p.reg.RequireToken("user", "secret", time.Hour)
	require.NoError(t, p.prove(good))
}

func TestForbidden(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	f := p.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Blob != "" }, Status: http.StatusForbidden})
	err := p.prove(good)
	require.True(t, errdefs.IsPermissionDenied(err), "%v", err)
	f.Clear()
	require.NoError(t, p.prove(good))
}

func TestExpiredTokenIsRenewed(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	require.NoError(t, p.prove(good))
	p.reg.RevokeTokens()
	later, _ := p.good()
	require.NoError(t, p.prove(later))
}

func TestVouch(t *testing.T) {
	p := newProver(t)
	bad := p.bad()
	p.r.Vouch(p.reg.Reference("repo@sha256:0123456789012345678901234567890123456789012345678901234567890123"), bad, "dead", "")
	p.r.Vouch("://", bad)
	require.NoError(t, p.prove(bad))
	require.Zero(t, p.asked.Load())
	unknown(t, p.prove("dead"))
	require.Error(t, p.r.Prove(t.Context(), "://", of(bad), p.check))
}

func TestNobodyCanBeAsked(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	unknown(t, p.prove("dead"))
	p.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Blob != "" }, Status: http.StatusServiceUnavailable})
	unknown(t, p.prove(good))
	unknown(t, p.prove(p.bad(), good))
	p.reg.Stop()
	unknown(t, p.prove(good))
	unknown(t, p.prove())
}

func TestPublicImagesNeedNoRights(t *testing.T) {
	p := newProver(t)
	p.reg.RequireToken("", "", time.Hour)
	bare, _ := p.connect(nil)
	require.NoError(t, p.prove())
	require.NoError(t, p.prove("dead"))
	require.NoError(t, p.prove(bare))
	require.NoError(t, session.New(p.reg.AnonymousHosts(), nil).Prove(t.Context(), p.ref, nil, p.check))
}

func TestCallersShareOneProof(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	p.reg.SetLatency(50 * time.Millisecond)
	var wg sync.WaitGroup
	for range 30 {
		wg.Go(func() { require.NoError(t, p.prove(good)) })
	}
	wg.Wait()
	require.EqualValues(t, 1, p.asked.Load())
}

func TestCallerWhoLeavesTakesNoProofAway(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	gone := errors.New("gone")
	ctx, leave := context.WithCancelCause(t.Context())
	stuck := make(chan struct{})
	first := make(chan error, 1)
	go func() {
		first <- p.r.Prove(ctx, p.ref, of(good), func(ctx context.Context, id string) error {
			close(stuck)
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}()
	<-stuck
	second := make(chan error, 1)
	go func() { second <- p.prove(good) }()
	impatient, stop := context.WithCancelCause(t.Context())
	stop(gone)
	require.ErrorIs(t, p.r.Prove(impatient, p.ref, of(good), p.check), gone)
	leave(gone)
	require.ErrorIs(t, <-first, gone)
	require.NoError(t, <-second)
}

func TestOneMissingLayerSpeaksForNoOther(t *testing.T) {
	p := newProver(t)
	good, _ := p.good()
	asked, answer := make(chan struct{}), make(chan struct{})
	missing := make(chan error, 1)
	go func() {
		missing <- p.r.Prove(t.Context(), p.ref, of(good), func(context.Context, string) error {
			close(asked)
			<-answer
			return errdefs.ErrNotFound
		})
	}()
	<-asked
	there := make(chan error, 1)
	go func() { there <- p.prove(good) }()
	close(answer)
	require.ErrorIs(t, <-missing, errdefs.ErrNotFound)
	require.NoError(t, <-there)
}

package session_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// group is a session group that can grow.
type group struct {
	mu  sync.Mutex
	ids []string
}

func (g *group) sessions() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.ids...)
}

func (g *group) add(ids ...string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ids = append(g.ids, ids...)
}

func of(ids ...string) func() []string { return func() []string { return ids } }

var goodLogin = login{user: "user", password: "secret"}

func (b *bench) good() (id string, leave func()) {
	return b.connect(&login{user: goodLogin.user, password: goodLogin.password})
}

func (b *bench) bad() string {
	id, _ := b.connect(&login{user: "user", password: "old"})
	return id
}

func TestHoldsOfTwoCallers(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	one, _ := b.good()
	two, _ := b.good()
	releaseOne := b.r.Hold(ref, of(one))
	releaseTwo := b.r.Hold(b.reg.Reference("repo:other"), of(two))
	require.NoError(t, b.read(ref))
	releaseTwo()
	b.reg.RevokeTokens()
	require.NoError(t, b.read(ref), "the other caller's hold goes on")
	releaseTwo()
	require.NoError(t, b.read(ref), "released twice is once")
	again := b.r.Hold(ref, of(one))
	again()
	require.NoError(t, b.read(ref), "each hold has an end of its own, even of the same session")
	releaseOne()
	require.ErrorIs(t, b.read(ref), errdefs.ErrUnauthenticated)
}

func TestSessionThatConnectsLater(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	g := &group{}
	g.add("never there", "")
	defer b.r.Hold(ref, g.sessions)()
	start := time.Now()
	require.ErrorIs(t, b.read(ref), errdefs.ErrUnauthenticated)
	id, leave := b.good()
	g.add(id)
	require.NoError(t, b.read(ref), "the group has grown")
	leave()
	require.ErrorIs(t, b.read(ref), errdefs.ErrUnauthenticated)
	later, _ := b.good()
	g.add(later)
	require.NoError(t, b.read(ref), "and grows again")
	require.Less(t, time.Since(start), 3*time.Second, "nobody was waited for")
}

func TestDeadSessionsOfAHoldCostNothing(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	var ids []string
	for i := range 100 {
		ids = append(ids, fmt.Sprintf("dead%d", i))
	}
	id, _ := b.good()
	defer b.r.Hold(ref, of(append(ids, id)...))()
	start := time.Now()
	require.NoError(t, b.read(ref))
	require.Less(t, time.Since(start), 2*time.Second)
}

func TestReleaseDuringARequest(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	id, _ := b.good()
	release := b.r.Hold(ref, of(id))
	require.NoError(t, b.read(ref), "has a token")
	const size = 1 << 20
	dgst := b.reg.AddBlob(make([]byte, size))
	fault := b.reg.Fault(blobtest.Fault{Stall: true, After: 64 << 10, Times: 1})
	bl, err := b.store.Open(dgst, blob.Origin{Reference: ref, Hosts: func(ctx context.Context) ([]docker.RegistryHost, error) {
		return b.r.Hosts(ctx, ref)
	}})
	require.NoError(t, err)
	defer bl.Close()
	done := make(chan error, 1)
	go func() {
		_, err := bl.ReadAt(context.Background(), blob.Blocked, make([]byte, 1000), 1000)
		done <- err
	}()
	require.NoError(t, <-done, "these bytes came before the stall")
	require.Equal(t, 1, fault.Hits())
	release()
	hosts, err := b.r.Hosts(context.Background(), ref)
	require.NoError(t, err)
	require.Len(t, hosts, 1)
	_, err = bl.ReadAt(context.Background(), blob.Blocked, make([]byte, 1000), size-1000)
	require.ErrorIs(t, err, errdefs.ErrUnauthenticated, "what is asked for later has no credentials")
}

func TestHostsKeepTheirSessionAfterARelease(t *testing.T) {
	b := newBench(t)
	ref := b.reg.Reference("repo:tag")
	id, _ := b.good()
	release := b.r.Hold(ref, of(id))
	hosts, err := b.r.Hosts(context.Background(), ref)
	require.NoError(t, err)
	release()
	b.n++
	require.NoError(t, b.readFrom(blob.Origin{Reference: ref, Hosts: func(context.Context) ([]docker.RegistryHost, error) {
		return hosts, nil
	}}), "the request was under way")
}

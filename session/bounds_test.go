package session

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	bksession "github.com/moby/buildkit/session"
	"github.com/stretchr/testify/require"
)

func TestHoldsLeaveNothingBehind(t *testing.T) {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	r := New(nil, sm)
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			release := r.Hold("host/repo:tag", func() []string { return []string{fmt.Sprint(i)} })
			r.sessionsOf("host/repo")
			r.failed(claim{"host/repo", fmt.Sprint(i)}, true)
			release()
			release()
		})
	}
	wg.Wait()
	require.Empty(t, r.mu.repos)
	for _, ref := range []string{"not a reference", ""} {
		r.Hold(ref, func() []string { return nil })()
	}
	r.Hold("host/repo", nil)()
	r.failed(claim{"host/repo", "x"}, true)
	require.Empty(t, r.mu.repos, "after the last release nothing is noted")
}

func TestOrderOfSessions(t *testing.T) {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	r := New(nil, sm)
	const repo = "host/repo"
	first := []string{"a", "b", "", "a"}
	defer r.Hold(repo, func() []string { return first })()
	order := func() []string { return r.ranked(repo, r.named(repo)) }
	require.Equal(t, []string{"a", "b"}, order())
	release := r.Hold(repo, func() []string { return []string{"c", "b"} })
	require.Equal(t, []string{"c", "b", "a"}, order(), "the newest hold first, each session once")
	r.failed(claim{repo, "c"}, true)
	r.failed(claim{repo, "b"}, true)
	require.Equal(t, []string{"a", "c", "b"}, order(), "those that were refused last, the earliest first")
	first = append(first, "d")
	require.Equal(t, []string{"a", "d", "c", "b"}, order(), "a group has grown")
	release()
	require.Equal(t, []string{"a", "d", "b"}, order())
	require.Len(t, r.mu.repos[repo].refused, 1, "who is not named any more is forgotten")

	many := make([]string, 10*maxNamed)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	defer r.Hold(repo, func() []string { return many })()
	require.Len(t, order(), maxNamed)
}

// connect makes a session that is connected until the test ends.
func connect(t *testing.T, sm *bksession.Manager, id string) (leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	client, server := net.Pipe()
	go func() {
		defer close(done)
		sm.HandleConn(ctx, server, map[string][]string{"X-Docker-Expose-Session-Uuid": {id}})
	}()
	require.Eventually(t, func() bool {
		c, err := sm.Get(ctx, id, true)
		return err == nil && c != nil
	}, 5*time.Second, time.Millisecond)
	leave = func() {
		cancel()
		client.Close()
		<-done
	}
	t.Cleanup(leave)
	return leave
}

func TestProofsAreBounded(t *testing.T) {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	r := New(nil, sm)
	connect(t, sm, "alive")
	leave := connect(t, sm, "leaving")
	for i := range maxProofs + 100 {
		r.Vouch(fmt.Sprintf("host/repo%d", i), "alive", "never connected")
	}
	require.Len(t, r.mu.proofs, maxProofs)
	clear(r.mu.proofs)
	r.mu.forgetAt = firstForget
	for i := range firstForget {
		r.Vouch(fmt.Sprintf("host/repo%d", i), "leaving")
	}
	leave()
	r.Vouch("host/repo", "alive")
	require.Len(t, r.mu.proofs, 1, "those of sessions that are gone are forgotten")

	leave = connect(t, sm, "leaving")
	r.Vouch("host/repo", "leaving")
	require.True(t, r.proven(claim{"host/repo", "leaving"}))
	leave()
	connect(t, sm, "leaving")
	require.False(t, r.proven(claim{"host/repo", "leaving"}), "another session of the same name")
	require.True(t, r.proven(claim{"host/repo", "alive"}))
	r.failed(claim{"host/repo", "alive"}, false)
	require.True(t, r.proven(claim{"host/repo", "alive"}), "a fault is no refusal")
	r.failed(claim{"host/repo", "alive"}, true)
	require.False(t, r.proven(claim{"host/repo", "alive"}))
}

func TestProvenSessionsAreAskedFirst(t *testing.T) {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	r := New(nil, sm)
	for i := range maxSessions + 4 {
		connect(t, sm, fmt.Sprint(i))
	}
	const repo = "host/repo"
	ids := make([]string, maxSessions+4)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	defer r.Hold(repo, func() []string { return slices.Clone(ids) })()
	last := ids[len(ids)-1]
	require.Len(t, r.sessionsOf(repo), maxSessions)
	require.NotContains(t, r.sessionsOf(repo), last)
	r.Vouch(repo, last)
	require.Equal(t, last, r.sessionsOf(repo)[0])
}

package session

import (
	"fmt"
	"testing"
	"time"

	bksession "github.com/moby/buildkit/session"
	"github.com/stretchr/testify/require"
)

func TestRegistryStaysSmall(t *testing.T) {
	sm, err := bksession.NewManager()
	require.NoError(t, err)
	r := New(nil, sm)
	for i := range 100 {
		r.Attach("host/repo:tag", fmt.Sprint(i), fmt.Sprint(i), "")
	}
	require.Len(t, r.mu.repos["host/repo"], maxSessions)
	require.Equal(t, "99", r.mu.repos["host/repo"][0].id, "the newest first")
	r.Attach("not a reference", "x")
	require.Len(t, r.mu.repos, 1)

	require.Empty(t, r.aliveLocked("host/repo", time.Now()))
	require.Len(t, r.mu.repos["host/repo"], maxSessions, "they may be about to connect")
	require.Empty(t, r.aliveLocked("host/repo", time.Now().Add(2*grace)))
	require.Empty(t, r.mu.repos, "gone for good")

	for i := range 3 * firstSweep {
		r.Attach(fmt.Sprintf("host/repo%d", i), "x")
		for repo := range r.mu.repos { // time passes
			for j := range r.mu.repos[repo] {
				r.mu.repos[repo][j].since = time.Now().Add(-2 * grace)
			}
		}
	}
	require.Less(t, len(r.mu.repos), firstSweep)
}

package session

import (
	"context"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	bksession "github.com/moby/buildkit/session"
)

// Registry knows which sessions may authenticate reads of which repository.
type Registry struct{ _ int }

// New uses hosts for the registry configuration (mirrors, TLS, plain HTTP) and
// sm to reach the clients that hold credentials.
func New(hosts docker.RegistryHosts, sm *bksession.Manager) *Registry { panic("skeleton") }

// Attach lets reads of ref's repository use the sessions from now on. Sessions
// that have ended are forgotten by themselves.
func (r *Registry) Attach(ref string, ids ...string) { panic("skeleton") }

// Hosts returns the hosts to ask for blobs of ref's repository, mirrors first,
// with authorizers that go through the attached sessions that are alive (without
// one: anonymously). Cheap enough for each fetch: it never waits for a session
// that is gone.
func (r *Registry) Hosts(ctx context.Context, ref string) ([]docker.RegistryHost, error) {
	panic("skeleton")
}

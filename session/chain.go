package session

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"sync"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	remoteserrors "github.com/containerd/containerd/v2/core/remotes/errors"
)

// sessionTries is how often one session may answer refusals of a request: a stale
// token first, then the new one.
const sessionTries = 3

// errRefused says that no session could satisfy the registry.
var errRefused = errors.New("no session is accepted by the registry")

// chain is an authorizer that speaks for one session after the other.
type chain struct {
	// failed is told which of the authorizers could not satisfy the host, and
	// whether the host has refused it.
	failed func(n int, refused bool)

	mu    sync.Mutex
	auths []docker.Authorizer
	cur   int
	tries int
}

var _ docker.Authorizer = (*chain)(nil)

func (c *chain) add(a docker.Authorizer) {
	if a != nil {
		c.auths = append(c.auths, a)
	}
}

// Authorize adds the credentials of the current session. A session that can't
// give any (the client is just leaving, its token endpoint refuses) is passed over.
func (c *chain) Authorize(ctx context.Context, req *http.Request) error {
	for {
		a, _ := c.current(nil)
		if a == nil {
			return nil
		}
		err := typed(a.Authorize(ctx, req))
		if err == nil || ctx.Err() != nil || !c.next(isRefusedToken(err)) {
			return err
		}
	}
}

// AddResponses lets the current session answer a refusal; the next one takes over
// when it can't. An error means that all have been tried.
func (c *chain) AddResponses(ctx context.Context, responses []*http.Response) error {
	a, own := c.current(responses)
	if a == nil {
		return errRefused
	}
	err := errRefused
	if own != nil {
		err = a.AddResponses(ctx, own)
	}
	if err == nil || ctx.Err() != nil || !c.next(true) {
		return err
	}
	return nil // the request is sent again, and its refusal goes to the next session
}

// isRefusedToken says whether err is the answer of a token server that a session
// may not have a token, rather than a fault on the way to it.
func isRefusedToken(err error) bool {
	var us remoteserrors.ErrUnexpectedStatus
	if errors.As(err, &us) {
		return us.StatusCode == http.StatusUnauthorized || us.StatusCode == http.StatusForbidden || us.StatusCode == http.StatusBadRequest
	}
	return errors.Is(err, docker.ErrInvalidAuthorization)
}

// refusedByToken is what containerd's ErrUnexpectedStatus says of a refusal.
var refusedByToken = regexp.MustCompile(`unexpected status from \w+ request to \S+: (400|401|403)\b`)

// typed gives an error that came from a client back its type: most clients fetch
// tokens themselves, and of a token server's answer only the text gets here.
func typed(err error) error {
	if err == nil || isRefusedToken(err) || !refusedByToken.MatchString(err.Error()) {
		return err
	}
	return fmt.Errorf("%w: %w", docker.ErrInvalidAuthorization, err)
}

// current returns the session's authorizer and those of the responses that it is
// answerable for; nil ones when it has had its tries.
func (c *chain) current(responses []*http.Response) (docker.Authorizer, []*http.Response) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cur >= len(c.auths) {
		return nil, nil
	}
	if responses == nil {
		return c.auths[c.cur], nil
	}
	if c.tries++; c.tries > sessionTries {
		return c.auths[c.cur], nil
	}
	own := responses[max(0, len(responses)-c.tries):]
	return c.auths[c.cur], own
}

// NextIdentity goes on to the next session, for refusals that are no question of
// authentication (forbidden, not found). It returns false when there is none.
func (c *chain) NextIdentity() bool { return c.next(true) }

func (c *chain) next(refused bool) bool {
	c.mu.Lock()
	failed := c.cur
	more := failed+1 < len(c.auths)
	if more {
		c.cur++
		c.tries = 0
	}
	c.mu.Unlock()
	c.failed(failed, refused)
	return more
}

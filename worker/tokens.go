package worker

import (
	"crypto/sha256"
	"net/http"
	"strings"
	"sync"
)

// Authorizers get a new token when a registry answers 401 with a challenge that says
// invalid_token. Some registries answer to a token that has expired without that
// word, which RFC 6750 merely recommends, or with 403 and no challenge at all. Their
// answers are turned into those that authorizers understand.

// maxTokens bounds how many tokens are remembered. They live for minutes.
const maxTokens = 1024

// tokens are those that a registry has accepted, by their hashes.
type tokens struct {
	mu     sync.Mutex
	worked map[[sha256.Size]byte]struct{}
}

// bearer is the token of a request, "" for none.
func bearer(req *http.Request) string {
	token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	return token
}

// accepted notes that the token of a request is a good one.
func (t *tokens) accepted(token string) {
	key := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.worked == nil || len(t.worked) >= maxTokens {
		t.worked = map[[sha256.Size]byte]struct{}{}
	}
	t.worked[key] = struct{}{}
}

// good says whether a token was accepted at some time.
func (t *tokens) good(token string) bool {
	key := sha256.Sum256([]byte(token))
	t.mu.Lock()
	defer t.mu.Unlock()
	_, ok := t.worked[key]
	return ok
}

// refused makes of an answer to a token the one that has it renewed, if that may
// help. A new token is not good before it was accepted: so a right that was taken away
// stays a 403.
func (p *patient) refused(req *http.Request, resp *http.Response) *http.Response {
	token := bearer(req)
	if token == "" {
		return resp
	}
	switch {
	case resp.StatusCode == http.StatusUnauthorized:
	case resp.StatusCode == http.StatusForbidden && p.tokens.good(token):
		challenge := p.challenge(req)
		if challenge == nil {
			return resp
		}
		resp.Body.Close()
		resp = challenge
	case resp.StatusCode < 400:
		p.tokens.accepted(token)
		return resp
	default:
		return resp
	}
	for i, c := range resp.Header["Www-Authenticate"] {
		if isBearer(c) && !strings.Contains(c, "error=") {
			resp.Header["Www-Authenticate"][i] = c + `,error="invalid_token"`
		}
	}
	return resp
}

func isBearer(challenge string) bool {
	return strings.HasPrefix(strings.ToLower(challenge), "bearer ")
}

// challenge asks without a token, to be told where to get one; nil when the registry
// does not say.
func (p *patient) challenge(req *http.Request) *http.Response {
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		return nil
	}
	bare := req.Clone(req.Context())
	bare.Header.Del("Authorization")
	resp, err := p.next.RoundTrip(bare)
	if err != nil {
		return nil
	}
	if resp.StatusCode == http.StatusUnauthorized {
		for _, c := range resp.Header["Www-Authenticate"] {
			if isBearer(c) {
				resp.Request = req // whose token it was
				return resp
			}
		}
	}
	resp.Body.Close()
	return nil
}

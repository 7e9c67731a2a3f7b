package blobtest

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// auth is what the registry asks of its clients.
type auth struct {
	scheme         string // "", "basic" or "bearer"
	user, password string
	ttl            time.Duration
	claim          time.Duration
	tokens         map[string]token
	issued         int
}

type token struct {
	scopes  string
	expires time.Time
}

// RequireBasic asks every request for user and password.
func (r *Registry) RequireBasic(user, password string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = auth{scheme: "basic", user: user, password: password}
}

// RequireToken asks for a bearer token of the repository, which the registry's
// token endpoint gives to user and password (to anybody when user is ""). A token
// is valid for ttl, and says so in whole seconds, at least 60 as the
// specification asks for: a short ttl expires before it was promised to.
func (r *Registry) RequireToken(user, password string, ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.auth = auth{scheme: "bearer", user: user, password: password, ttl: ttl, claim: max(ttl, time.Minute), tokens: map[string]token{}}
}

// RevokeTokens makes all tokens given out so far invalid.
func (r *Registry) RevokeTokens() {
	r.mu.Lock()
	defer r.mu.Unlock()
	clear(r.auth.tokens)
}

// TokensIssued is how many tokens were given out.
func (r *Registry) TokensIssued() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.auth.issued
}

// challenge returns the WWW-Authenticate header that refuses req, "" when it may pass.
func (r *Registry) challenge(req *http.Request, repo string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch r.auth.scheme {
	case "basic":
		if u, p, ok := req.BasicAuth(); ok && u == r.auth.user && p == r.auth.password {
			return ""
		}
		return `Basic realm="blobtest"`
	case "bearer":
		scope := "repository:" + repo + ":pull"
		given, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
		t, ok := r.auth.tokens[given]
		if ok && time.Now().Before(t.expires) && strings.Contains(" "+t.scopes+" ", " "+scope+" ") {
			return ""
		}
		c := fmt.Sprintf(`Bearer realm="http://%s/token",service="blobtest",scope=%q`, r.Host(), scope)
		if given != "" {
			c += `,error="invalid_token"`
		}
		return c
	}
	return ""
}

// guarded lets one goroutine at a time use an authorizer, and makes a new one after
// an error: containerd's races with itself when two find an expired token, and
// never recovers from a token request that was cancelled.
type guarded struct {
	mu    sync.Mutex
	fresh func() docker.Authorizer
	next  docker.Authorizer
}

func (g *guarded) Authorize(ctx context.Context, req *http.Request) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = g.fresh()
	}
	err := g.next.Authorize(ctx, req)
	if err != nil {
		g.next = nil
	}
	return err
}

func (g *guarded) AddResponses(ctx context.Context, responses []*http.Response) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.next == nil {
		g.next = g.fresh()
	}
	return g.next.AddResponses(ctx, responses)
}

// serveToken gives tokens by GET (scopes in the query) and POST (OAuth2).
func (r *Registry) serveToken(w http.ResponseWriter, req *http.Request) {
	if err := req.ParseForm(); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	user, password, _ := req.BasicAuth()
	if req.Method == http.MethodPost {
		user, password = req.PostForm.Get("username"), req.PostForm.Get("password")
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.auth.user != "" && (user != r.auth.user || password != r.auth.password) {
		http.Error(w, "wrong credentials", http.StatusUnauthorized)
		return
	}
	text := rand.Text()
	r.auth.issued++
	if r.auth.tokens != nil {
		r.auth.tokens[text] = token{strings.Join(req.Form["scope"], " "), time.Now().Add(r.auth.ttl)}
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{
		"token": text, "access_token": text,
		"expires_in": int(r.auth.claim / time.Second),
		"issued_at":  time.Now().UTC().Format(time.RFC3339),
	})
}

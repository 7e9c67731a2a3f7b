package fault

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Options describe a Proxy. The zero value of all but Upstream is a proxy that only
// passes requests on.
type Options struct {
	Upstream string           // host:port of the registry, which speaks plain HTTP
	Seed     uint64           // of where faults strike in bodies
	Tails    map[string]int64 // where the tables of contents begin, by digest of the layer
	Configs  []string         // digests of images' configs

	TokenTTL    time.Duration // bearer tokens are asked for that live so long; 0: none are
	Forbid      bool          // tokens that have ended are refused by 403 without a challenge, as some registries do
	Password    string        // that the token server wants of user "user"; "": it gives tokens to anybody
	RedirectTTL time.Duration // blobs are redirected to addresses that live so long; 0: they are not
}

// Proxy is a registry's front on loopback. Its methods may be called from several
// goroutines.
type Proxy struct {
	Addr string // host:port

	opts    Options
	configs map[string]bool
	client  *http.Client
	server  *http.Server
	closing chan struct{}
	running sync.WaitGroup

	mu struct {
		sync.Mutex
		rnd      *mrand.Rand
		faults   []*struck
		listener net.Listener // nil: down
		up       *time.Timer  // ends a time of refused connections
		tokens   map[string]time.Time
		issued   int
		revoked  bool
		conns    map[net.Conn]struct{}
	}
}

// New starts a proxy. Close it.
func New(opts Options) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("start the fault proxy: %w", err)
	}
	p := &Proxy{Addr: l.Addr().String(), opts: opts, configs: map[string]bool{}, closing: make(chan struct{})}
	for _, d := range opts.Configs {
		p.configs[d] = true
	}
	p.client = &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 32}}
	p.mu.rnd = mrand.New(mrand.NewPCG(opts.Seed, 1))
	p.mu.tokens, p.mu.conns = map[string]time.Time{}, map[net.Conn]struct{}{}
	p.server = &http.Server{Handler: p, ConnState: p.track}
	p.mu.listener = l
	p.serve(l)
	return p, nil
}

func (p *Proxy) serve(l net.Listener) {
	p.running.Go(func() { p.server.Serve(l) }) // ends when l is closed, with an error that says so
}

// track knows the open connections, to be able to reset them.
func (p *Proxy) track(c net.Conn, s http.ConnState) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch s {
	case http.StateNew:
		p.mu.conns[c] = struct{}{}
	case http.StateClosed, http.StateHijacked:
		delete(p.mu.conns, c)
	}
}

// Close ends the proxy and all connections.
func (p *Proxy) Close() {
	close(p.closing)
	p.mu.Lock()
	if p.mu.up != nil {
		p.mu.up.Stop()
	}
	p.mu.Unlock()
	p.server.Close()
	p.running.Wait()
	p.client.CloseIdleConnections()
}

// Set makes these faults the only ones from now on; the first that matches a request hits it.
func (p *Proxy) Set(faults ...Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.faults = nil
	for _, f := range faults {
		p.mu.faults = append(p.mu.faults, &struck{Fault: f})
	}
}

// Hits is how many requests the present faults have hit.
func (p *Proxy) Hits() (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.mu.faults {
		n += f.hits
	}
	return n
}

// TokensIssued is how many tokens were given out.
func (p *Proxy) TokensIssued() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.issued
}

// Revoke takes all rights away: tokens end, and new ones are refused.
func (p *Proxy) Revoke() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.revoked = true
	clear(p.mu.tokens)
}

// strike returns the fault that a request meets, nil for none.
func (p *Proxy) strike(k Kind, head bool) *Fault {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.mu.faults {
		if s.strikes(k, head, time.Now()) {
			return &s.Fault
		}
	}
	return nil
}

// random is a number from 0 to n-1.
func (p *Proxy) random(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.rnd.IntN(max(n, 1))
}

// ServeHTTP implements http.Handler.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k := kind(r, p.opts.Tails, p.configs)
	f := p.strike(k, r.Method == http.MethodHead)
	if f == nil {
		f = &Fault{}
	}
	switch {
	case f.Refuse:
		p.down(f.For)
		reset(w) // it may have come while connections were ended
		return
	case f.Reset:
		reset(w)
		return
	case f.Hang:
		p.wait(r, f.For)
		reset(w)
		return
	case f.Status > 0:
		if f.RetryAfter != "" {
			w.Header().Set("Retry-After", f.RetryAfter)
		}
		http.Error(w, "out of order", f.Status)
		return
	case f.Delay > 0:
		p.wait(r, f.Delay)
	}
	if k == Token {
		p.token(w, r)
		return
	}
	path, ok := p.admit(w, r)
	if !ok {
		return
	}
	p.pass(w, r, path, f)
}

// admit asks for tokens and redirects. It returns the path to ask the registry for.
func (p *Proxy) admit(w http.ResponseWriter, r *http.Request) (path string, ok bool) {
	if rest, signed := strings.CutPrefix(r.URL.Path, "/signed/"); signed {
		until, err := strconv.ParseInt(r.URL.Query().Get("until"), 10, 64)
		if err != nil || time.Now().UnixNano() > until {
			http.Error(w, "the signature has expired", http.StatusForbidden)
			return "", false
		}
		return "/" + rest, true
	}
	if allowed, ended := p.allowed(r); ended && p.opts.Forbid {
		http.Error(w, "the token has expired", http.StatusForbidden)
		return "", false
	} else if !allowed {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",service="fault",scope=%q`, p.Addr, scope(r)))
		http.Error(w, "a token is needed", http.StatusUnauthorized)
		return "", false
	}
	if ttl := p.opts.RedirectTTL; ttl > 0 && r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
		q := url.Values{"until": {fmt.Sprint(time.Now().Add(ttl).UnixNano())}}
		http.Redirect(w, r, "http://"+p.Addr+"/signed"+r.URL.Path+"?"+q.Encode(), http.StatusTemporaryRedirect)
		return "", false
	}
	return r.URL.Path, true
}

// scope is what a token must be for to allow a request.
func scope(r *http.Request) string {
	repo := strings.TrimPrefix(r.URL.Path, "/v2/")
	for _, end := range []string{"/blobs/", "/manifests/"} {
		repo, _, _ = strings.Cut(repo, end)
	}
	return "repository:" + repo + ":pull"
}

// allowed says whether a request may pass and, if not, whether its token once did.
func (p *Proxy) allowed(r *http.Request) (ok, ended bool) {
	if p.opts.TokenTTL == 0 {
		return true, false
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	p.mu.Lock()
	defer p.mu.Unlock()
	until, given := p.mu.tokens[token]
	ok = time.Now().Before(until)
	return ok, given && !ok
}

// token gives a token out. It promises a minute, which is the least that clients
// expect, so a shorter life ends before it was promised to.
func (p *Proxy) token(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	if r.Method == http.MethodPost {
		user, password = r.PostFormValue("username"), r.PostFormValue("password")
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.revoked || p.opts.Password != "" && (user != "user" || password != p.opts.Password) {
		http.Error(w, "wrong credentials", http.StatusUnauthorized)
		return
	}
	text := rand.Text()
	p.mu.issued++
	p.mu.tokens[text] = time.Now().Add(p.opts.TokenTTL)
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"token": text, "access_token": text, "expires_in": 60}) // the client sees a short body
}

// wait waits for d, for ever when it is 0, or until client or proxy end.
func (p *Proxy) wait(r *http.Request, d time.Duration) {
	var over <-chan time.Time
	if d > 0 {
		over = time.After(d)
	}
	select {
	case <-over:
	case <-r.Context().Done():
	case <-p.closing:
	}
}

// down refuses connections for d, and resets those that are open.
func (p *Proxy) down(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.listener == nil {
		return
	}
	p.mu.listener.Close()
	p.mu.listener = nil
	for c := range p.mu.conns {
		linger0(c)
		c.Close()
	}
	if d > 0 {
		p.mu.up = time.AfterFunc(d, p.listenAgain)
	}
}

func (p *Proxy) listenAgain() {
	select {
	case <-p.closing:
		return
	default:
	}
	l, err := net.Listen("tcp", p.Addr)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err != nil { // a connection in TIME_WAIT: soon
		p.mu.up = time.AfterFunc(50*time.Millisecond, p.listenAgain)
		return
	}
	p.mu.listener = l
	p.serve(l)
}

// linger0 makes the end of a connection a reset.
func linger0(c net.Conn) {
	if tcp, ok := c.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
}

// reset ends the connection of a request without an answer.
func reset(w http.ResponseWriter) {
	c, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	linger0(c)
	c.Close()
}

// pass asks the registry and hands its answer on, as far as f lets it.
func (p *Proxy) pass(w http.ResponseWriter, r *http.Request, path string, f *Fault) {
	req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+p.opts.Upstream+path, nil)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	req.Header = r.Header.Clone()
	req.Header.Del("Authorization")
	if f.Whole {
		req.Header.Del("Range")
	}
	resp, err := p.client.Do(req)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	for k, v := range resp.Header {
		w.Header()[k] = v
	}
	if r.Method == http.MethodHead {
		w.WriteHeader(resp.StatusCode)
		return
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	p.answer(w, r, resp.StatusCode, body, f)
}

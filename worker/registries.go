package worker

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/resolver/config"
	"github.com/moby/buildkit/util/tracing"
)

const (
	// idlePerHost is how many connections to a registry are kept that nobody uses:
	// as many as a known profile's ranges are asked for over.
	idlePerHost = 40
	idleTime    = 30 * time.Second
)

// Registries are the hosts of BuildKit's registry configuration, with connections that
// are made for requests in parallel. BuildKit's own transports keep four of a host, and
// those of a host that is configured are made anew for each image. Safe for concurrent use.
type Registries struct {
	config map[string]config.RegistryConfig
	hosts  docker.RegistryHosts
	mu     struct {
		sync.Mutex
		closed     bool
		transports map[string]*transport // by host; "": of all that are not configured
	}
}

// transport has the connections to a host.
type transport struct {
	http     *http.Transport
	made     *connections
	fallback bool   // to plain HTTP
	stamp    string // of the files that it was made from
}

// client is for one image. A host that is found to speak plain HTTP is taken to for as long.
func (t *transport) client() *http.Client {
	var rt http.RoundTripper = t.http
	if t.fallback {
		rt = docker.NewHTTPFallback(rt)
	}
	return &http.Client{Transport: tracing.NewTransport(rt)}
}

func (t *transport) Close() {
	t.made.Close()
	t.http.CloseIdleConnections()
}

// NewRegistries returns the hosts that BuildKit's configuration names. Close them.
func NewRegistries(c map[string]config.RegistryConfig) *Registries {
	r := &Registries{config: c, hosts: resolver.NewRegistryConfig(c)}
	r.mu.transports = map[string]*transport{}
	return r
}

// Hosts is a docker.RegistryHosts. Certificates are read again when their files have changed.
func (r *Registries) Hosts(name string) ([]docker.RegistryHost, error) {
	all, err := r.hosts(name)
	if err != nil {
		return nil, err
	}
	for i := range all {
		h := &all[i]
		key := h.Host
		if i == len(all)-1 {
			key = name // docker.io has another address
		}
		c, ok := r.config[key]
		if !ok {
			key = ""
		}
		t, err := r.transport(key, h.Host, c)
		if err != nil {
			return nil, fmt.Errorf("registry %s: %w", h.Host, err)
		}
		h.Client = t.client()
	}
	return all, nil
}

// Expect makes connections for n requests that will soon be made to the origin of u, by the
// client of a registry's host. It waits for nothing.
func (r *Registries) Expect(host string, u *url.URL, n int) {
	r.mu.Lock()
	t := r.mu.transports[host]
	if host == "registry-1.docker.io" && t == nil {
		t = r.mu.transports["docker.io"]
	}
	if t == nil {
		t = r.mu.transports[""]
	}
	r.mu.Unlock()
	if t == nil {
		return
	}
	if proxy, err := t.http.Proxy(&http.Request{URL: u}); err != nil || proxy != nil {
		return
	}
	p := place{address: u.Host, secure: u.Scheme == "https"}
	if u.Port() == "" {
		port := "80"
		if p.secure {
			port = "443"
		}
		p.address = net.JoinHostPort(u.Hostname(), port)
	}
	t.made.Ahead(p, n)
}

// Close ends all connections that nobody uses.
func (r *Registries) Close() error {
	r.mu.Lock()
	r.mu.closed = true
	all := r.mu.transports
	r.mu.transports = map[string]*transport{}
	r.mu.Unlock()
	for _, t := range all {
		t.Close()
	}
	return nil
}

// transport returns the one of a configured host, or makes it.
func (r *Registries) transport(key, host string, c config.RegistryConfig) (*transport, error) {
	files := certificates(c)
	stamp := stampOf(files)
	r.mu.Lock()
	t := r.mu.transports[key]
	r.mu.Unlock()
	if t != nil && t.stamp == stamp {
		return t, nil
	}
	made, err := newTransport(files, c, host)
	if err != nil {
		return nil, err
	}
	made.stamp = stamp
	r.mu.Lock()
	old, closed := r.mu.transports[key], r.mu.closed
	if !closed {
		r.mu.transports[key] = made
	}
	r.mu.Unlock()
	if old != nil {
		old.Close() // requests that are made with it go on
	}
	if closed {
		return nil, net.ErrClosed
	}
	return made, nil
}

func newTransport(files files, c config.RegistryConfig, host string) (*transport, error) {
	tc, err := files.load()
	if err != nil {
		return nil, err
	}
	tc.InsecureSkipVerify = c.Insecure != nil && *c.Insecure
	d := newConnections(tc)
	t := &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           d.Dial,
		DialTLSContext:        d.DialTLS,
		TLSClientConfig:       tc, // behind a proxy
		TLSHandshakeTimeout:   handshakeTime,
		MaxIdleConns:          4 * idlePerHost,
		MaxIdleConnsPerHost:   idlePerHost,
		IdleConnTimeout:       idleTime,
		ExpectContinueTimeout: 5 * time.Second,
		// One connection of HTTP/2 has one window, which is too small for layers.
		TLSNextProto: map[string]func(string, *tls.Conn) http.RoundTripper{},
	}
	return &transport{http: t, made: d, fallback: tc.InsecureSkipVerify && isPlain(c, host)}, nil
}

// isPlain says whether a host may be spoken to without TLS.
func isPlain(c config.RegistryConfig, host string) bool {
	if c.PlainHTTP != nil {
		return *c.PlainHTTP
	}
	local, _ := docker.MatchLocalhost(host)
	return local
}

// files of certificates.
type files struct {
	roots []string
	pairs []config.TLSKeyPair
}

// certificates lists those that a configuration names, and those of its directories:
// *.crt are authorities, NAME.cert and NAME.key a client's certificate, as in
// containerd's and Docker's certs.d.
func certificates(c config.RegistryConfig) files {
	f := files{roots: append([]string(nil), c.RootCAs...), pairs: append([]config.TLSKeyPair(nil), c.KeyPairs...)}
	for _, dir := range c.TLSConfigDir {
		entries, _ := os.ReadDir(dir) // BuildKit has complained of what is wrong
		for _, e := range entries {
			p := filepath.Join(dir, e.Name())
			switch base, isPair := strings.CutSuffix(p, ".cert"); {
			case strings.HasSuffix(p, ".crt"):
				f.roots = append(f.roots, p)
			case isPair:
				f.pairs = append(f.pairs, config.TLSKeyPair{Certificate: p, Key: base + ".key"})
			}
		}
	}
	return f
}

// stampOf changes when files do.
func stampOf(f files) string {
	var b strings.Builder
	note := func(p string) {
		if fi, err := os.Stat(p); err == nil {
			fmt.Fprintf(&b, "%s %d %d\n", p, fi.Size(), fi.ModTime().UnixNano())
		}
	}
	for _, p := range f.roots {
		note(p)
	}
	for _, p := range f.pairs {
		note(p.Certificate)
		note(p.Key)
	}
	return b.String()
}

// load reads them.
func (f files) load() (*tls.Config, error) {
	tc := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(f.roots) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("the system's certificates: %w", err)
		}
		tc.RootCAs = pool
	}
	for _, p := range f.roots {
		pem, err := os.ReadFile(p)
		if err != nil {
			return nil, err
		}
		tc.RootCAs.AppendCertsFromPEM(pem)
	}
	for _, p := range f.pairs {
		pair, err := tls.LoadX509KeyPair(p.Certificate, p.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s: %w", p.Certificate, err)
		}
		tc.Certificates = append(tc.Certificates, pair)
	}
	return tc, nil
}

// Package blobtest is a registry in process for tests: it serves blobs and
// manifests on loopback, as slowly, as wrongly and as guardedly as a test asks
// for, and counts what is asked of it.
package blobtest

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// Registry serves every blob in every repository. All methods may be called at
// any time, also while requests are under way.
type Registry struct {
	t        testing.TB
	registry *httptest.Server
	target   *httptest.Server // where redirects lead
	client   *http.Client
	closing  chan struct{}

	mu          sync.Mutex
	blobs       map[digest.Digest][]byte
	manifests   map[string]manifest // "repo:tag" and "repo@digest"
	latency     time.Duration
	perConn     int64
	total       pacer
	ignoreRange bool
	hideTotal   bool
	noSuffix    int
	redirect    time.Duration
	redirects   int
	auth        auth
	faults      []*Fault
	log         []Request
}

type manifest struct {
	mediaType string
	body      []byte
}

// New starts a registry that ends with the test.
func New(t testing.TB) *Registry {
	t.Helper()
	r := &Registry{
		t:         t,
		closing:   make(chan struct{}),
		blobs:     map[digest.Digest][]byte{},
		manifests: map[string]manifest{},
	}
	transport := &http.Transport{MaxIdleConnsPerHost: 64, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext}
	r.client = &http.Client{Transport: transport}
	r.registry = httptest.NewServer(http.HandlerFunc(r.serveRegistry))
	r.target = httptest.NewServer(http.HandlerFunc(r.serveTarget))
	t.Cleanup(func() {
		r.Stop()
		transport.CloseIdleConnections()
	})
	return r
}

// Stop ends the registry as if its machine went away: open responses break off
// and later connections are refused.
func (r *Registry) Stop() {
	r.mu.Lock()
	select {
	case <-r.closing:
		r.mu.Unlock()
		return
	default:
	}
	close(r.closing)
	r.mu.Unlock()
	for _, s := range []*httptest.Server{r.registry, r.target} {
		s.CloseClientConnections()
		s.Close()
	}
}

// Host is the registry's address, without a scheme; it speaks plain HTTP.
func (r *Registry) Host() string { return strings.TrimPrefix(r.registry.URL, "http://") }

// Reference is the full reference of name ("repo", "repo:tag", "repo@digest").
func (r *Registry) Reference(name string) string { return r.Host() + "/" + name }

// AddBlob makes data available under the digest that is returned.
func (r *Registry) AddBlob(data []byte) digest.Digest {
	d := digest.FromBytes(data)
	r.AddBlobAs(d, data)
	return d
}

// AddBlobAs makes data available under any digest: a registry that lies.
func (r *Registry) AddBlobAs(d digest.Digest, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d] = data
}

// RemoveBlob takes a blob away.
func (r *Registry) RemoveBlob(d digest.Digest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.blobs, d)
}

// AddManifest makes a manifest or index available by tag (when not "") and digest.
func (r *Registry) AddManifest(repo, tag, mediaType string, body []byte) digest.Digest {
	d := digest.FromBytes(body)
	r.mu.Lock()
	defer r.mu.Unlock()
	m := manifest{mediaType, body}
	r.manifests[repo+"@"+d.String()] = m
	if tag != "" {
		r.manifests[repo+":"+tag] = m
	}
	return d
}

// AddImage makes an image of a config and layers whose blobs are there already,
// and returns its manifest's descriptor.
func (r *Registry) AddImage(repo, tag string, config ocispec.Image, layers ...ocispec.Descriptor) ocispec.Descriptor {
	r.t.Helper()
	cfg := r.json(config)
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: r.AddBlob(cfg), Size: int64(len(cfg))},
		Layers:    layers,
	}
	body := r.json(m)
	d := r.AddManifest(repo, tag, m.MediaType, body)
	return ocispec.Descriptor{MediaType: m.MediaType, Digest: d, Size: int64(len(body))}
}

func (r *Registry) json(v any) []byte {
	r.t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// Client is an HTTP client for the registry; its connections end with the test.
func (r *Registry) Client() *http.Client { return r.client }

// RegistryHosts is the registry's configuration for containerd and BuildKit. It
// answers for every host name, so it can stand for a mirror too. Credentials are
// sent when the registry asks for them.
func (r *Registry) RegistryHosts() docker.RegistryHosts {
	var opts []docker.AuthorizerOpt
	opts = append(opts, docker.WithAuthClient(r.client), docker.WithAuthCreds(func(string) (string, string, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.auth.user, r.auth.password, nil
	}))
	authorizer := &guarded{fresh: func() docker.Authorizer { return docker.NewDockerAuthorizer(opts...) }}
	return func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{r.registryHost(authorizer)}, nil
	}
}

// AnonymousHosts is RegistryHosts without an authorizer, for callers that add
// their own, such as BuildKit's resolver.
func (r *Registry) AnonymousHosts() docker.RegistryHosts {
	return func(string) ([]docker.RegistryHost, error) {
		return []docker.RegistryHost{r.registryHost(nil)}, nil
	}
}

func (r *Registry) registryHost(a docker.Authorizer) docker.RegistryHost {
	return docker.RegistryHost{
		Client:       r.client,
		Authorizer:   a,
		Host:         r.Host(),
		Scheme:       "http",
		Path:         "/v2",
		Capabilities: docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush,
	}
}

// Hosts is the registry as package blob asks for it.
func (r *Registry) Hosts() blob.Hosts {
	hosts := r.RegistryHosts()
	return func(context.Context) ([]docker.RegistryHost, error) { return hosts("") }
}

// Origin is where the blobs of repository name are.
func (r *Registry) Origin(name string) blob.Origin {
	return blob.Origin{Reference: r.Reference(name), Hosts: r.Hosts()}
}

package worker

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/buildkit/util/resolver"
	"github.com/moby/buildkit/util/resolver/config"
	"github.com/stretchr/testify/require"
)

func yes() *bool { v := true; return &v }

func no() *bool { v := false; return &v }

// TestRegistriesAreBuildKits: only the connections differ.
func TestRegistriesAreBuildKits(t *testing.T) {
	c := map[string]config.RegistryConfig{
		"docker.io":      {Mirrors: []string{"mirror.example/hub", "127.0.0.1:5000"}},
		"mirror.example": {PlainHTTP: yes()},
		"own.example":    {Insecure: yes()},
		"localhost:5000": {PlainHTTP: no()},
	}
	r := NewRegistries(c)
	defer r.Close()
	theirs := resolver.NewRegistryConfig(c)
	for _, name := range []string{"docker.io", "mirror.example", "own.example", "localhost:5000", "127.0.0.1:5000", "ghcr.io"} {
		want, err := theirs(name)
		require.NoError(t, err)
		got, err := r.Hosts(name)
		require.NoError(t, err)
		require.Len(t, got, len(want), name)
		for i := range want {
			require.NotNil(t, got[i].Client)
			want[i].Client, got[i].Client = nil, nil
			require.Equal(t, want[i], got[i], name)
		}
	}
}

// countingServer is a server that counts its connections.
type countingServer struct {
	*httptest.Server
	conns atomic.Int32
}

func serve(t *testing.T, config *tls.Config) *countingServer {
	t.Helper()
	s := &countingServer{Server: httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.Config.ConnState = func(_ net.Conn, st http.ConnState) {
		if st == http.StateNew {
			s.conns.Add(1)
		}
	}
	if config == nil {
		s.Start()
	} else {
		s.TLS = config
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *countingServer) host() string { return s.Listener.Addr().String() }

// request makes one as the last host of r does.
func request(t *testing.T, r *Registries, name string) error {
	t.Helper()
	hosts, err := r.Hosts(name)
	if err != nil {
		return err
	}
	h := hosts[len(hosts)-1]
	resp, err := h.Client.Get(h.Scheme + "://" + h.Host + h.Path + "/")
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return err
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

func TestRegistriesKeepConnections(t *testing.T) {
	s := serve(t, nil)
	for _, c := range []map[string]config.RegistryConfig{nil, {s.host(): {PlainHTTP: yes()}}} {
		before := s.conns.Load()
		r := NewRegistries(c)
		for range 20 {
			require.NoError(t, request(t, r, s.host()))
		}
		require.LessOrEqual(t, s.conns.Load()-before, int32(1+firstSpares))
		require.NoError(t, r.Close())
	}
}

func TestRegistriesExpect(t *testing.T) {
	s := serve(t, nil)
	r := NewRegistries(nil)
	defer r.Close()
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	r.Expect(s.host(), u, 9) // nothing was asked yet: nobody knows how
	require.NoError(t, request(t, r, s.host()))
	r.Expect(s.host(), u, 9)
	require.Eventually(t, func() bool { return s.conns.Load() >= 10 }, 10*time.Second, time.Millisecond)

	before := s.conns.Load()
	r.mu.transports[""].http.Proxy = func(*http.Request) (*url.URL, error) { return u, nil }
	r.Expect(s.host(), u, 20) // goes to the proxy
	r.mu.transports[""].http.Proxy = func(*http.Request) (*url.URL, error) { return nil, nil }
	r.Expect(s.host(), u, 12)
	require.Eventually(t, func() bool { return s.conns.Load() > before }, 10*time.Second, time.Millisecond)
	require.LessOrEqual(t, s.conns.Load(), int32(1+12+firstSpares))
}

func TestRegistriesReadCertificates(t *testing.T) {
	s := serve(t, &tls.Config{ClientAuth: tls.RequireAnyClientCert})
	dir := t.TempDir()
	r := NewRegistries(map[string]config.RegistryConfig{s.host(): {PlainHTTP: no(), TLSConfigDir: []string{dir, filepath.Join(dir, "missing")}}})
	defer r.Close()
	var unknown x509.UnknownAuthorityError
	require.ErrorAs(t, request(t, r, s.host()), &unknown)

	writePEM(t, filepath.Join(dir, "ca.crt"), "CERTIFICATE", s.Certificate().Raw)
	require.ErrorContains(t, request(t, r, s.host()), "certificate required")

	own := s.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(own.PrivateKey)
	require.NoError(t, err)
	writePEM(t, filepath.Join(dir, "client.key"), "PRIVATE KEY", key)
	writePEM(t, filepath.Join(dir, "client.cert"), "CERTIFICATE", own.Certificate[0])
	require.NoError(t, request(t, r, s.host()))

	c := config.RegistryConfig{
		PlainHTTP: no(), // loopback, else
		RootCAs:   []string{filepath.Join(dir, "ca.crt")},
		KeyPairs:  []config.TLSKeyPair{{Certificate: filepath.Join(dir, "client.cert"), Key: filepath.Join(dir, "client.key")}},
	}
	named := NewRegistries(map[string]config.RegistryConfig{s.host(): c})
	defer named.Close()
	require.NoError(t, request(t, named, s.host()))

	require.NoError(t, os.WriteFile(filepath.Join(dir, "client.key"), []byte("none"), 0o600))
	require.ErrorContains(t, request(t, r, s.host()), "client.cert")
}

func TestRegistriesInsecure(t *testing.T) {
	s := serve(t, &tls.Config{})
	insecure := func(s *countingServer) *Registries {
		r := NewRegistries(map[string]config.RegistryConfig{s.host(): {Insecure: yes()}})
		t.Cleanup(func() { r.Close() })
		return r
	}
	require.NoError(t, request(t, insecure(s), s.host()))
	plain := serve(t, nil) // TLS is tried first
	require.NoError(t, request(t, insecure(plain), plain.host()))
}

// TestRegistriesFallBackAnew: a host that spoke plain HTTP speaks TLS now.
func TestRegistriesFallBackAnew(t *testing.T) {
	plain := serve(t, nil)
	r := NewRegistries(map[string]config.RegistryConfig{plain.host(): {Insecure: yes()}})
	defer r.Close()
	require.NoError(t, request(t, r, plain.host()))
	plain.Close()
	l, err := net.Listen("tcp", plain.host())
	require.NoError(t, err)
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.TLS == nil {
			t.Error("a request in the clear")
		}
	}))
	s.Listener.Close()
	s.Listener, s.Config.ErrorLog = l, log.New(io.Discard, "", 0)
	s.StartTLS()
	defer s.Close()
	require.NoError(t, request(t, r, plain.host()))
}

func TestRegistriesAreClosed(t *testing.T) {
	s := serve(t, nil)
	r := NewRegistries(nil)
	require.NoError(t, request(t, r, s.host()))
	require.NoError(t, r.Close())
	require.ErrorIs(t, request(t, r, s.host()), net.ErrClosed)
	require.NoError(t, r.Close())
}

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/stretchr/testify/require"
)

func TestListenUnix(t *testing.T) {
	sock := filepath.Join(shortDir(t), "sub", "s")
	gid := os.Getgid()
	if os.Getuid() == 0 {
		gid = 7
	}
	ls, err := listenAll(t.Context(), config.GRPCConfig{Address: []string{"unix://" + sock}, UID: ptr(os.Getuid()), GID: &gid})
	require.NoError(t, err)
	defer closeAll(ls)
	st, err := os.Stat(sock)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o660), st.Mode().Perm())
	require.EqualValues(t, gid, st.Sys().(*syscall.Stat_t).Gid)

	// A socket that a dead daemon left is replaced.
	again, err := listenAll(t.Context(), config.GRPCConfig{Address: []string{"unix://" + sock}, UID: ptr(os.Getuid()), GID: &gid})
	require.NoError(t, err)
	closeAll(again)
}

func TestListenShared(t *testing.T) {
	sock := filepath.Join(shortDir(t), "s")
	l, err := listenShared(sock)
	require.NoError(t, err)
	defer l.Close()
	st, err := os.Stat(sock)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o666), st.Mode().Perm())
}

func TestListenRefuses(t *testing.T) {
	for addr, want := range map[string]string{
		"/run/x.sock":         "you meant unix:///run/x.sock ?",
		"http://127.0.0.1":    "not supported",
		"fd://":               "no sockets found",
		"tcp://127.0.0.1:-1":  "invalid port",
		"npipe:////./pipe/bk": "not supported",
	} {
		_, err := listenAll(t.Context(), config.GRPCConfig{Address: []string{"tcp://127.0.0.1:0", addr}, UID: ptr(0), GID: ptr(0)})
		require.ErrorContains(t, err, want, addr)
	}
	_, err := listenAll(t.Context(), config.GRPCConfig{})
	require.ErrorContains(t, err, "--addr cannot be empty")
}

func TestServerTLSRefuses(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, dir)
	cert, key := ca.issue(t, dir, "server")
	for name, c := range map[string]struct {
		cfg  config.TLSConfig
		want string
	}{
		"a key alone":         {config.TLSConfig{Key: key}, "you must specify key and cert"},
		"a certificate alone": {config.TLSConfig{Cert: cert}, "you must specify key and cert"},
		"files swapped":       {config.TLSConfig{Cert: key, Key: cert}, "could not load server key pair"},
		"no CA":               {config.TLSConfig{Cert: cert, Key: key, CA: dir + "/none"}, "could not read ca certificate"},
		"a CA that is none":   {config.TLSConfig{Cert: cert, Key: key, CA: key}, "failed to append ca cert"},
	} {
		_, err := serverTLS(c.cfg)
		require.ErrorContains(t, err, c.want, name)
	}
	got, err := serverTLS(config.TLSConfig{CA: "ignored"})
	require.NoError(t, err)
	require.Nil(t, got)
}

// TestMutualTLS connects with and without a certificate of the CA.
func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, dir)
	cert, key := ca.issue(t, dir, "server")
	clientCert, clientKey := ca.issue(t, dir, "client")
	ls, err := listenAll(t.Context(), config.GRPCConfig{
		Address: []string{"tcp://127.0.0.1:0"}, UID: ptr(0), GID: ptr(0),
		TLS: config.TLSConfig{Cert: cert, Key: key, CA: ca.file},
	})
	require.NoError(t, err)
	defer closeAll(ls)
	go func() {
		for {
			c, err := ls[0].Accept()
			if err != nil {
				return
			}
			c.Write([]byte("x")) // completes the handshake
			c.Close()
		}
	}()
	pair, err := tls.LoadX509KeyPair(clientCert, clientKey)
	require.NoError(t, err)
	conf := &tls.Config{RootCAs: ca.pool(), ServerName: "localhost", Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}
	require.NoError(t, readOne(ls[0].Addr(), conf))
	conf.Certificates = nil
	require.Error(t, readOne(ls[0].Addr(), conf), "a client without a certificate")
}

func readOne(addr net.Addr, conf *tls.Config) error {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr.String(), conf)
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Read(make([]byte, 1))
	return err
}

// authority issues certificates for localhost.
type authority struct {
	file string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, dir string) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	ca := &authority{file: filepath.Join(dir, "ca.pem"), key: key}
	tmpl := template(1)
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	ca.cert = ca.sign(t, tmpl, tmpl, &key.PublicKey, ca.file)
	return ca
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func (a *authority) issue(t *testing.T, dir, name string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert, key = filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key")
	a.sign(t, template(2), a.cert, &k.PublicKey, cert)
	der, err := x509.MarshalECPrivateKey(k)
	require.NoError(t, err)
	writePEM(t, key, "EC PRIVATE KEY", der)
	return cert, key
}

func (a *authority) sign(t *testing.T, tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, file string) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	require.NoError(t, err)
	writePEM(t, file, "CERTIFICATE", der)
	c, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return c
}

func template(serial int64) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "test"},
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
}

// shortDir is a directory whose sockets fit into a socket address.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "bkd")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

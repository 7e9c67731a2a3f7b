package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/coreos/go-systemd/v22/activation"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
)

// listenAll opens every address of the API, or none.
func listenAll(ctx context.Context, cfg config.GRPCConfig) (_ []net.Listener, rerr error) {
	if len(cfg.Address) == 0 {
		return nil, errors.New("--addr cannot be empty")
	}
	tlsConfig, err := serverTLS(cfg.TLS)
	if err != nil {
		return nil, err
	}
	var opened []net.Listener
	defer func() {
		if rerr != nil {
			closeAll(opened)
		}
	}()
	for _, addr := range cfg.Address {
		l, err := listen(ctx, addr, endpoint{uid: *cfg.UID, gid: *cfg.GID, tls: tlsConfig, secret: true})
		if err != nil {
			return nil, err
		}
		opened = append(opened, l)
	}
	return opened, nil
}

func closeAll(ls []net.Listener) {
	for _, l := range ls {
		l.Close()
	}
}

// endpoint says how an address is opened.
type endpoint struct {
	uid, gid int         // owner of a Unix socket
	tls      *tls.Config // of other sockets; nil: plain
	secret   bool        // whoever connects is root here, so say when nothing guards it
}

// listen opens proto://address: unix (a path), fd (systemd's socket activation)
// or tcp.
func listen(ctx context.Context, addr string, e endpoint) (net.Listener, error) {
	proto, where, ok := strings.Cut(addr, "://")
	if !ok {
		return nil, fmt.Errorf("address %s does not contain proto, you meant unix://%s ?", addr, addr)
	}
	switch proto {
	case "unix":
		if e.tls != nil {
			bklog.L.Warnf("TLS is disabled for %s", addr)
		}
		return sys.GetLocalListener(where, e.uid, e.gid)
	case "fd":
		return listenActivated(where, e.tls)
	case "tcp":
		return listenTCP(ctx, where, e)
	}
	return nil, fmt.Errorf("addr %s not supported", addr)
}

func listenTCP(ctx context.Context, where string, e endpoint) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", where)
	if err != nil {
		return nil, err
	}
	if e.tls != nil {
		return tls.NewListener(l, e.tls), nil
	}
	if e.secret {
		bklog.L.Warnf("TLS is not enabled for tcp://%s. enabling mutual TLS authentication is highly recommended", where)
	}
	return l, nil
}

// listenActivated takes the first socket that systemd has opened for the daemon.
// A name or number to choose another by is not supported, as in stock.
func listenActivated(which string, tlsConfig *tls.Config) (net.Listener, error) {
	var ls []net.Listener
	var err error
	if tlsConfig != nil {
		ls, err = activation.TLSListeners(tlsConfig)
	} else {
		ls, err = activation.Listeners()
	}
	if err != nil {
		return nil, fmt.Errorf("socket activation: %w", err)
	}
	if len(ls) == 0 {
		return nil, errors.New("no sockets found via socket activation: make sure the service was started by systemd")
	}
	if which != "" {
		return nil, fmt.Errorf("choosing a socket by fd://%s is not supported yet", which)
	}
	return ls[0], nil
}

// listenShared opens a Unix socket that every process of the machine may use.
func listenShared(path string) (net.Listener, error) {
	uid := os.Getuid()
	l, err := sys.GetLocalListener(path, uid, uid)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o666); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// serverTLS is nil when neither certificate nor key is configured. With a CA,
// clients must show a certificate of it.
func serverTLS(cfg config.TLSConfig) (*tls.Config, error) {
	if cfg.Cert == "" && cfg.Key == "" {
		return nil, nil
	}
	if cfg.Cert == "" || cfg.Key == "" {
		return nil, errors.New("you must specify key and cert file if one is specified")
	}
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("could not load server key pair: %w", err)
	}
	out := &tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"h2"}}
	if cfg.CA == "" {
		return out, nil
	}
	pem, err := os.ReadFile(cfg.CA)
	if err != nil {
		return nil, fmt.Errorf("could not read ca certificate: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("failed to append ca cert: %s holds none", cfg.CA)
	}
	out.ClientAuth, out.ClientCAs = tls.RequireAndVerifyClientCert, pool
	return out, nil
}

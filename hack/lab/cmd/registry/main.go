// registry is a container registry (distribution) on loopback, on two ports:
// one direct, one behind a link of a chosen latency and bandwidth that counts
// what it is asked for. With -upstream it is a reverse proxy of another registry
// instead. Its first line on standard output is a JSON object of its addresses.
// It ends when its standard input does, so it can't outlive what started it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"

	"github.com/distribution/distribution/v3/configuration"
	"github.com/distribution/distribution/v3/registry/handlers"
	_ "github.com/distribution/distribution/v3/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"

	"github.com/lazykit/lazykit/hack/lab/link"
)

func main() {
	dir := flag.String("dir", "", "directory of the registry's contents")
	upstream := flag.String("upstream", "", "URL of a registry to pass requests on to, instead of -dir")
	addr := flag.String("addr", "127.0.0.1:0", "address of the direct port")
	rtt := flag.Duration("rtt", 0, "round trip time of the link")
	total := flag.Int64("total", 0, "bytes per second of the link, 0 for no limit")
	perConn := flag.Int64("per-conn", 0, "bytes per second of a connection of the link, 0 for no limit")
	flag.Parse()
	shape := link.Shape{RTT: *rtt, Total: *total, PerConn: *perConn}
	if err := run(*dir, *upstream, *addr, shape); err != nil {
		fmt.Fprintln(os.Stderr, "registry:", err)
		os.Exit(1)
	}
}

func run(dir, upstream, addr string, shape link.Shape) error {
	handler, err := backend(dir, upstream)
	if err != nil {
		return err
	}
	direct, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	shaped, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	control, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	holder := link.NewHolder(handler)
	counter := link.NewCounter(holder)
	listener := link.Listen(shaped, shape)
	failed := make(chan error, 4)
	serve := func(l net.Listener, h http.Handler) { failed <- http.Serve(l, h) }
	go serve(direct, handler)
	go func() {
		failed <- (&http.Server{Handler: counter, ConnContext: link.ConnContext}).Serve(listener)
	}()
	go serve(control, link.Control(counter, listener, holder))
	go func() {
		_, err := io.Copy(io.Discard, os.Stdin)
		failed <- err
	}()
	err = json.NewEncoder(os.Stdout).Encode(map[string]string{
		"direct": direct.Addr().String(), "link": shaped.Addr().String(), "control": control.Addr().String(),
	})
	if err != nil {
		return fmt.Errorf("report the addresses: %w", err)
	}
	return <-failed
}

// backend is what answers requests.
func backend(dir, upstream string) (http.Handler, error) {
	if upstream != "" {
		u, err := url.Parse(upstream)
		if err != nil || u.Host == "" {
			return nil, fmt.Errorf("-upstream %q is not a URL: %w", upstream, err)
		}
		return httputil.NewSingleHostReverseProxy(u), nil
	}
	if dir == "" {
		return nil, fmt.Errorf("-dir or -upstream is needed")
	}
	logrus.SetLevel(logrus.WarnLevel)
	log.SetFlags(log.LstdFlags | log.Lmicroseconds)
	config := &configuration.Configuration{
		Version: configuration.CurrentVersion,
		Storage: configuration.Storage{
			"filesystem": configuration.Parameters{"rootdirectory": dir},
			"cache":      configuration.Parameters{"blobdescriptor": "inmemory"},
			"delete":     configuration.Parameters{"enabled": true},
			"redirect":   configuration.Parameters{"disable": true},
		},
	}
	config.HTTP.Secret = "one process serves every upload"
	return handlers.NewApp(context.Background(), config), nil
}

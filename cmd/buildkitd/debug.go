package main

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"net/http"
	"net/http/pprof"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/moby/buildkit/util/bklog"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/trace"
)

// debugServer serves profiles, metrics and the state of the cache on
// --debugaddr. Whoever can connect is trusted.
type debugServer struct {
	http   *http.Server
	cache  *cacheDebug
	served chan struct{}
}

// serveDebug listens on addr, tcp unless it says otherwise.
func serveDebug(ctx context.Context, addr string) (*debugServer, error) {
	if !strings.Contains(addr, "://") {
		addr = "tcp://" + addr
	}
	l, err := listen(ctx, addr, endpoint{uid: os.Getuid(), gid: os.Getgid()})
	if err != nil {
		return nil, fmt.Errorf("debug address: %w", err)
	}
	trace.AuthRequest = func(*http.Request) (any, sensitive bool) { return true, true }
	cache := &cacheDebug{}
	d := &debugServer{
		cache:  cache,
		served: make(chan struct{}),
		http: &http.Server{
			Addr:              l.Addr().String(),
			Handler:           debugMux(cache),
			ReadHeaderTimeout: time.Minute,
		},
	}
	bklog.G(ctx).Debugf("debug handlers listening at %s", addr)
	go func() {
		defer close(d.served)
		if err := d.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			bklog.L.Errorf("failed to serve debug handlers: %v", err)
		}
	}()
	return d, nil
}

// Close cuts the connections, so that a profile under way does not hold the
// daemon up.
func (d *debugServer) Close() error {
	err := d.http.Close()
	<-d.served
	return err
}

func debugMux(cache *cacheDebug) *http.ServeMux {
	m := http.NewServeMux()
	m.Handle("/debug/vars", expvar.Handler())
	m.HandleFunc("/debug/pprof/", pprof.Index)
	m.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	m.HandleFunc("/debug/pprof/profile", pprof.Profile)
	m.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	m.HandleFunc("/debug/pprof/trace", pprof.Trace)
	m.HandleFunc("/debug/requests", trace.Traces)
	m.HandleFunc("/debug/events", trace.Events)
	m.HandleFunc("/debug/gc", func(_ http.ResponseWriter, r *http.Request) {
		runtime.GC()
		bklog.G(r.Context()).Debugf("triggered GC from debug endpoint")
	})
	m.Handle("/metrics", promhttp.Handler())
	cache.register(m)
	newFlightRecorder().register(m)
	return m
}

package main

import (
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync/atomic"
)

// faults of a registry.
const (
	noFault = iota
	answer503
	cutBodies // after some kilobytes
	faults
)

// faulty is a registry behind a way that can be broken.
type faulty struct {
	fault atomic.Int32
	proxy *httputil.ReverseProxy
}

func newFaulty(host string) *faulty {
	return &faulty{proxy: httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: host})}
}

// ServeHTTP implements http.Handler.
func (f *faulty) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch f.fault.Load() {
	case answer503:
		http.Error(w, "out of order", http.StatusServiceUnavailable)
	case cutBodies:
		f.proxy.ServeHTTP(&cutting{ResponseWriter: w, left: 20_000}, r)
	default:
		f.proxy.ServeHTTP(w, r)
	}
}

// cutting ends the connection after some bytes.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	if c.left -= len(p); c.left < 0 {
		panic(http.ErrAbortHandler)
	}
	return c.ResponseWriter.Write(p)
}

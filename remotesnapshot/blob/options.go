package blob

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Hosts returns the registry hosts to ask for a blob, in order (mirrors first).
// It is called again for each round of attempts, so credentials are renewed by
// it. It must return soon after ctx ends.
type Hosts func(ctx context.Context) ([]docker.RegistryHost, error)

// Origin is one place where a blob can be had.
type Origin struct {
	Reference string // image reference: names host and repository
	Hosts     Hosts
}

// Priority of a fetch: a higher one is served first.
type Priority uint8

const (
	Background Priority = iota // nobody waits; never takes the last connections of a host
	Prefetch                   // likely to be read soon
	Blocked                    // a process waits for these bytes
)

// String names the priority for logs and reports.
func (p Priority) String() string {
	switch p {
	case Background:
		return "background"
	case Prefetch:
		return "prefetch"
	default:
		return "blocked"
	}
}

// Options of a Store. Zero values are the documented defaults.
type Options struct {
	Root        string // holds the sparse files and their hints; required
	Connections int    // parallel requests to one host, two and a half times as many for FetchAll; 0: 16

	// RequestSize is the largest range of one request in bytes; larger missing
	// ranges are fetched by several requests in parallel. 0: 8 MiB. On a slow
	// link less is asked for at a time.
	RequestSize int64

	// HeaderTimeout bounds the wait for a response's header, StallTimeout the
	// wait for the next KiB of its body, AuthTimeout one round of authorization
	// (it may ask the user's credential helper). Afterwards the attempt has
	// failed and the next host is asked. Where there is one that has not failed, a
	// fifth of the time has to do. HeaderTimeout doubles with every attempt at
	// a range that ran into it, three times at most: a server may be slow to begin.
	// 0: 10 s, 10 s and 30 s; the first two are at most a third of GiveUp.
	HeaderTimeout time.Duration
	StallTimeout  time.Duration
	AuthTimeout   time.Duration

	// GiveUp ends a fetch for which no byte arrived for so long. 0: DefaultGiveUp.
	GiveUp time.Duration

	// BackoffMin and BackoffMax bound the pause between two rounds over all
	// hosts; it doubles with each round and is jittered. 0: 100 ms and 5 s.
	BackoffMin time.Duration
	BackoffMax time.Duration

	// RetryAfterMax caps what a server may ask for by Retry-After. 0: 30 s.
	RetryAfterMax time.Duration

	// FlushInterval is how often changed hints are written. 0: 2 s.
	FlushInterval time.Duration

	// Expect, when set, is told that n requests will be made at once to the origin of u,
	// by the client of a registry's host. It must not block.
	Expect func(host string, u *url.URL, n int)

	// OnRequest, when set, is told of every request after it ended. It is called
	// from many goroutines and must not block.
	OnRequest func(Request)

	// OnError, when set, is told of errors that no caller sees: hints that could
	// not be read or written. It must not block.
	OnError func(error)
}

// DefaultGiveUp is more than the outages last that a build should survive.
const DefaultGiveUp = 5 * time.Minute

func (o Options) withDefaults() Options {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	if o.Connections <= 0 {
		o.Connections = 16
	}
	if o.RequestSize <= 0 {
		o.RequestSize = 8 << 20
	}
	def(&o.HeaderTimeout, 10*time.Second)
	def(&o.StallTimeout, 10*time.Second)
	def(&o.AuthTimeout, 30*time.Second)
	def(&o.GiveUp, DefaultGiveUp)
	// Who waits must see another attempt before giving up.
	o.HeaderTimeout = min(o.HeaderTimeout, o.GiveUp/3)
	o.StallTimeout = min(o.StallTimeout, o.GiveUp/3)
	def(&o.BackoffMin, 100*time.Millisecond)
	def(&o.BackoffMax, 5*time.Second)
	def(&o.RetryAfterMax, 30*time.Second)
	def(&o.FlushInterval, 2*time.Second)
	if o.Expect == nil {
		o.Expect = func(string, *url.URL, int) {}
	}
	if o.OnRequest == nil {
		o.OnRequest = func(Request) {}
	}
	if o.OnError == nil {
		o.OnError = func(error) {}
	}
	return o
}

// ErrClosed is returned by uses of a closed Blob or Store, and by reads that were
// under way when it was closed.
var ErrClosed = errors.New("blob store: closed")

// userAgent is sent unless the registry host's own header names another.
const userAgent = "lazykit"

// noRedirects returns a copy of c that hands redirects to the caller, since
// targets are remembered and must not get the registry's credentials.
func noRedirects(c *http.Client) *http.Client {
	out := http.Client{}
	if c != nil {
		out = *c
	}
	out.Timeout = 0 // would cut long bodies; the watchdog bounds each step
	out.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &out
}

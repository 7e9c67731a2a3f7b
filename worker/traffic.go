package worker

import (
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// traffic watches the requests for bytes of lazy layers. A daemon that is to
// stop waits for builds that get on, as stock does; a build whose reads hang on a
// registry that does not answer never ends by itself, and this tells.
type traffic struct {
	now func() time.Time
	mu  struct {
		sync.Mutex
		hosts map[string]*hostTraffic
	}
}

// hostTraffic is what is known of one registry host. Guarded by traffic.mu.
type hostTraffic struct {
	inFlight int
	// since is when the host was last known to be well: the last byte, or the
	// first request after a rest.
	since time.Time
	// failed is when a request last failed with no good byte since; zero: none.
	failed time.Time
}

// stillTrying is how long after a failure the caller is believed to be going to
// ask again. It exceeds the longest pause between two tries.
const stillTrying = 15 * time.Second

func newTraffic() *traffic {
	t := &traffic{now: time.Now}
	t.mu.hosts = make(map[string]*hostTraffic)
	return t
}

// stalled says for how long some registry has been asked in vain; 0 when none is.
func (t *traffic) stalled() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	var worst time.Duration
	for _, h := range t.mu.hosts {
		if h.inFlight > 0 || !h.failed.IsZero() && now.Sub(h.failed) < stillTrying {
			worst = max(worst, now.Sub(h.since))
		}
	}
	return worst
}

// watch puts an observer into the clients of the hosts. It changes the slice,
// not the clients, which others share.
func (t *traffic) watch(hosts []docker.RegistryHost) []docker.RegistryHost {
	for i := range hosts {
		client := http.Client{}
		if c := hosts[i].Client; c != nil {
			client = *c
		}
		next := client.Transport
		if next == nil {
			next = http.DefaultTransport
		}
		client.Transport = &observer{traffic: t, host: hosts[i].Host, next: next}
		hosts[i].Client = &client
	}
	return hosts
}

// update changes what is known of a host.
func (t *traffic) update(host string, f func(h *hostTraffic, now time.Time)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h := t.mu.hosts[host]
	if h == nil {
		h = &hostTraffic{}
		t.mu.hosts[host] = h
	}
	f(h, t.now())
}

func (h *hostTraffic) begin(now time.Time) {
	if h.inFlight == 0 && (h.failed.IsZero() || now.Sub(h.failed) >= stillTrying) {
		h.since, h.failed = now, time.Time{}
	}
	h.inFlight++
}

func (h *hostTraffic) progress(now time.Time) { h.since, h.failed = now, time.Time{} }

func (h *hostTraffic) fail(now time.Time) { h.failed = now }

// observer is a transport that tells traffic how its requests fare.
type observer struct {
	traffic *traffic
	host    string
	next    http.RoundTripper
}

// RoundTrip implements http.RoundTripper.
func (o *observer) RoundTrip(req *http.Request) (*http.Response, error) {
	o.traffic.update(o.host, (*hostTraffic).begin)
	resp, err := o.next.RoundTrip(req)
	switch {
	case err != nil:
		o.end(err)
		return resp, err
	case resp.StatusCode >= http.StatusInternalServerError || resp.StatusCode == http.StatusTooManyRequests:
		o.traffic.update(o.host, (*hostTraffic).fail)
	default:
		o.traffic.update(o.host, (*hostTraffic).progress)
	}
	resp.Body = &observedBody{ReadCloser: resp.Body, observer: o, good: resp.StatusCode < http.StatusBadRequest}
	return resp, nil
}

// end notes that a request is over, by an error unless err is nil.
func (o *observer) end(err error) {
	o.traffic.update(o.host, func(h *hostTraffic, now time.Time) {
		h.inFlight--
		if err != nil {
			h.fail(now)
		}
	})
}

// observedBody ends the request when it is closed.
type observedBody struct {
	io.ReadCloser
	observer *observer
	good     bool
	closed   sync.Once
}

func (b *observedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 && b.good {
		b.observer.traffic.update(b.observer.host, (*hostTraffic).progress)
	}
	return n, err
}

// Close implements io.Closer.
func (b *observedBody) Close() error {
	b.closed.Do(func() { b.observer.end(nil) })
	return b.ReadCloser.Close()
}

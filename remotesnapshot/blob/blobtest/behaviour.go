package blobtest

import (
	"sync"
	"time"
)

// SetLatency delays every answer's header.
func (r *Registry) SetLatency(d time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.latency = d
}

// SetBandwidth limits the bodies of blobs, in bytes per second: of all responses
// together, and of each one. 0: no limit.
func (r *Registry) SetBandwidth(total, perConnection int64) {
	r.mu.Lock()
	r.perConn = perConnection
	r.mu.Unlock()
	r.total.set(total)
}

// IgnoreRange makes blobs be answered whole, with 200, whatever is asked for.
func (r *Registry) IgnoreRange(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ignoreRange = on
}

// HideTotal makes Content-Range leave out the size ("bytes 0-9/*").
func (r *Registry) HideTotal(on bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hideTotal = on
}

// RefuseSuffix answers suffix ranges ("bytes=-100") with status. 0: served.
func (r *Registry) RefuseSuffix(status int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noSuffix = status
}

// Redirect sends requests for blobs to another server, with addresses that are
// valid for ttl. 0: no redirects.
func (r *Registry) Redirect(ttl time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.redirect = ttl
}

// TargetHost is the address of the server that redirects lead to.
func (r *Registry) TargetHost() string { return r.target.Listener.Addr().String() }

// pacer spreads bytes over time.
type pacer struct {
	mu   sync.Mutex
	rate int64
	next time.Time

	started bool
}

// maxLag is how far a pacer may be behind its rate and catch up.
const maxLag = 20 * time.Millisecond

func (p *pacer) set(rate int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rate = rate
}

// take returns when n more bytes have been sent at the pacer's rate.
func (p *pacer) take(n int) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	if p.rate <= 0 {
		return now
	}
	// Timers oversleep: some of the time lost is made up for, or the link would be
	// slower than it says. A link that idled does not save bandwidth up.
	if least := now.Add(-maxLag); p.next.Before(least) {
		p.next = least
		if !p.started {
			p.next, p.started = now, true
		}
	}
	p.next = p.next.Add(time.Duration(n) * time.Second / time.Duration(p.rate))
	return p.next
}

package worker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// firstSpares is how many connections are made beside the first one to an address
	// that none was made to for spareTime: the layers of an image are asked for side by
	// side, and so is what their first files name.
	firstSpares = 3
	// maxSpares bounds what waits at one address.
	maxSpares = 40
	// spareTime is how long a connection waits to be used. Servers end those sooner or
	// later on which nothing is said.
	spareTime = 5 * time.Second
	// dialTime and handshakeTime bound a connection's making.
	dialTime      = 30 * time.Second
	handshakeTime = 10 * time.Second
)

// errHandshake has the words by which a host is found to speak plain HTTP, see
// docker.NewHTTPFallback, and those of http.Transport.
var errHandshake = errors.New("TLS handshake timeout")

// connections makes those of a transport, some of them before they are wanted: a new
// one costs a round trip, with TLS two or three. Safe for concurrent use. Close it.
type connections struct {
	net    net.Dialer
	config *tls.Config
	ctx    context.Context // of the connections that nobody waits for
	cancel context.CancelFunc
	life   time.Duration // how long one waits to be used
	wg     sync.WaitGroup
	mu     struct {
		sync.Mutex
		places map[place]*spares
	}
}

// place is where a connection leads to.
type place struct {
	address string // host:port
	secure  bool   // TLS is spoken
}

// spares are the connections to a place that nobody uses yet, made or being made.
type spares struct {
	free   int           // those that nobody waits for
	taken  int           // those that somebody waits for
	offer  chan net.Conn // nil for one that could not be made
	dialed time.Time     // when somebody last wanted one
}

// maxPlaces is from how many on those are forgotten to which there is nothing: registries
// may redirect to any number.
const maxPlaces = 256

func newConnections(config *tls.Config) *connections {
	d := &connections{net: net.Dialer{KeepAlive: time.Minute}, config: config, life: spareTime}
	d.ctx, d.cancel = context.WithCancel(context.Background())
	d.mu.places = map[place]*spares{}
	return d
}

// Close ends what waits, and returns when it has ended. Connections that were handed out
// are not touched.
func (d *connections) Close() {
	d.mu.Lock()
	d.cancel() // nothing is added behind this
	d.mu.Unlock()
	d.wg.Wait()
}

// Dial and DialTLS are for http.Transport.
func (d *connections) Dial(ctx context.Context, _, address string) (net.Conn, error) {
	return d.get(ctx, place{address, false})
}

func (d *connections) DialTLS(ctx context.Context, _, address string) (net.Conn, error) {
	return d.get(ctx, place{address, true})
}

// get returns a connection, a spare one if there is one that is alive.
func (d *connections) get(ctx context.Context, p place) (net.Conn, error) {
	for {
		s := d.reserve(p)
		if s == nil {
			return d.connect(ctx, p)
		}
		select {
		case c := <-s.offer:
			d.end(s, 0)
			if c != nil && alive(c) {
				return c, nil
			}
			if c != nil {
				c.Close()
			}
		case <-ctx.Done():
			d.end(s, 1)
			return nil, context.Cause(ctx)
		case <-d.ctx.Done():
			d.end(s, 0)
			return d.connect(ctx, p)
		}
	}
}

// reserve takes one of the spare connections to p, which will be offered: the first one
// that is made, or nil when it can't be. nil: there is none.
func (d *connections) reserve(p place) *spares {
	d.mu.Lock()
	defer d.mu.Unlock()
	s, now := d.placeLocked(p), time.Now()
	first := now.Sub(s.dialed) > d.life
	s.dialed = now
	if s.free > 0 {
		s.free--
		s.taken++
		return s
	}
	if first {
		d.aheadLocked(p, firstSpares)
	}
	return nil
}

// end ends what reserve began; n are free again.
func (d *connections) end(s *spares, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.taken--
	s.free += n
}

func (d *connections) placeLocked(p place) *spares {
	if s := d.mu.places[p]; s != nil {
		return s
	}
	if len(d.mu.places) >= maxPlaces {
		maps.DeleteFunc(d.mu.places, func(_ place, s *spares) bool { return s.free+s.taken == 0 })
	}
	s := &spares{offer: make(chan net.Conn)}
	d.mu.places[p] = s
	return s
}

// Ahead makes connections to p until n of them are spare. It waits for nothing.
func (d *connections) Ahead(p place, n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.aheadLocked(p, n)
}

func (d *connections) aheadLocked(p place, n int) {
	s := d.placeLocked(p)
	for n = min(n, maxSpares); s.free < n && d.ctx.Err() == nil; {
		s.free++
		d.wg.Go(func() { d.keep(p, s) })
	}
}

// keep makes a connection and offers it until it has waited for too long.
func (d *connections) keep(p place, s *spares) {
	ctx, cancel := context.WithTimeout(d.ctx, d.life)
	c, err := d.connect(ctx, p)
	cancel()
	wait := d.life
	if err != nil {
		c, wait = nil, 0 // who wants one tries again, and says what is wrong
	}
	end := time.NewTimer(wait)
	defer end.Stop()
	for {
		select {
		case s.offer <- c:
			return
		case <-d.ctx.Done():
		case <-end.C:
			if !d.withdraw(s) {
				end.Reset(d.life) // somebody waits for it
				continue
			}
		}
		if c != nil {
			c.Close()
		}
		return
	}
}

// withdraw takes one back that nobody waits for.
func (d *connections) withdraw(s *spares) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if s.free == 0 {
		return false
	}
	s.free--
	return true
}

// connect makes a connection.
func (d *connections) connect(ctx context.Context, p place) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTime)
	defer cancel()
	c, err := d.net.DialContext(ctx, "tcp", p.address)
	if err != nil || !p.secure {
		return c, err
	}
	config := d.config.Clone()
	if config.ServerName == "" {
		host, _, err := net.SplitHostPort(p.address)
		if err != nil {
			host = p.address
		}
		config.ServerName = host
	}
	t := tls.Client(c, config)
	hctx, end := context.WithTimeoutCause(ctx, handshakeTime, errHandshake)
	defer end()
	if err := t.HandshakeContext(hctx); err != nil {
		c.Close()
		if context.Cause(hctx) == errHandshake {
			err = fmt.Errorf("connect to %s: %w", p.address, errHandshake)
		}
		return nil, err
	}
	return t, nil
}

// alive says whether nothing has happened on a connection, as far as is known here: no
// server speaks first, but to say that it ends one, nor after a handshake that offered no
// resumption.
func alive(c net.Conn) bool {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	t, ok := c.(*net.TCPConn)
	if !ok {
		return true
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return false
	}
	ok = false
	err = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN | unix.POLLRDHUP}}
		n, err := unix.Poll(poll, 0)
		ok = n == 0 && (err == nil || err == unix.EINTR)
	})
	return ok && err == nil
}

// Package link stands between clients and an HTTP server on loopback: it gives
// connections the latency and the bandwidth of a chosen network, and counts what
// a registry is asked for.
//
// The model: a new connection costs one round trip before its first byte
// arrives, every byte takes half a round trip, and what the server sends is
// spaced out by two rates, one for each connection and one for all of them
// together. There is no slow start and no loss. The way to the server has
// latency only.
package link

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// Shape is what a link is like. Zero fields do not limit; the zero Shape hands
// connections through untouched.
type Shape struct {
	RTT     time.Duration `json:"rtt"`      // round trip, in nanoseconds in JSON
	Total   int64         `json:"total"`    // bytes per second to all clients together
	PerConn int64         `json:"per_conn"` // bytes per second on one connection
}

// quantum is the most that is sent at once. At 100 MB/s it takes 160 µs.
const quantum = 16 << 10

// bucket hands out the times at which bytes have passed a rate limit.
type bucket struct {
	sync.Mutex
	rate int64 // bytes per second; 0 is no limit
	next time.Time
}

// reserve returns the time at which n more bytes have passed.
func (b *bucket) reserve(n int, now time.Time) time.Time {
	b.Lock()
	defer b.Unlock()
	if b.rate <= 0 {
		return now
	}
	// What a late timer or a busy processor cost may be caught up on, a little.
	const credit = 2 * time.Millisecond
	if b.next.Before(now.Add(-credit)) {
		b.next = now.Add(-credit)
	}
	b.next = b.next.Add(time.Duration(int64(n) * int64(time.Second) / b.rate))
	return b.next
}

func (b *bucket) setRate(rate int64) {
	b.Lock()
	defer b.Unlock()
	b.rate = rate
}

// Listener shapes the connections that it accepts from another listener.
type Listener struct {
	net.Listener
	total bucket

	mu struct {
		sync.Mutex
		shape Shape
		conns map[*conn]struct{}
	}
	running sync.WaitGroup
}

// Listen shapes what l accepts. Closing the result closes l and every shaped
// connection, and waits for what carries them.
func Listen(l net.Listener, shape Shape) *Listener {
	s := &Listener{Listener: l}
	s.mu.conns = map[*conn]struct{}{}
	s.SetShape(shape)
	return s
}

// SetShape changes what connections accepted from now on are like. The total
// rate changes for the old ones too.
func (l *Listener) SetShape(shape Shape) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.shape = shape
	l.total.setRate(shape.Total)
}

// Shape returns the shape in force.
func (l *Listener) Shape() Shape {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.shape
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	client, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	shape := l.Shape()
	if shape == (Shape{}) {
		return client, nil
	}
	inner, server := net.Pipe()
	c := &conn{client: client, server: inner, total: &l.total, shape: shape, accepted: time.Now(), done: make(chan struct{})}
	c.own.rate = shape.PerConn
	l.mu.Lock()
	l.mu.conns[c] = struct{}{}
	l.mu.Unlock()
	l.running.Add(1)
	go func() {
		defer l.running.Done()
		c.run()
		l.mu.Lock()
		delete(l.mu.conns, c)
		l.mu.Unlock()
	}()
	return &serverEnd{Conn: server, local: client.LocalAddr(), remote: client.RemoteAddr(), due: &c.due}, nil
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	err := l.Listener.Close()
	l.mu.Lock()
	for c := range l.mu.conns {
		c.close()
	}
	l.mu.Unlock()
	l.running.Wait()
	return err
}

// serverEnd is what the server sees of a shaped connection.
type serverEnd struct {
	net.Conn
	local, remote net.Addr
	due           *atomic.Int64
}

type dueKey struct{}

// ConnContext is for http.Server: requests know when they arrived, see arrived.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if s, ok := c.(*serverEnd); ok {
		return context.WithValue(ctx, dueKey{}, s.due)
	}
	return ctx
}

// arrived is when the last byte of a request that is being served was due at the server by
// the link, however long this machine took to serve it; now on a connection without a link.
func arrived(r *http.Request) time.Time {
	if due, ok := r.Context().Value(dueKey{}).(*atomic.Int64); ok {
		return time.Unix(0, due.Load())
	}
	return time.Now()
}

func (s *serverEnd) LocalAddr() net.Addr  { return s.local }
func (s *serverEnd) RemoteAddr() net.Addr { return s.remote }

// conn carries bytes between a client's TCP connection and the server's pipe.
type conn struct {
	due            atomic.Int64 // when the client's last bytes are due at the server, in Unix nanoseconds
	client, server net.Conn
	own            bucket
	total          *bucket
	shape          Shape
	accepted       time.Time
	once           sync.Once
	done           chan struct{} // closed when the connection is to end
}

// segment is bytes on their way. An empty one ends the stream.
type segment struct {
	data    []byte
	arrival time.Time
}

func (c *conn) close() {
	c.once.Do(func() {
		close(c.done)
		c.client.Close()
		c.server.Close()
	})
}

// run returns when the connection has ended in both directions.
func (c *conn) run() {
	defer c.close()
	oneWay := c.shape.RTT / 2
	var ways sync.WaitGroup
	ways.Add(2)
	go func() {
		defer ways.Done()
		established := c.accepted.Add(c.shape.RTT)
		c.carry(c.server, c.client, 64, func(_ int, now time.Time) time.Time {
			if now.Before(established) {
				now = established
			}
			at := now.Add(oneWay)
			c.due.Store(at.UnixNano())
			return at
		})
		c.close() // a client that stops sending has gone: HTTP does not half-close
	}()
	go func() {
		defer ways.Done()
		c.carry(c.client, c.server, c.window(oneWay), func(n int, now time.Time) time.Time {
			at := c.own.reserve(n, now)
			if all := c.total.reserve(n, now); all.After(at) {
				at = all
			}
			return at.Add(oneWay)
		})
		c.close()
	}()
	ways.Wait()
}

// window is how many segments may be on their way so that the latency does not
// limit the rate further.
func (c *conn) window(oneWay time.Duration) int {
	rate := c.shape.PerConn
	if rate <= 0 || c.shape.Total > 0 && c.shape.Total < rate {
		rate = c.shape.Total
	}
	return 8 + int(rate*int64(oneWay)/int64(time.Second)/quantum)
}

// carry moves bytes from src to dst; arrival says when n bytes that were read at
// now are due at dst.
func (c *conn) carry(dst io.Writer, src io.Reader, window int, arrival func(n int, now time.Time) time.Time) {
	line := make(chan segment, window)
	var sender sync.WaitGroup
	sender.Add(1)
	go func() {
		defer sender.Done()
		c.deliver(dst, line)
	}()
	defer sender.Wait()
	defer close(line)
	buf := make([]byte, quantum)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			data := append([]byte(nil), buf[:n]...)
			select {
			case line <- segment{data: data, arrival: arrival(n, time.Now())}:
			case <-c.done:
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// deliver writes segments to dst when they are due.
func (c *conn) deliver(dst io.Writer, line <-chan segment) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for s := range line {
		if wait := time.Until(s.arrival); wait > 0 {
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-c.done:
			}
		}
		if _, err := dst.Write(s.data); err != nil {
			if !errors.Is(err, net.ErrClosed) && !errors.Is(err, io.ErrClosedPipe) {
				c.close()
			}
			for range line { // let the reader go on to find the end
			}
			return
		}
	}
}

package worker

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// acceptor counts the connections that are made to it, and keeps them.
type acceptor struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func accept(t *testing.T) *acceptor {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	a := &acceptor{Listener: l}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			a.mu.Lock()
			a.conns = append(a.conns, c)
			a.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
		a.closeAll()
	})
	return a
}

func (a *acceptor) count() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.conns)
}

func (a *acceptor) closeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		c.Close()
	}
}

// has waits until so many connections were made.
func (a *acceptor) has(t *testing.T, n int) {
	t.Helper()
	require.Eventually(t, func() bool { return a.count() >= n }, 10*time.Second, time.Millisecond)
	require.Equal(t, n, a.count())
}

// allEnded waits until the other sides of all connections have ended.
func (a *acceptor) allEnded(t *testing.T) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.conns {
		_, err := c.Read(make([]byte, 1))
		require.ErrorIs(t, err, io.EOF)
	}
}

func (a *acceptor) place() place { return place{address: a.Addr().String()} }

func connectionsOf(t *testing.T) *connections {
	t.Helper()
	d := newConnections(&tls.Config{})
	d.life = time.Minute
	t.Cleanup(d.Close)
	return d
}

func (d *connections) mustGet(t *testing.T, p place) net.Conn {
	t.Helper()
	c, err := d.get(t.Context(), p)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return c
}

// spare is how many connections wait, or are being made.
func (d *connections) spare(p place) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.placeLocked(p).free
}

func TestFirstConnectionBringsOthers(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	for range 1 + firstSpares {
		d.mustGet(t, a.place())
	}
	a.has(t, 1+firstSpares)
	d.mustGet(t, a.place()) // made when it is wanted, and alone
	a.has(t, 2+firstSpares)
	require.Zero(t, d.spare(a.place()))
}

func TestAheadConnectionsAreUsed(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	d.Ahead(a.place(), 10)
	d.Ahead(a.place(), 7) // there are ten
	a.has(t, 10)
	var all sync.WaitGroup
	for range 10 {
		all.Go(func() {
			c, err := d.get(context.Background(), a.place())
			if err != nil {
				t.Error(err)
				return
			}
			c.Close()
		})
	}
	all.Wait()
	a.has(t, 10)
	d.Ahead(a.place(), 1000)
	a.has(t, 10+maxSpares)
}

func TestSpareThatWasEndedIsNotUsed(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	d.Ahead(a.place(), 2)
	a.has(t, 2)
	a.closeAll()
	// The end has to have arrived.
	require.Eventually(t, func() bool {
		c, err := d.get(t.Context(), a.place())
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		_, err = c.Read(make([]byte, 1))
		ne, ok := err.(net.Error)
		return ok && ne.Timeout() && a.count() > 2
	}, 10*time.Second, time.Millisecond)
}

// A server that ends a connection of TLS says so before; one of plain HTTP may say that it
// has waited for too long.
func TestSpareOnWhichSomethingWasSaid(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	defer srv.Close()
	d := newConnections(&tls.Config{InsecureSkipVerify: true})
	defer d.Close()
	c := d.mustGet(t, place{srv.Listener.Addr().String(), true})
	require.True(t, alive(c))
	srv.CloseClientConnections()
	require.Eventually(t, func() bool { return !alive(c) }, 10*time.Second, time.Millisecond)

	a := accept(t)
	c = d.mustGet(t, a.place())
	a.has(t, 1+firstSpares)
	require.True(t, alive(c))
	a.mu.Lock()
	for _, c := range a.conns {
		_, err := c.Write([]byte("HTTP/1.1 408 Request Timeout\r\n\r\n"))
		require.NoError(t, err)
	}
	a.mu.Unlock()
	require.Eventually(t, func() bool { return !alive(c) }, 10*time.Second, time.Millisecond)
}

// TestHandshakeThatHangs: the error is the one by which a host is taken to speak plain HTTP.
func TestHandshakeThatHangs(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errHandshake)
	defer cancel()
	_, err := d.connect(ctx, place{a.Addr().String(), true})
	require.ErrorContains(t, err, "TLS handshake timeout")
}

func TestSparesEnd(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	d.life = 50 * time.Millisecond
	d.Ahead(a.place(), 3)
	a.has(t, 3)
	require.Eventually(t, func() bool { return d.spare(a.place()) == 0 }, 10*time.Second, time.Millisecond)
	a.allEnded(t)
}

func TestCloseEndsSpares(t *testing.T) {
	a, d := accept(t), connectionsOf(t)
	d.Ahead(a.place(), 3)
	a.has(t, 3)
	d.Close()
	a.allEnded(t)
	d.Ahead(a.place(), 3)
	d.mustGet(t, a.place()) // a request that is under way can still be made
	a.has(t, 4)
}

func TestSpareThatCannotBeMade(t *testing.T) {
	d := connectionsOf(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	p := place{address: l.Addr().String()}
	l.Close()
	d.Ahead(p, 3)
	for range 5 {
		_, err := d.get(t.Context(), p)
		require.ErrorContains(t, err, "refused")
	}
	require.Eventually(t, func() bool { return d.spare(p) == 0 }, 10*time.Second, time.Millisecond)
}

// TestWaitForSpareIsGivenUp: an address where nobody answers.
func TestWaitForSpareIsGivenUp(t *testing.T) {
	d := connectionsOf(t)
	hang := make(chan struct{})
	d.net.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		select {
		case <-ctx.Done():
		case <-hang:
		}
		return nil, context.DeadlineExceeded
	}}
	p := place{address: "nowhere.invalid:80"}
	d.Ahead(p, 2)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := d.get(ctx, p)
	require.Error(t, err)
	require.Equal(t, 2, d.spare(p))
	d.mu.Lock()
	require.Zero(t, d.placeLocked(p).taken)
	d.mu.Unlock()
	close(hang)
}

func TestManyPlacesAreForgotten(t *testing.T) {
	d := connectionsOf(t)
	for i := range 3 * maxPlaces {
		d.mu.Lock()
		d.placeLocked(place{address: string(rune('a' + i))})
		n := len(d.mu.places)
		d.mu.Unlock()
		require.LessOrEqual(t, n, maxPlaces)
	}
}

func TestSparesOfTLS(t *testing.T) {
	srv := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	srv.Config.ErrorLog = log.New(io.Discard, "", 0) // of spares that are closed
	defer srv.Close()
	pool := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	d := newConnections(&tls.Config{RootCAs: pool, ServerName: "example.com"})
	defer d.Close()
	p := place{address: srv.Listener.Addr().String(), secure: true}
	d.Ahead(p, 2)
	tr := &http.Transport{DialContext: d.Dial, DialTLSContext: d.DialTLS}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Get(srv.URL)
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusTeapot, resp.StatusCode)
	require.Equal(t, 1, d.spare(p))

	wrong := newConnections(&tls.Config{RootCAs: pool, ServerName: "example.org"})
	defer wrong.Close()
	_, err = wrong.get(t.Context(), p)
	var ce *tls.CertificateVerificationError
	require.ErrorAs(t, err, &ce)
}

package link

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// serve puts handler behind a link and returns its URL.
func serve(t *testing.T, shape Shape, handler http.Handler) (string, *Listener) {
	t.Helper()
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l := Listen(tcp, shape)
	server := &http.Server{Handler: handler, ConnContext: ConnContext}
	done := make(chan struct{})
	go func() {
		defer close(done)
		server.Serve(l)
	}()
	t.Cleanup(func() {
		server.Close()
		l.Close()
		<-done
	})
	return "http://" + tcp.Addr().String(), l
}

// fetch reads a body on a connection of its own, and says how long it took.
func fetch(t *testing.T, c *http.Client, url string) ([]byte, time.Duration) {
	t.Helper()
	start := time.Now()
	resp, err := c.Get(url)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return body, time.Since(start)
}

func client(t *testing.T) *http.Client {
	tr := &http.Transport{}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestLatency(t *testing.T) {
	const rtt = 60 * time.Millisecond
	url, _ := serve(t, Shape{RTT: rtt}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }))
	c := client(t)
	_, first := fetch(t, c, url)
	_, second := fetch(t, c, url)
	require.GreaterOrEqual(t, first, 2*rtt, "connecting and asking")
	require.GreaterOrEqual(t, second, rtt, "asking on the same connection")
	require.Less(t, second, 2*rtt)
}

// A request arrives when the link brings it, whoever is slow to serve it.
func TestArrival(t *testing.T) {
	const rtt = 60 * time.Millisecond
	at := make(chan time.Time, 2)
	url, l := serve(t, Shape{RTT: rtt}, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		time.Sleep(rtt)
		at <- arrived(r)
	}))
	c := client(t)
	begin := time.Now()
	fetch(t, c, url)
	first := <-at
	require.GreaterOrEqual(t, first.Sub(begin), 3*rtt/2, "connecting and half a round trip")
	require.Less(t, first.Sub(begin), 5*rtt/2)
	begin = time.Now()
	fetch(t, c, url)
	second := <-at
	require.GreaterOrEqual(t, second.Sub(begin), rtt/2)
	require.Less(t, second.Sub(begin), 3*rtt/2)
	l.SetShape(Shape{})
	c.CloseIdleConnections()
	begin = time.Now()
	fetch(t, c, url)
	require.WithinRange(t, <-at, begin, time.Now())
}

func TestBandwidth(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	handler := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(content) })
	for _, tc := range []struct {
		name  string
		shape Shape
		conns int
		want  time.Duration
	}{
		{"one connection", Shape{PerConn: 4 << 20}, 1, time.Second / 4},
		{"connections do not share their own rate", Shape{PerConn: 4 << 20}, 3, time.Second / 4},
		{"they share the rate of the link", Shape{PerConn: 8 << 20, Total: 8 << 20}, 3, 3 * time.Second / 8},
		{"latency does not limit the rate", Shape{RTT: 100 * time.Millisecond, PerConn: 4 << 20}, 1, time.Second/4 + 200*time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			url, _ := serve(t, tc.shape, handler)
			var all sync.WaitGroup
			start := time.Now()
			for range tc.conns {
				all.Add(1)
				go func() {
					defer all.Done()
					resp, err := client(t).Get(url)
					if err != nil {
						t.Error(err)
						return
					}
					defer resp.Body.Close()
					body, err := io.ReadAll(resp.Body)
					if err != nil || !bytes.Equal(body, content) {
						t.Errorf("%d bytes, which are wrong: %v", len(body), err)
					}
				}()
			}
			all.Wait()
			took := time.Since(start)
			require.Greater(t, took, tc.want*9/10)
			require.Less(t, took, tc.want*9/10+time.Second, "much slower than the link")
		})
	}
}

func TestShapeChanges(t *testing.T) {
	url, l := serve(t, Shape{}, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }))
	_, before := fetch(t, client(t), url)
	l.SetShape(Shape{RTT: 200 * time.Millisecond})
	_, after := fetch(t, client(t), url)
	require.Less(t, before, 200*time.Millisecond)
	require.GreaterOrEqual(t, after, 400*time.Millisecond)
}

func TestClientThatGoesEndsTheRequest(t *testing.T) {
	gone := make(chan struct{})
	url, _ := serve(t, Shape{RTT: time.Millisecond}, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		close(gone)
	}))
	resp, err := client(t).Get(url)
	require.NoError(t, err)
	resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the server does not see that the client has gone")
	}
}

func TestCount(t *testing.T) {
	const (
		config = "sha256:aaaa"
		layer  = "sha256:bbbb"
	)
	counter := NewCounter(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/v2/a/b/manifests/latest":
			fmt.Fprintf(w, `{"config":{"digest":%q},"layers":[{"digest":%q}]}`, config, layer)
		case "/v2/a/b/blobs/" + config:
			io.WriteString(w, "{}")
		case "/v2/a/b/blobs/" + layer:
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(make([]byte, 1000)))
		default:
			http.NotFound(w, r)
		}
	}))
	ask := func(method, path, ranges string) {
		req := httptest.NewRequest(method, path, nil)
		if ranges != "" {
			req.Header.Set("Range", ranges)
		}
		counter.ServeHTTP(httptest.NewRecorder(), req)
	}
	ask("GET", "/v2/", "")
	ask("HEAD", "/v2/a/b/manifests/latest", "")
	ask("GET", "/v2/a/b/manifests/latest", "")
	ask("GET", "/v2/a/b/blobs/"+config, "")
	ask("HEAD", "/v2/a/b/blobs/"+layer, "")
	ask("GET", "/v2/a/b/blobs/"+layer, "bytes=0-99")
	ask("GET", "/v2/a/b/blobs/"+layer, "")
	ask("POST", "/v2/a/b/blobs/uploads/", "")

	s := counter.Stats()
	require.Equal(t, Blob{Gets: 2, Heads: 1, Bytes: 1100, Ranges: []string{"bytes=0-99", ""}}, s.Blobs[layer])
	require.Equal(t, int64(1100), s.LayerBytes)
	require.Equal(t, 2, s.Failed, "the version check and the upload are not found")
	require.Equal(t, 6, s.OtherRequests())
	require.Equal(t, s.LayerBytes, s.DataBytes, "nobody has named a table of contents")
	s.Blobs, s.Bytes, s.LayerBytes, s.DataBytes, s.DataSpan, s.Failed = nil, 0, 0, 0, 0, 0
	require.Equal(t, Stats{Requests: 8, Manifests: 1, ManifestHeads: 1, Configs: 1, LayerGets: 2, LayerHeads: 1, DataGets: 2, Other: 2, Pushes: 1}, s)

	counter.Reset()
	require.Equal(t, Stats{Blobs: map[string]Blob{}}, counter.Stats())
}

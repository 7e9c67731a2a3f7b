package worker

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/stretchr/testify/require"
)

// clock is moved by hand.
type clock struct{ t time.Time }

func (c *clock) now() time.Time { return c.t }

func (c *clock) pass(d time.Duration) { c.t = c.t.Add(d) }

// watched is a traffic over one server, on a clock, and a client behind it.
func watched(t *testing.T, h http.HandlerFunc) (*traffic, *clock, func() (*http.Response, error)) {
	t.Helper()
	server := httptest.NewServer(h)
	t.Cleanup(server.Close)
	c := &clock{t: time.Now()}
	tr := newTraffic()
	tr.now = c.now
	hosts := tr.watch([]docker.RegistryHost{{Host: "a", Client: server.Client()}})
	return tr, c, func() (*http.Response, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
		require.NoError(t, err)
		return hosts[0].Client.Do(req)
	}
}

func TestTrafficAtRest(t *testing.T) {
	tr, c, get := watched(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "bytes") })
	require.Zero(t, tr.stalled())
	resp, err := get()
	require.NoError(t, err)
	_, err = io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	c.pass(time.Hour)
	require.Zero(t, tr.stalled(), "nothing is asked")
}

func TestTrafficHangs(t *testing.T) {
	release, asked := make(chan struct{}), make(chan struct{})
	tr, c, get := watched(t, func(w http.ResponseWriter, _ *http.Request) {
		close(asked)
		<-release
		io.WriteString(w, "bytes")
	})
	type answer struct {
		*http.Response
		error
	}
	got := make(chan answer)
	go func() { r, err := get(); got <- answer{r, err} }()
	<-asked
	c.pass(5 * time.Second)
	require.Equal(t, 5*time.Second, tr.stalled())
	close(release)
	resp := <-got
	require.NoError(t, resp.error)
	require.Zero(t, tr.stalled(), "a header is progress")
	c.pass(time.Second)
	require.Equal(t, time.Second, tr.stalled(), "the body is awaited")
	_, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Zero(t, tr.stalled())
	require.NoError(t, resp.Body.Close())
	require.NoError(t, resp.Body.Close(), "closing twice counts once")
	c.pass(time.Hour)
	require.Zero(t, tr.stalled())
}

func TestTrafficFails(t *testing.T) {
	status := http.StatusServiceUnavailable
	tr, c, get := watched(t, func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		io.Copy(w, strings.NewReader("sorry"))
	})
	ask := func() {
		resp, err := get()
		require.NoError(t, err)
		io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
	}
	ask()
	c.pass(2 * time.Second)
	ask()
	c.pass(2 * time.Second)
	require.Equal(t, 4*time.Second, tr.stalled(), "since the first of the failures")
	status = http.StatusPartialContent
	ask()
	require.Zero(t, tr.stalled())

	status = http.StatusInternalServerError
	ask()
	c.pass(stillTrying)
	require.Zero(t, tr.stalled(), "nobody asks any more")
	ask()
	require.Zero(t, tr.stalled(), "a new attempt starts anew")
}

func TestTrafficRefused(t *testing.T) {
	tr := newTraffic()
	c := &clock{t: time.Now()}
	tr.now = c.now
	dead := httptest.NewServer(nil)
	dead.Close()
	hosts := tr.watch([]docker.RegistryHost{{Host: "a"}})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, dead.URL, nil)
	require.NoError(t, err)
	_, err = hosts[0].Client.Do(req)
	require.Error(t, err)
	c.pass(time.Second)
	require.Equal(t, time.Second, tr.stalled())
}

package link

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestHeldBlobsHang(t *testing.T) {
	h := NewHolder(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "x") }))
	server := httptest.NewServer(h)
	defer server.Close()
	h.Hold("sha256:a")
	_, wall := fetch(t, client(t), server.URL+"/v2/x/blobs/sha256:b")
	require.Less(t, wall, time.Second, "another blob passes")
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		resp, err := client(t).Get(server.URL + "/v2/x/blobs/sha256:a")
		if err == nil {
			resp.Body.Close()
		}
	}()
	select {
	case <-answered:
		t.Error("the held blob was answered")
	case <-time.After(100 * time.Millisecond):
	}
	h.Hold()
	<-answered
}

func TestPushesAreCounted(t *testing.T) {
	c := NewCounter(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	server := httptest.NewServer(c)
	defer server.Close()
	for method, body := range map[string]string{http.MethodPost: "", http.MethodPatch: "12345", http.MethodPut: "678"} {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+"/v2/x/blobs/uploads/1", strings.NewReader(body))
		require.NoError(t, err)
		resp, err := client(t).Do(req)
		require.NoError(t, err)
		resp.Body.Close()
	}
	s := c.Stats()
	require.Equal(t, 3, s.Pushes)
	require.EqualValues(t, 8, s.PushedBytes)
}

package fault

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const blobPath = "/v2/repo/blobs/sha256:aa"

// rig is a proxy in front of a server of one blob.
type rig struct {
	*testing.T
	*Proxy
	data []byte
}

func newRig(t *testing.T, opts Options) *rig {
	r := &rig{T: t, data: bytes.Repeat([]byte("0123456789"), 1000)}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		http.ServeContent(w, req, "", time.Time{}, bytes.NewReader(r.data))
	}))
	t.Cleanup(upstream.Close)
	opts.Upstream = strings.TrimPrefix(upstream.URL, "http://")
	p, err := New(opts)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	r.Proxy = p
	return r
}

// get asks on a connection of its own.
func (r *rig) get(path string, header ...string) (status int, h http.Header, body []byte, err error) {
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, "http://"+r.Addr+path, nil)
	require.NoError(r, err)
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 3 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, body, err
}

func TestFaults(t *testing.T) {
	for name, f := range map[string]Fault{
		"status": {Status: 503}, "refuse": {Refuse: true, For: 100 * time.Millisecond}, "reset": {Reset: true},
		"hang": {Hang: true, For: 50 * time.Millisecond}, "cut": {Cut: true}, "stall": {Stall: true, For: 50 * time.Millisecond},
		"whole": {Whole: true}, "short": {Short: true}, "long": {Long: true}, "flip": {Flip: true}, "swap": {Swap: true},
		"drip": {Drip: true}, "range": {Range: "bytes 1-2/3"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Options{Seed: 1})
			right := func() bool {
				status, h, body, err := r.get(blobPath, "Range", "bytes=1000-4999")
				return err == nil && status == http.StatusPartialContent && bytes.Equal(body, r.data[1000:5000]) &&
					h.Get("Content-Range") == "bytes 1000-4999/10000"
			}
			require.True(t, right())
			f.Skip, f.Times = 1, 1
			r.Set(f)
			require.True(t, right(), "left alone")
			require.False(t, right(), "goes wrong")
			require.Equal(t, 1, r.Hits())
			time.Sleep(f.For + 100*time.Millisecond)
			require.True(t, right(), "goes wrong once")
		})
	}
}

func TestKinds(t *testing.T) {
	r := newRig(t, Options{Tails: map[string]int64{"sha256:aa": 9000}, Configs: []string{"sha256:cc"}})
	for _, tc := range []struct {
		path, rng string
		want      Kind
	}{
		{blobPath, "bytes=0-10", Data}, {blobPath, "", Data}, {blobPath, "bytes=9000-", TOC}, {blobPath, "bytes=-100", TOC},
		{"/v2/repo/blobs/sha256:cc", "", Manifest}, {"/v2/repo/manifests/1", "", Manifest}, {"/token", "", Token}, {"/v2/", "", Other},
	} {
		r.Set(Fault{On: []Kind{tc.want}, Status: 418})
		status, _, _, err := r.get(tc.path, "Range", tc.rng)
		require.NoError(t, err)
		require.Equal(t, 418, status, "%s %s is %s", tc.path, tc.rng, tc.want)
	}
}

func TestTokensAndRedirectsExpire(t *testing.T) {
	r := newRig(t, Options{TokenTTL: 200 * time.Millisecond, RedirectTTL: 100 * time.Millisecond})
	status, h, _, err := r.get(blobPath)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, status)
	require.Contains(t, h.Get("WWW-Authenticate"), "repository:repo:pull")
	_, _, answer, err := r.get("/token")
	require.NoError(t, err)
	token := strings.Split(string(answer), `"`)[3]
	status, _, body, err := r.get(blobPath, "Authorization", "Bearer "+token)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, status)
	require.Equal(t, r.data, body)
	time.Sleep(250 * time.Millisecond)
	status, _, _, err = r.get(blobPath, "Authorization", "Bearer "+token)
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, status)
	status, _, _, err = r.get("/signed" + blobPath + "?until=1")
	require.NoError(t, err)
	require.Equal(t, http.StatusForbidden, status)
	r.Revoke()
	status, _, _, err = r.get("/token")
	require.NoError(t, err)
	require.Equal(t, http.StatusUnauthorized, status)
}

func TestRefusedForAWhile(t *testing.T) {
	r := newRig(t, Options{})
	r.Set(Fault{Refuse: true, For: time.Second})
	start, asked := time.Now(), 0
	for {
		asked++
		if status, _, _, err := r.get(blobPath); err == nil {
			require.Equal(t, http.StatusOK, status)
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	require.GreaterOrEqual(t, time.Since(start), time.Second)
	require.Greater(t, asked, 10)
	require.Equal(t, 1, r.Hits(), "the others have met nobody")
}

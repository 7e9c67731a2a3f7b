package worker

import (
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

// flaky is a registry that answers as each of answers says, and rightly when they
// are used up.
type flaky struct {
	*httptest.Server
	asked atomic.Int32
}

const document = `{"schemaVersion":2}`

func newFlaky(t *testing.T, answers ...http.HandlerFunc) *flaky {
	f := &flaky{}
	f.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := int(f.asked.Add(1)); n <= len(answers) {
			answers[n-1](w, r)
			return
		}
		w.Header().Set("Docker-Content-Digest", digest.FromString(document).String())
		io.WriteString(w, document)
	}))
	t.Cleanup(f.Close)
	return f
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// ask asks the host at place n of several for a manifest.
func ask(t *testing.T, limit time.Duration, n int, method, path string, header http.Header, servers ...*flaky) (*http.Response, string, error) {
	hosts := Patient(func(string) (out []docker.RegistryHost, _ error) {
		for _, s := range servers {
			out = append(out, docker.RegistryHost{Host: s.Listener.Addr().String(), Client: s.Client()})
		}
		return out, nil
	}, limit, limit)
	all, err := hosts("x")
	require.NoError(t, err)
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+all[n].Host+path, nil)
	require.NoError(t, err)
	req.Header = header
	resp, err := all[n].Client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp, string(body), err
}

func cut(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Length", "1000")
	io.WriteString(w, document)
	panic(http.ErrAbortHandler)
}

func wrong(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Docker-Content-Digest", digest.FromString(document).String())
	io.WriteString(w, strings.ToUpper(document))
}

func TestPatientAsksAgain(t *testing.T) {
	for name, answer := range map[string]http.HandlerFunc{
		"429": status(429), "429 with Retry-After": status(429, "Retry-After", "1"), "500": status(500), "501": status(501),
		"502": status(502), "503": status(503), "504": status(504), "cut": cut, "wrong": wrong,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newFlaky(t, answer, answer)
			_, body, err := ask(t, 10*time.Second, 0, http.MethodGet, "/v2/repo/manifests/1", nil, s)
			require.NoError(t, err)
			require.Equal(t, document, body)
			require.EqualValues(t, 3, s.asked.Load())
		})
	}
}

func TestPatientHandsOn(t *testing.T) {
	good := newFlaky(t)
	for _, tc := range []struct {
		name         string
		n            int
		limit        time.Duration
		method, path string
		rng          string
	}{
		{"a mirror's failure", 0, time.Minute, http.MethodGet, "/v2/repo/manifests/1", ""},
		{"what it is not to repeat", 1, -1, http.MethodGet, "/v2/repo/manifests/1", ""},
		{"ranges", 1, time.Minute, http.MethodGet, "/v2/repo/blobs/sha256:aa", "bytes=0-1"},
		{"questions for a blob", 1, time.Minute, http.MethodHead, "/v2/repo/blobs/sha256:aa", ""},
		{"pushes", 1, time.Minute, http.MethodPost, "/v2/repo/blobs/uploads/", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bad := newFlaky(t, status(503))
			servers := []*flaky{bad, good}
			if tc.n == 1 {
				servers = []*flaky{good, bad}
			}
			header := http.Header{}
			if tc.rng != "" {
				header.Set("Range", tc.rng)
			}
			resp, _, err := ask(t, tc.limit, tc.n, tc.method, tc.path, header, servers...)
			require.NoError(t, err)
			require.Equal(t, 503, resp.StatusCode)
			require.EqualValues(t, 1, bad.asked.Load())
		})
	}
	lying := newFlaky(t, wrong)
	_, _, err := ask(t, time.Minute, 0, http.MethodGet, "/v2/repo/manifests/1", nil, lying, good)
	require.ErrorContains(t, err, digest.FromString(document).String(), "a mirror that lies")
	resp, _, err := ask(t, time.Minute, 0, http.MethodGet, "/v2/repo/manifests/1", nil, newFlaky(t, status(404)))
	require.NoError(t, err)
	require.Equal(t, 404, resp.StatusCode, "an answer that will stay")
}

func TestPatientEnds(t *testing.T) {
	forever := make([]http.HandlerFunc, 1000)
	for i := range forever {
		forever[i] = status(503)
	}
	s := newFlaky(t, forever...)
	resp, _, err := ask(t, 500*time.Millisecond, 0, http.MethodGet, "/v2/repo/manifests/1", nil, s)
	require.NoError(t, err)
	require.Equal(t, 503, resp.StatusCode, "the registry's last answer")
	require.Greater(t, s.asked.Load(), int32(1))

	p := &patient{next: http.DefaultTransport, tokens: new(tokens), outages: new(outages), limit: time.Minute}
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL+"/v2/repo/manifests/1", nil)
	require.NoError(t, err)
	_, err = p.RoundTrip(req)
	require.ErrorIs(t, err, context.DeadlineExceeded, "with its caller")
}

// BuildKit asks for a blob again when it was told that it can't be had.
func TestPatientEndsForGood(t *testing.T) {
	forever := make([]http.HandlerFunc, 1000)
	for i := range forever {
		forever[i] = status(503)
	}
	for _, tc := range []struct {
		name, path string
		limit      time.Duration // of all requests together
	}{
		{"a blob", "/v2/repo/blobs/sha256:aa", 700 * time.Millisecond},
		{"a manifest", "/v2/repo/manifests/1", 300 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			s := newFlaky(t, forever...)
			hosts := Patient(func(string) ([]docker.RegistryHost, error) {
				return []docker.RegistryHost{{Host: s.Listener.Addr().String(), Client: s.Client()}}, nil
			}, 300*time.Millisecond, 700*time.Millisecond)
			get := func() int {
				all, err := hosts("x") // as it does for each
				require.NoError(t, err)
				resp, err := all[0].Client.Get(s.URL + tc.path)
				require.NoError(t, err)
				resp.Body.Close()
				return resp.StatusCode
			}
			start := time.Now()
			for time.Since(start) < tc.limit+outageSlack {
				require.Equal(t, 503, get())
				time.Sleep(20 * time.Millisecond)
			}
			before := s.asked.Load()
			for range 3 {
				require.Equal(t, 503, get())
			}
			require.EqualValues(t, before+3, s.asked.Load(), "one try each")
			s.asked.Store(2000) // it is well again
			require.Equal(t, 200, get())
			s.asked.Store(0) // and ill
			require.Equal(t, 503, get())
			require.Greater(t, s.asked.Load(), int32(1), "the next outage gets a limit of its own")
		})
	}
}

// outageSlack is for the pauses that a try may lie before its limit.
const outageSlack = 500 * time.Millisecond

func TestOutages(t *testing.T) {
	o, now := new(outages), time.Now()
	require.Zero(t, o.passed("a", now))
	o.failed("a", now.Add(-time.Minute), now)
	require.Equal(t, time.Minute+time.Second, o.passed("a", now.Add(time.Second)))
	require.Zero(t, o.passed("b", now))
	o.failed("a", now, now.Add(2*time.Second))
	require.Equal(t, time.Minute+3*time.Second, o.passed("a", now.Add(3*time.Second)), "the same outage")
	require.Zero(t, o.passed("a", now.Add(2*time.Second+outageGap+1)), "nobody asked for a while")
	o.failed("a", now, now)
	o.ended("a")
	require.Zero(t, o.passed("a", now))
	for i := range 2 * maxOutages {
		o.failed(strconv.Itoa(i), now, now)
	}
	require.LessOrEqual(t, len(o.of), maxOutages)
}

func TestPatientNamesRefusedTokens(t *testing.T) {
	for _, tc := range []struct{ name, token, challenge, want string }{
		{"a token", "Bearer old", `Bearer realm="http://x/token"`, `Bearer realm="http://x/token",error="invalid_token"`},
		{"no token", "", `Bearer realm="http://x/token"`, `Bearer realm="http://x/token"`},
		{"a reason", "Bearer old", `Bearer realm="x",error="insufficient_scope"`, `Bearer realm="x",error="insufficient_scope"`},
		{"a password", "Basic x", `Basic realm="x"`, `Basic realm="x"`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newFlaky(t, status(401, "WWW-Authenticate", tc.challenge))
			header := http.Header{"Range": {"bytes=0-1"}}
			if tc.token != "" {
				header.Set("Authorization", tc.token)
			}
			resp, _, err := ask(t, time.Minute, 0, http.MethodGet, "/v2/repo/blobs/sha256:aa", header, s)
			require.NoError(t, err)
			require.Equal(t, []string{tc.want}, resp.Header["Www-Authenticate"])
		})
	}
}

func TestPatientHasEndedTokensRenewed(t *testing.T) {
	const challenge = `Bearer realm="http://x/token"`
	ok, forbidden, asked := status(206), status(403), status(401, "WWW-Authenticate", challenge)
	for _, tc := range []struct {
		name    string
		answers []http.HandlerFunc // the last to a request without a token
		want    []int
	}{
		{"a token that was accepted", []http.HandlerFunc{ok, forbidden, asked}, []int{206, 401}},
		{"one that never was", []http.HandlerFunc{forbidden}, []int{403}},
		{"a registry that wants none", []http.HandlerFunc{ok, forbidden, status(404)}, []int{206, 403}},
		{"one that wants a password", []http.HandlerFunc{ok, forbidden, status(401, "WWW-Authenticate", `Basic realm="x"`)}, []int{206, 403}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newFlaky(t, tc.answers...)
			p := &patient{next: http.DefaultTransport, tokens: new(tokens), outages: new(outages), limit: time.Minute}
			for _, want := range tc.want {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/v2/repo/blobs/sha256:aa", nil)
				require.NoError(t, err)
				req.Header = http.Header{"Authorization": {"Bearer t"}, "Range": {"bytes=0-1"}}
				resp, err := p.RoundTrip(req)
				require.NoError(t, err)
				resp.Body.Close()
				require.Equal(t, want, resp.StatusCode)
				if want == http.StatusUnauthorized {
					require.Equal(t, []string{challenge + `,error="invalid_token"`}, resp.Header["Www-Authenticate"])
					require.Same(t, req, resp.Request, "the request that was refused")
				}
			}
			require.EqualValues(t, len(tc.answers), s.asked.Load())
		})
	}
}

package main

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/stretchr/testify/require"
)

func TestDebugEndpoints(t *testing.T) {
	cache := &cacheDebug{}
	server := httptest.NewServer(debugMux(cache))
	defer server.Close()
	get := func(method, path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), method, server.URL+path, nil)
		require.NoError(t, err)
		resp, err := server.Client().Do(req)
		require.NoError(t, err)
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return resp.StatusCode, string(body)
	}
	for _, c := range []struct {
		method, path string
		status       int
		body         string
	}{
		{"GET", "/debug/vars", 200, "memstats"},
		{"GET", "/debug/pprof/", 200, "goroutine"},
		{"GET", "/debug/pprof/cmdline", 200, ""},
		{"GET", "/debug/pprof/symbol", 200, ""},
		{"GET", "/debug/events", 200, ""},
		{"GET", "/debug/gc", 200, ""},
		{"GET", "/metrics", 200, "go_goroutines"},
		{"GET", "/debug/cache/all", 200, ""},
		{"GET", "/debug/cache/lookup", 400, "required"},
		{"GET", "/debug/cache/lookup?digest=x", 400, "invalid digest"},
		{"GET", "/debug/cache/lookup?digest=" + rootSelector.String(), 200, "data: /"},
		{"GET", "/debug/cache/store", 500, "not initialized"},
		{"POST", "/debug/cache/store", 405, ""},
		{"GET", "/debug/cache/load", 405, ""},
		{"POST", "/debug/cache/load", 500, "failed to load cache"},
		{"POST", "/debug/flight/trace/stop", 409, "not running"},
		{"POST", "/debug/flight/trace/set_period?period=x", 400, "invalid"},
		{"POST", "/debug/flight/trace/set_period?period=2s", 200, ""},
	} {
		status, body := get(c.method, c.path)
		require.Equal(t, c.status, status, "%s %s: %s", c.method, c.path, body)
		require.Contains(t, body, c.body, c.path)
	}
}

func TestDebugCacheStore(t *testing.T) {
	store, err := bboltcachestorage.NewStore(filepath.Join(t.TempDir(), "cache.db"))
	require.NoError(t, err)
	defer store.Close()
	db, err := cachedigest.NewDB(filepath.Join(t.TempDir(), "digests.db"))
	require.NoError(t, err)
	defer db.Close()
	cachedigest.SetDefaultDB(db)
	defer cachedigest.SetDefaultDB(&cachedigest.DB{})

	made, err := cachedigest.FromBytes([]byte("what it is made of"), cachedigest.TypeString)
	require.NoError(t, err)
	db.Wait()
	require.NoError(t, store.AddLink(made.String(), solver.CacheInfoLink{Digest: made, Selector: rootSelector}, "child"))

	cache := &cacheDebug{}
	cache.setStore(store)
	ask := func(accept string) string {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/debug/cache/store", nil)
		r.Header.Set("Accept", accept)
		cache.handleStore(w, r)
		require.Equal(t, http.StatusOK, w.Code, w.Body)
		return w.Body.String()
	}
	text := ask("")
	require.Contains(t, text, "ID: ")
	require.Contains(t, text, made.String())
	require.Contains(t, text, "what it is made of")
	require.Equal(t, 1, strings.Count(text, "Parents:"))
	var recs []map[string]any
	require.NoError(t, json.Unmarshal([]byte(ask("application/json")), &recs))
	require.Len(t, recs, 2)
}

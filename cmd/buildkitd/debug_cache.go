package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	cacheimport "github.com/moby/buildkit/cache/remotecache/v1"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/moby/buildkit/util/cachestore"
	digest "github.com/opencontainers/go-digest"
)

// rootSelector is the digest of "/", the selector of most links, which the
// database of digests never gets to see.
const rootSelector = digest.Digest("sha256:8a5edab282632443219e051e4ade2d1d5bbc671c781051bf1437897cbdfea0f1")

// cacheDebug explains the solver's cache: what a digest was made of (recorded
// with --save-cache-debug), and the links between records. Its answers are text,
// or JSON for clients that accept it.
type cacheDebug struct {
	// store is set once the controller has opened it; the debug address is
	// served before that.
	store atomic.Pointer[solver.CacheKeyStorage]
}

func (d *cacheDebug) setStore(s solver.CacheKeyStorage) { d.store.Store(&s) }

func (d *cacheDebug) register(m *http.ServeMux) {
	m.HandleFunc("/debug/cache/all", d.handleAll)
	m.HandleFunc("/debug/cache/lookup", d.handleLookup)
	m.HandleFunc("/debug/cache/store", d.handleStore)
	m.HandleFunc("POST /debug/cache/load", d.handleLoad)
}

// handleAll answers with every digest that has been recorded.
func (d *cacheDebug) handleAll(w http.ResponseWriter, r *http.Request) {
	records, err := recordedDigests(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, records, func(w io.Writer) {
		for _, rec := range records {
			printDigest(w, rec)
			fmt.Fprintln(w)
		}
	})
}

// handleLookup answers with what one digest was made of.
func (d *cacheDebug) handleLookup(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query().Get("digest")
	if q == "" {
		http.Error(w, "digest query parameter is required", http.StatusBadRequest)
		return
	}
	dgst, err := digest.Parse(q)
	if err != nil {
		http.Error(w, "invalid digest: "+err.Error(), http.StatusBadRequest)
		return
	}
	rec, err := lookupDigest(r.Context(), dgst)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, rec, func(w io.Writer) { printDigest(w, rec) })
}

// handleStore answers with the daemon's own cache records.
func (d *cacheDebug) handleStore(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet {
		http.Error(w, "Method not allowed", http.StatusMethodNotAllowed)
		return
	}
	store := d.store.Load()
	if store == nil {
		http.Error(w, "Cache store is not initialized for debug", http.StatusInternalServerError)
		return
	}
	recs, err := explain(r.Context(), *store)
	if err != nil {
		http.Error(w, "Failed to debug cache store: "+err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, recs, func(w io.Writer) { printRecords(w, recs) })
}

// handleLoad answers with the records of an exported cache, which is the body.
func (d *cacheDebug) handleLoad(w http.ResponseWriter, r *http.Request) {
	recs, err := loadExported(r.Context(), r.Body)
	if err != nil {
		http.Error(w, "failed to load cache: "+err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, r, recs, func(w io.Writer) { printRecords(w, recs) })
}

// answer writes v as JSON where that is accepted, and text otherwise.
func answer(w http.ResponseWriter, r *http.Request, v any, text func(io.Writer)) {
	if r.Header.Get("Accept") != "application/json" {
		w.Header().Set("Content-Type", "text/plain")
		text(w)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		bklog.G(r.Context()).Debugf("answer of %s: %v", r.URL.Path, err)
	}
}

// recordedDigests reads the database of digests, their parts resolved.
func recordedDigests(ctx context.Context) ([]*cachedigest.Record, error) {
	var records []*cachedigest.Record
	known := map[digest.Digest]*cachedigest.Record{}
	err := cachedigest.GetDefaultDB().All(ctx, func(key string, typ cachedigest.Type, frames []cachedigest.Frame) error {
		dgst, err := digest.Parse(key)
		if err != nil {
			return fmt.Errorf("failed to parse digest %q: %w", key, err)
		}
		rec := &cachedigest.Record{Digest: dgst, Type: typ, Data: frames}
		records = append(records, rec)
		known[dgst] = rec
		return nil
	})
	if err != nil {
		return nil, err
	}
	for _, rec := range records {
		err := rec.LoadSubRecords(func(dgst digest.Digest) (cachedigest.Type, []cachedigest.Frame, error) {
			if part, ok := known[dgst]; ok {
				return part.Type, part.Data, nil
			}
			return "", nil, fmt.Errorf("digest %s not found in cache", dgst)
		})
		if err != nil {
			return nil, fmt.Errorf("failed to load sub-records for %s: %w", rec.Digest, err)
		}
	}
	return records, nil
}

// lookupDigest reads one digest and its parts.
func lookupDigest(ctx context.Context, dgst digest.Digest) (*cachedigest.Record, error) {
	if dgst == rootSelector {
		return &cachedigest.Record{
			Digest: dgst,
			Type:   cachedigest.TypeString,
			Data:   []cachedigest.Frame{{ID: cachedigest.FrameIDData, Data: []byte("/")}},
		}, nil
	}
	get := func(dgst digest.Digest) (cachedigest.Type, []cachedigest.Frame, error) {
		typ, frames, err := cachedigest.GetDefaultDB().Get(ctx, dgst.String())
		if err != nil {
			err = fmt.Errorf("failed to get digest %s from cache: %w", dgst, err)
		}
		return typ, frames, err
	}
	typ, frames, err := get(dgst)
	if err != nil {
		return nil, err
	}
	rec := &cachedigest.Record{Digest: dgst, Type: typ, Data: frames}
	if err := rec.LoadSubRecords(get); err != nil {
		return nil, fmt.Errorf("failed to load sub-records for %s: %w", dgst, err)
	}
	return rec, nil
}

// explained is a cache record with what its digests were made of.
type explained struct {
	*cachestore.Record
	Debug []*cachedigest.Record `json:"debug,omitempty"`
}

func explain(ctx context.Context, store solver.CacheKeyStorage) ([]*explained, error) {
	recs, err := cachestore.Records(ctx, store)
	if err != nil {
		return nil, fmt.Errorf("failed to get cache records: %w", err)
	}
	out := make([]*explained, len(recs))
	for i, rec := range recs {
		out[i] = &explained{Record: rec}
		for dgst := range digestsOf(rec) {
			found, err := lookupDigest(ctx, dgst)
			if err != nil {
				bklog.G(ctx).Errorf("failed to lookup cache record for %s: %v", dgst, err)
				continue
			}
			out[i].Debug = append(out[i].Debug, found)
		}
	}
	return out, nil
}

// digestsOf is the set of digests that a record refers to.
func digestsOf(rec *cachestore.Record) map[digest.Digest]struct{} {
	set := map[digest.Digest]struct{}{}
	add := func(dgst digest.Digest) {
		if dgst != "" {
			set[dgst] = struct{}{}
		}
	}
	add(rec.Digest)
	for _, link := range rec.Parents {
		add(link.Digest)
		add(link.Selector)
	}
	return set
}

func loadExported(ctx context.Context, body io.Reader) ([]*explained, error) {
	data, err := io.ReadAll(body)
	if err != nil {
		return nil, fmt.Errorf("failed to read body: %w", err)
	}
	chains := cacheimport.NewCacheChains()
	if err := cacheimport.Parse(data, cacheimport.DescriptorProvider{}, chains); err != nil {
		return nil, err
	}
	keys, _, err := cacheimport.NewCacheKeyStorage(chains, nil)
	if err != nil {
		return nil, err
	}
	return explain(ctx, keys)
}

package blobtest

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// piece is how much is written at a time: small, so that pacing is smooth.
const piece = 16 << 10

// serveRegistry is the registry's side of docker's v2 protocol, as far as pulls go.
func (r *Registry) serveRegistry(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/token" {
		r.entry(describe(req, "", false))
		r.serveToken(w, req)
		return
	}
	rest, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, req)
		return
	}
	repo, kind, name := split(rest)
	seen := describe(req, "", false)
	if kind == "blobs" {
		seen.Blob = digest.Digest(name)
	}
	x := r.begin(w, req, seen)
	if c := r.challenge(req, repo); c != "" {
		w.Header().Set("WWW-Authenticate", c)
		x.fail(http.StatusUnauthorized, "authenticate first")
		return
	}
	if x.faulty() {
		return
	}
	switch kind {
	case "blobs":
		r.mu.Lock()
		ttl := r.redirect
		_, ok := r.blobs[digest.Digest(name)]
		r.mu.Unlock()
		if ttl > 0 && ok {
			at := fmt.Sprintf("%s/data/%s?expires=%d", r.target.URL, name, time.Now().Add(ttl).UnixNano())
			w.Header().Set("Location", at)
			x.fail(http.StatusTemporaryRedirect, "")
			return
		}
		x.blob(digest.Digest(name))
	case "manifests":
		r.serveManifest(x, repo, name)
	default: // the base endpoint
		x.fail(http.StatusOK, "{}")
	}
}

// split takes "a/b/blobs/sha256:..." apart.
func split(path string) (repo, kind, name string) {
	for _, k := range []string{"/blobs/", "/manifests/"} {
		if i := strings.LastIndex(path, k); i >= 0 {
			return path[:i], strings.Trim(k, "/"), path[i+len(k):]
		}
	}
	return path, "", ""
}

// serveTarget is the server that redirects lead to: it knows no credentials, only
// how long its addresses are valid.
func (r *Registry) serveTarget(w http.ResponseWriter, req *http.Request) {
	d := digest.Digest(strings.TrimPrefix(req.URL.Path, "/data/"))
	x := r.begin(w, req, describe(req, d, true))
	expires, err := strconv.ParseInt(req.URL.Query().Get("expires"), 10, 64)
	if err != nil || time.Now().UnixNano() > expires {
		x.fail(http.StatusForbidden, "expired")
		return
	}
	if x.faulty() {
		return
	}
	x.blob(d)
}

func (r *Registry) serveManifest(x *exchange, repo, name string) {
	r.mu.Lock()
	m, ok := r.manifests[repo+":"+name]
	if !ok {
		m, ok = r.manifests[repo+"@"+name]
	}
	r.mu.Unlock()
	if !ok {
		x.fail(http.StatusNotFound, "manifest unknown")
		return
	}
	h := x.w.Header()
	h.Set("Content-Type", m.mediaType)
	h.Set("Docker-Content-Digest", digest.FromBytes(m.body).String())
	h.Set("Content-Length", strconv.Itoa(len(m.body)))
	x.header(http.StatusOK)
	if x.req.Method != http.MethodHead {
		x.w.Write(m.body)
	}
}

func describe(req *http.Request, d digest.Digest, target bool) Request {
	return Request{
		Method: req.Method, Host: req.Host, Path: req.URL.Path, Query: req.URL.RawQuery,
		Blob: d, Target: target, Range: req.Header.Get("Range"),
		Authorization: req.Header.Get("Authorization"), Header: req.Header.Clone(), Start: time.Now(),
	}
}

// exchange is one request and its answer.
type exchange struct {
	r     *Registry
	w     http.ResponseWriter
	req   *http.Request
	seen  Request
	note  func(func(*Request))
	fault *Fault
}

// begin logs a request and keeps it waiting for as long as the link is slow.
func (r *Registry) begin(w http.ResponseWriter, req *http.Request, seen Request) *exchange {
	r.mu.Lock()
	latency := r.latency
	r.mu.Unlock()
	x := &exchange{r: r, w: w, req: req, seen: seen, note: r.entry(seen)}
	if latency > 0 {
		x.pause(time.Now().Add(latency))
	}
	return x
}

// pause waits until t and says whether the client and the registry are still there.
func (x *exchange) pause(t time.Time) bool {
	timer := time.NewTimer(time.Until(t))
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-x.req.Context().Done():
	case <-x.r.closing:
	}
	return false
}

func (x *exchange) header(status int) {
	x.note(func(q *Request) { q.Status, q.End = status, time.Now() })
	x.w.WriteHeader(status)
}

func (x *exchange) fail(status int, text string) {
	x.header(status)
	if x.req.Method != http.MethodHead {
		x.w.Write([]byte(text))
	}
}

// faulty looks for a fault that strikes this request, and says whether it was
// answered by it.
func (x *exchange) faulty() bool {
	x.fault = x.r.strike(x.seen)
	switch {
	case x.fault == nil:
		return false
	case x.fault.Hangup:
		panic(http.ErrAbortHandler)
	case x.fault.Status != 0:
		if x.fault.RetryAfter != "" {
			x.w.Header().Set("Retry-After", x.fault.RetryAfter)
		}
		x.fail(x.fault.Status, "a fault")
		return true
	}
	return false
}

// blob answers with a blob or the range of it that was asked for.
func (x *exchange) blob(d digest.Digest) {
	r := x.r
	r.mu.Lock()
	data, ok := r.blobs[d]
	ignore, hide, noSuffix := r.ignoreRange, r.hideTotal, r.noSuffix
	r.mu.Unlock()
	if !ok {
		x.fail(http.StatusNotFound, "blob unknown")
		return
	}
	lo, hi, status := int64(0), int64(len(data)), http.StatusOK
	if rng := x.seen.Range; rng != "" && !ignore && x.req.Method == http.MethodGet {
		if strings.HasPrefix(rng, "bytes=-") && noSuffix != 0 {
			x.fail(noSuffix, "no suffix ranges here")
			return
		}
		lo, hi, ok = parseRange(rng, int64(len(data)))
		if !ok {
			x.w.Header().Set("Content-Range", fmt.Sprintf("bytes */%d", len(data)))
			x.fail(http.StatusRequestedRangeNotSatisfiable, "")
			return
		}
		status = http.StatusPartialContent
		total := strconv.Itoa(len(data))
		if hide {
			total = "*"
		}
		x.w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", lo, hi-1, total))
		if x.fault != nil && x.fault.ContentRange != "" {
			x.w.Header().Set("Content-Range", x.fault.ContentRange)
		}
	}
	x.w.Header().Set("Content-Type", "application/octet-stream")
	x.w.Header().Set("Content-Length", strconv.FormatInt(hi-lo, 10))
	x.header(status)
	if x.req.Method != http.MethodHead {
		x.body(data[lo:hi], lo)
	}
}

// body sends data, which begins at offset off of the blob, at the link's pace.
func (x *exchange) body(data []byte, off int64) {
	x.r.mu.Lock()
	own := &pacer{rate: x.r.perConn}
	x.r.mu.Unlock()
	sent := int64(0)
	for len(data) > 0 {
		n := min(len(data), piece)
		if f := x.fault; f != nil && (f.Cut || f.Stall) {
			if left := f.After - sent; left <= 0 {
				x.breakOff(f)
			} else {
				n = int(min(int64(n), left))
			}
		}
		p := data[:n]
		if f := x.fault; f != nil && f.Flip && f.At >= off && f.At < off+int64(n) {
			p = append([]byte(nil), p...)
			p[f.At-off] ^= 0xff
		}
		t1, t2 := x.r.total.take(n), own.take(n)
		if t2.After(t1) {
			t1 = t2
		}
		if time.Until(t1) > 0 {
			x.w.(http.Flusher).Flush()
			if !x.pause(t1) {
				panic(http.ErrAbortHandler)
			}
		}
		sent += int64(n) // counted first: a client may look as soon as it has the bytes
		x.note(func(q *Request) { q.Bytes, q.End = sent, time.Now() })
		if _, err := x.w.Write(p); err != nil {
			return
		}
		data, off = data[n:], off+int64(n)
	}
}

// breakOff ends a body early.
func (x *exchange) breakOff(f *Fault) {
	x.w.(http.Flusher).Flush()
	if f.Stall {
		select {
		case <-x.req.Context().Done():
		case <-x.r.closing:
		}
	}
	panic(http.ErrAbortHandler)
}

// parseRange reads a single range; ok is false when it can't be satisfied.
func parseRange(s string, size int64) (lo, hi int64, ok bool) {
	first, last, found := strings.Cut(strings.TrimPrefix(s, "bytes="), "-")
	if !found || strings.Contains(s, ",") {
		return 0, 0, false
	}
	if first == "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n == 0 || size == 0 {
			return 0, 0, false
		}
		return max(0, size-n), size, true
	}
	lo, err := strconv.ParseInt(first, 10, 64)
	if err != nil || lo >= size {
		return 0, 0, false
	}
	hi = size
	if last != "" {
		n, err := strconv.ParseInt(last, 10, 64)
		if err != nil || n < lo {
			return 0, 0, false
		}
		hi = min(hi, n+1)
	}
	return lo, hi, true
}

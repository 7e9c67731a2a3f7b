package blobtest

import (
	"net/http"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Request is one request as the registry saw it.
type Request struct {
	Method        string
	Host          string // as the client named it
	Path          string
	Query         string
	Blob          digest.Digest // "" for manifests, tokens and the rest
	Target        bool          // came to the server that redirects lead to
	Range         string
	Authorization string
	Header        http.Header
	Status        int   // of the answer; 0 while none was sent
	Bytes         int64 // of the body sent so far
	Start, End    time.Time
}

// Log lists the requests so far, in order of arrival; tokens and manifests included.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Blobs lists the requests for blobs so far that were answered with contents or
// an error: redirects, refused authorizations and HEADs left out.
func (r *Registry) Blobs() []Request {
	return slices.DeleteFunc(r.Log(), func(q Request) bool {
		return q.Blob == "" || q.Method != http.MethodGet || q.Status == http.StatusTemporaryRedirect || q.Status == http.StatusUnauthorized
	})
}

// Requests is the number of Blobs.
func (r *Registry) Requests() int { return len(r.Blobs()) }

// Bytes is how much of blobs was sent.
func (r *Registry) Bytes() (n int64) {
	for _, q := range r.Blobs() {
		n += q.Bytes
	}
	return n
}

// Reset forgets the requests so far; those under way are not counted any more.
func (r *Registry) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = nil
}

// entry adds a request to the log and returns how to change it later.
func (r *Registry) entry(req Request) func(func(*Request)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.log = append(r.log, req)
	i, start := len(r.log)-1, req.Start
	return func(change func(*Request)) {
		r.mu.Lock()
		defer r.mu.Unlock()
		// After a Reset another request may have this place.
		if i < len(r.log) && r.log[i].Start.Equal(start) {
			change(&r.log[i])
		}
	}
}

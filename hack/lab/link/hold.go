package link

import (
	"net/http"
	"path"
	"slices"
	"sync"
)

// Holder passes requests on, but not those for some blobs: they hang, as with a
// server that has taken a request and is never heard of again.
type Holder struct {
	next http.Handler

	mu struct {
		sync.Mutex
		blobs    []string
		released chan struct{} // closed when what is held may go on
	}
}

// NewHolder holds nothing, yet, of what next is asked for.
func NewHolder(next http.Handler) *Holder {
	h := &Holder{next: next}
	h.mu.released = make(chan struct{})
	return h
}

// Hold lets requests for the blobs with these digests hang from now on, and those
// that hung so far go on.
func (h *Holder) Hold(blobs ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	close(h.mu.released)
	h.mu.blobs, h.mu.released = blobs, make(chan struct{})
}

// ServeHTTP implements http.Handler.
func (h *Holder) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	held, released := slices.Contains(h.mu.blobs, path.Base(r.URL.Path)), h.mu.released
	h.mu.Unlock()
	if held {
		select {
		case <-released:
		case <-r.Context().Done():
			return
		}
	}
	h.next.ServeHTTP(w, r)
}

package blobtest

import "net/http"

// Fault makes requests go wrong. The fields that say how may be combined where
// that makes sense; the zero Fault does nothing.
type Fault struct {
	Match func(Request) bool // which requests; nil: all GETs of blobs, redirected ones included
	Skip  int                // leave the first matching ones alone
	Times int                // how many go wrong then; 0: all

	Hangup       bool   // close the connection instead of an answer
	Status       int    // answer so
	RetryAfter   string // the header, with Status
	ContentRange string // send this one
	Cut          bool   // close the connection after After bytes of the body
	Stall        bool   // send nothing more after After bytes of the body, until the client leaves
	After        int64
	Flip         bool // invert the byte at offset At of the blob
	At           int64

	r    *Registry
	seen int
	hits int
}

// Fault adds a fault; the one added first wins when several match. Hits and Clear
// of the result tell how often it struck, and end it.
func (r *Registry) Fault(f Fault) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.r = r
	r.faults = append(r.faults, &f)
	return &f
}

// Hits is how many requests have met the fault.
func (f *Fault) Hits() int {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.hits
}

// Clear ends the fault.
func (f *Fault) Clear() {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	f.Times = -1
}

// strike returns the fault that req meets, nil for none.
func (r *Registry) strike(req Request) *Fault {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range r.faults {
		if f.Times < 0 {
			continue
		}
		if f.Match == nil {
			if req.Blob == "" || req.Method != http.MethodGet {
				continue
			}
		} else if !f.Match(req) {
			continue
		}
		f.seen++
		if f.seen <= f.Skip || (f.Times > 0 && f.hits >= f.Times) {
			continue
		}
		f.hits++
		return f
	}
	return nil
}

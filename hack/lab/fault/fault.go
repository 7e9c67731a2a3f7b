package fault

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Kind is what a request is for.
type Kind string

// The kinds of requests.
const (
	Manifest Kind = "manifest" // manifests, and the configs of images
	TOC      Kind = "toc"      // footers and tables of contents
	Data     Kind = "data"     // contents of layers
	Token    Kind = "token"
	Other    Kind = "other"
)

// Fault makes requests go wrong. Fields that say how are used one at a time, but
// Status with RetryAfter; the zero Fault does nothing.
type Fault struct {
	On    []Kind        // which requests; none: those for Data
	Skip  int           // how many of them pass before
	Times int           // how many go wrong then; 0: no bound
	For   time.Duration // how long requests go wrong, from the first that does; 0: no bound

	Status     int    // answer so
	RetryAfter string // the header, with Status

	Refuse bool          // connections are refused and the open ones reset, for For
	Reset  bool          // the connection is reset instead of an answer
	Hang   bool          // no answer, until the client leaves or For is over
	Delay  time.Duration // before the answer

	Cut   bool // the connection is reset in the middle of the body
	Stall bool // nothing more is sent in the middle of the body, until the client leaves
	Drip  bool // from the middle of the body on a byte a second

	Range string // Content-Range of the answer
	Whole bool   // 200 and the whole blob, whatever the range
	Short bool   // the body, and what the header says of it, are shorter than asked for
	Long  bool   // they are longer
	Flip  bool   // one byte of the body is another
	Swap  bool   // two bytes of the body have changed places
}

// matches says whether the fault is for requests of a kind.
func (f *Fault) matches(k Kind) bool {
	if len(f.On) == 0 {
		return k == Data
	}
	return slices.Contains(f.On, k)
}

// ofBody says whether the fault is in bodies, which answers to HEAD do not have.
func (f *Fault) ofBody() bool {
	return f.Cut || f.Stall || f.Drip || f.Range != "" || f.Whole || f.Short || f.Long || f.Flip || f.Swap
}

// struck is a fault and what it has done.
type struck struct {
	Fault
	seen, hits int
	since      time.Time // of the first hit
}

// strikes says whether the fault hits a request of a kind, and counts it.
func (s *struck) strikes(k Kind, head bool, now time.Time) bool {
	if !s.matches(k) || head && s.ofBody() {
		return false
	}
	s.seen++
	switch {
	case s.seen <= s.Skip, s.Times > 0 && s.hits >= s.Times, s.For > 0 && s.hits > 0 && now.Sub(s.since) > s.For:
		return false
	}
	if s.hits == 0 {
		s.since = now
	}
	s.hits++
	return true
}

// kind tells what a request is for. Tables of contents begin, by digest, at tails;
// configs are the digests of configs.
func kind(r *http.Request, tails map[string]int64, configs map[string]bool) Kind {
	parts := strings.Split(r.URL.Path, "/")
	n := len(parts)
	switch {
	case r.URL.Path == "/token":
		return Token
	case n < 4 || parts[1] != "v2" && parts[1] != "signed":
		return Other
	case parts[n-2] == "manifests":
		return Manifest
	case parts[n-2] != "blobs":
		return Other
	}
	dgst := parts[n-1]
	if configs[dgst] {
		return Manifest
	}
	rng := r.Header.Get("Range")
	var from int64
	_, err := fmt.Sscanf(rng, "bytes=%d-", &from)
	if tail, ok := tails[dgst]; ok && rng != "" && (err != nil || from < 0 || from >= tail) {
		return TOC
	}
	return Data
}

package blob

import (
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Kind says what a request asked for.
type Kind uint8

const (
	KindRange Kind = iota // a range by its offsets
	KindTail              // the last bytes, by a suffix range
	KindWhole             // answered with the whole blob although a range was asked for
	KindCheck             // a question without contents
	kinds
)

// String names the kind for logs and reports.
func (k Kind) String() string {
	return [...]string{"range", "tail", "whole", "check"}[k]
}

// Request describes one finished HTTP exchange for a blob: a redirect and what
// followed it count as one.
type Request struct {
	Digest   digest.Digest
	Host     string // registry host, without scheme
	Kind     Kind
	Priority Priority
	Range    string // as sent in the Range header
	Status   int    // 0 when no answer came
	Bytes    int64  // of the body, as far as read
	Header   time.Duration
	Duration time.Duration
	Err      error // why the exchange did not deliver what was asked for
}

// Stats counts what a Store did since it was made.
type Stats struct {
	Requests  map[Kind]int64 // exchanges by kind, failed ones included
	Bytes     map[Kind]int64 // of bodies read, by kind
	Errors    int64          // exchanges that failed
	Retries   int64          // exchanges that repeat a failed one
	Dropped   int64          // bytes that proved wrong
	Disk      int64          // reads served past a disk that can't be written
	HintFails int64          // hints that could not be read or written
}

// TotalRequests is the sum over all kinds.
func (s Stats) TotalRequests() (n int64) {
	for _, v := range s.Requests {
		n += v
	}
	return n
}

// TotalBytes is the sum over all kinds.
func (s Stats) TotalBytes() (n int64) {
	for _, v := range s.Bytes {
		n += v
	}
	return n
}

type counters struct {
	requests  [kinds]atomic.Int64
	bytes     [kinds]atomic.Int64
	errors    atomic.Int64
	retries   atomic.Int64
	dropped   atomic.Int64
	disk      atomic.Int64
	hintFails atomic.Int64
}

func (c *counters) snapshot() Stats {
	s := Stats{
		Requests:  make(map[Kind]int64, kinds),
		Bytes:     make(map[Kind]int64, kinds),
		Errors:    c.errors.Load(),
		Retries:   c.retries.Load(),
		Dropped:   c.dropped.Load(),
		Disk:      c.disk.Load(),
		HintFails: c.hintFails.Load(),
	}
	for k := range kinds {
		s.Requests[k] = c.requests[k].Load()
		s.Bytes[k] = c.bytes[k].Load()
	}
	return s
}

func (c *counters) count(r Request) {
	c.requests[r.Kind].Add(1)
	c.bytes[r.Kind].Add(r.Bytes)
	if r.Err != nil {
		c.errors.Add(1)
	}
}

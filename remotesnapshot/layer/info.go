package layer

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
)

// Info is the state of a layer at one moment.
type Info struct {
	Digest     digest.Digest
	Format     estargz.Format
	Size       int64     // bytes of the blob
	Fetched    int64     // bytes of the blob that are present
	Prefetched int64     // bytes fetched that nobody waited for
	FileBytes  int64     // decompressed size of all files
	Local      bool      // whole and verified
	Reads      int64     // calls of ReadAt
	Loads      int64     // members decompressed
	LastRead   time.Time // zero: never
	LastError  string    // the last one of a read, "" when none has failed
	LastFailed time.Time // when that was; zero: never
}

// Info reports the layer's state. Never blocks. The layer must be held.
func (l *Layer) Info() Info {
	lastError, lastFailed := l.stats.failure()
	return Info{
		Digest:     l.blob.Digest(),
		Format:     l.toc.Format(),
		Size:       l.toc.BlobSize(),
		Fetched:    l.blob.Fetched(),
		Prefetched: l.stats.prefetched.Load(),
		FileBytes:  l.toc.FileBytes(),
		Local:      l.blob.Local(),
		Reads:      l.stats.reads.Load(),
		Loads:      l.stats.loads.Load(),
		LastRead:   l.stats.last(),
		LastError:  lastError,
		LastFailed: lastFailed,
	}
}

// stats are the counters of a layer.
type stats struct {
	reads, loads, prefetched atomic.Int64
	active                   atomic.Int64 // reads under way
	lastRead                 atomic.Int64 // Unix nanoseconds
	lastError                atomic.Pointer[failure]
}

// failure is a read that failed.
type failure struct {
	text string
	at   time.Time
}

// begin counts a read; call the result at its end.
func (s *stats) begin() (end func(error)) {
	s.reads.Add(1)
	s.active.Add(1)
	return func(err error) {
		s.lastRead.Store(time.Now().UnixNano())
		s.active.Add(-1)
		s.fail(err)
	}
}

// fail keeps an error for reports. A caller that left is none.
func (s *stats) fail(err error) {
	if err == nil || errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return
	}
	s.lastError.Store(&failure{err.Error(), time.Now()})
}

func (s *stats) failure() (text string, at time.Time) {
	if p := s.lastError.Load(); p != nil {
		return p.text, p.at
	}
	return "", time.Time{}
}

func (s *stats) last() time.Time {
	if ns := s.lastRead.Load(); ns != 0 {
		return time.Unix(0, ns)
	}
	return time.Time{}
}

// idle says whether nothing was read for d.
func (s *stats) idle(d time.Duration) bool {
	return s.active.Load() == 0 && time.Since(s.last()) >= d
}

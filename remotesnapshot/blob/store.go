package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// hintSuffix ends the names of hint files; digests have no dots.
const hintSuffix = ".ranges"

// Store keeps the blobs of a daemon: one sparse file each and a list of the
// ranges present, reused after a restart. A root directory belongs to one Store
// at a time. Safe for concurrent use.
type Store struct {
	opts    Options
	ctx     context.Context
	cancel  context.CancelCauseFunc
	flusher sync.WaitGroup
	stats   counters
	turns   atomic.Int64 // given to flights
	noDisk  atomic.Int64 // unix nanoseconds until which writes are not tried

	mu struct {
		sync.Mutex
		closed  bool
		entries map[digest.Digest]*entry
		hosts   map[string]*host
	}
}

// NewStore opens the store at opts.Root, which is created when it is not there.
func NewStore(opts Options) (*Store, error) {
	if opts.Root == "" {
		return nil, fmt.Errorf("blob store: no root directory: %w", errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(opts.Root, 0o700); err != nil {
		return nil, fmt.Errorf("blob store: %w", err)
	}
	s := &Store{opts: opts.withDefaults()}
	s.ctx, s.cancel = context.WithCancelCause(context.Background())
	s.mu.entries = map[digest.Digest]*entry{}
	s.mu.hosts = map[string]*host{}
	s.sweep()
	s.flusher.Go(s.flushLoop)
	return s, nil
}

// sweep removes files that are neither a blob nor the list of ranges of one: what a
// crash left half written, and lists whose blob is gone.
func (s *Store) sweep() {
	files, _ := filepath.Glob(filepath.Join(s.opts.Root, "*", "*"))
	for _, p := range files {
		name, hint := strings.CutSuffix(filepath.Base(p), hintSuffix)
		d := digest.Digest(filepath.Base(filepath.Dir(p)) + ":" + name)
		if d.Validate() == nil {
			if _, err := os.Lstat(s.pathOf(d)); !hint || err == nil {
				continue
			}
		}
		if err := os.RemoveAll(p); err != nil {
			s.opts.OnError(fmt.Errorf("blob store: remove what nothing explains: %w", err))
		}
	}
}

// pathOf is where a blob's bytes lie.
func (s *Store) pathOf(dgst digest.Digest) string {
	return filepath.Join(s.opts.Root, dgst.Algorithm().String(), dgst.Encoded())
}

// Open returns the blob, counted (one Close each), without any request. Origins of
// later Opens are added to those known; one without Hosts adds none.
func (s *Store) Open(dgst digest.Digest, o Origin) (*Blob, error) {
	if err := dgst.Validate(); err != nil {
		return nil, fmt.Errorf("open blob %q: %w: %w", dgst, err, errdefs.ErrInvalidArgument)
	}
	for {
		e, closing, err := s.hold(dgst)
		if err != nil {
			return nil, fmt.Errorf("open blob %s: %w", dgst, err)
		}
		if closing != nil { // the last hold is just ending: its list of ranges is on its way to disk
			<-closing
			continue
		}
		if err := e.load(); err != nil {
			return nil, fmt.Errorf("open blob %s: %w", dgst, errors.Join(err, s.release(e)))
		}
		e.addOrigin(o)
		return &Blob{entry: e}, nil
	}
}

// hold counts one more user of the entry of dgst, which is made when it is not
// there. A non-nil channel is closed when the entry that is there has ended.
func (s *Store) hold(dgst digest.Digest) (*entry, <-chan struct{}, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.closed {
		return nil, nil, ErrClosed
	}
	e := s.mu.entries[dgst]
	if e == nil {
		e = &entry{store: s, dgst: dgst, path: s.pathOf(dgst), closed: make(chan struct{})}
		e.ctx, e.cancel = context.WithCancelCause(s.ctx)
		s.mu.entries[dgst] = e
	}
	if e.refs < 0 {
		return nil, e.closed, nil
	}
	e.refs++
	return e, nil, nil
}

// release ends one hold, and the entry with the last one.
func (s *Store) release(e *entry) error {
	s.mu.Lock()
	if e.refs < 0 { // ended by Store.Close
		s.mu.Unlock()
		return nil
	}
	e.refs--
	last := e.refs == 0
	if last {
		e.refs = -1
	}
	s.mu.Unlock()
	if !last {
		return nil
	}
	return s.end(e)
}

// end closes an entry that is marked as ending.
func (s *Store) end(e *entry) error {
	err := e.shut()
	s.mu.Lock()
	delete(s.mu.entries, e.dgst)
	s.mu.Unlock()
	close(e.closed)
	return err
}

// Remove frees what the store holds of a blob that nobody has open; an open one
// is an error of class failed precondition, an unknown one none.
func (s *Store) Remove(dgst digest.Digest) error {
	if err := dgst.Validate(); err != nil {
		return fmt.Errorf("remove blob %q: %w", dgst, err)
	}
	e, err := s.reserve(dgst)
	if err != nil {
		return fmt.Errorf("remove blob %s: %w", dgst, err)
	}
	defer func() {
		s.mu.Lock()
		delete(s.mu.entries, dgst)
		s.mu.Unlock()
		close(e.closed)
	}()
	for _, p := range []string{s.pathOf(dgst) + hintSuffix, s.pathOf(dgst)} {
		if err := os.Remove(p); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("remove blob %s: %w", dgst, err)
		}
	}
	return nil
}

// reserve puts an entry that ends at once in the place of dgst, which keeps Open
// out while the files go. One that is just ending is waited for.
func (s *Store) reserve(dgst digest.Digest) (*entry, error) {
	for {
		s.mu.Lock()
		have := s.mu.entries[dgst]
		if have == nil {
			e := &entry{store: s, dgst: dgst, refs: -1, closed: make(chan struct{})}
			s.mu.entries[dgst] = e
			s.mu.Unlock()
			return e, nil
		}
		refs := have.refs
		s.mu.Unlock()
		if refs > 0 {
			return nil, fmt.Errorf("in use: %w", errdefs.ErrFailedPrecondition)
		}
		<-have.closed
	}
}

// Digests lists the blobs that the store holds bytes of, open or not.
func (s *Store) Digests() ([]digest.Digest, error) {
	files, err := filepath.Glob(filepath.Join(s.opts.Root, "*", "*"))
	if err != nil {
		return nil, fmt.Errorf("list blobs: %w", err)
	}
	var out []digest.Digest
	for _, p := range files {
		d := digest.Digest(filepath.Base(filepath.Dir(p)) + ":" + filepath.Base(p))
		if strings.Contains(filepath.Base(p), ".") || d.Validate() != nil {
			continue
		}
		out = append(out, d)
	}
	return out, nil
}

// Stats returns what the store did so far.
func (s *Store) Stats() Stats { return s.stats.snapshot() }

// Close cancels fetches, waits for them, and writes the lists of ranges. Blobs
// that are still open answer ErrClosed from then on.
func (s *Store) Close() error {
	s.mu.Lock()
	if s.mu.closed {
		s.mu.Unlock()
		return nil
	}
	s.mu.closed = true
	var open []*entry
	var ending []<-chan struct{}
	for _, e := range s.mu.entries {
		if e.refs < 0 {
			ending = append(ending, e.closed)
			continue
		}
		e.refs = -1
		open = append(open, e)
	}
	s.mu.Unlock()
	s.cancel(ErrClosed)
	s.flusher.Wait()
	var errs []error
	for _, e := range open {
		errs = append(errs, s.end(e))
	}
	for _, c := range ending {
		<-c
	}
	return errors.Join(errs...)
}

// host returns what is known of a registry host.
func (s *Store) host(name string) *host {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.mu.hosts[name]
	if h == nil {
		h = newHost(name, s.opts.Connections)
		s.mu.hosts[name] = h
	}
	return h
}

// record counts one exchange and tells the hook of it.
func (s *Store) record(r Request) {
	s.stats.count(r)
	s.opts.OnRequest(r)
}

// flushLoop writes changed hints from time to time, so that little is fetched
// again after a crash.
func (s *Store) flushLoop() {
	t := time.NewTicker(s.opts.FlushInterval)
	defer t.Stop()
	for {
		select {
		case <-s.ctx.Done():
			return
		case <-t.C:
		}
		s.mu.Lock()
		var open []*entry
		for _, e := range s.mu.entries {
			if e.refs > 0 {
				open = append(open, e)
			}
		}
		s.mu.Unlock()
		for _, e := range open {
			e.flush()
		}
	}
}

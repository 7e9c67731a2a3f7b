package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// evictedSuffix ends the name of a file that is about to take an evicted one's place.
const evictedSuffix = ".new"

// Evict frees the disk space of what was fetched of a blob, open or not, and returns
// how much that is; reads fetch again what they need. Nothing is freed, without an
// error, of a blob that is local or linked into another store, and of one that is
// being fetched or read.
func (s *Store) Evict(dgst digest.Digest) (freed int64, err error) {
	if err := dgst.Validate(); err != nil {
		return 0, fmt.Errorf("evict blob %q: %w", dgst, err)
	}
	b, err := s.Open(dgst, Origin{}) // keeps Remove and a last Close away meanwhile
	if err != nil {
		return 0, fmt.Errorf("evict blob %s: %w", dgst, err)
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	if freed, err = b.entry.evict(); err != nil {
		return 0, fmt.Errorf("evict blob %s: %w", dgst, err)
	}
	return freed, nil
}

// evict puts an empty file in the place of the blob's. The old one is not cut: who
// reads from it at this moment gets its bytes, or an error that makes it look again.
func (e *entry) evict() (int64, error) {
	e.loadMu.Lock() // one at a time
	defer e.loadMu.Unlock()
	fi, err := os.Stat(e.path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil || linked(fi) {
		return 0, err
	}
	fresh, err := os.OpenFile(e.path+evictedSuffix, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, err
	}
	old := e.swap(fresh)
	if old == nil {
		return 0, errors.Join(fresh.Close(), os.Remove(e.path+evictedSuffix))
	}
	if err := errors.Join(os.Rename(e.path+evictedSuffix, e.path), old.Close()); err != nil {
		return 0, err
	}
	e.flush()
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, nil
	}
	return st.Blocks * 512, nil
}

// swap makes an empty file the entry's, and returns the one before; nil when the
// entry is in use.
func (e *entry) swap(fresh *os.File) *os.File {
	e.complete.mu.Lock()
	completing := e.complete.done != nil
	e.complete.mu.Unlock()
	e.mu.Lock()
	defer e.mu.Unlock()
	if completing || e.mu.local || e.mu.closing || e.mu.writing > 0 || len(e.mu.demands) > 0 || len(e.mu.flights) > 0 {
		return nil
	}
	old := e.mu.file
	e.mu.file, e.mu.present, e.mu.dirty = fresh, ranges{}, true
	return old
}

// Touch notes that the blob was in use until now.
func (s *Store) Touch(dgst digest.Digest) error {
	if err := dgst.Validate(); err != nil {
		return fmt.Errorf("touch blob %q: %w", dgst, err)
	}
	// The time of the blob's own file says when its bytes changed.
	err := os.Chtimes(s.pathOf(dgst)+hintSuffix, time.Time{}, time.Now())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("touch blob %s: %w", dgst, err)
	}
	return nil
}

// LastUsed is when a blob was read, fetched or touched last, as far as the store
// knows; zero for an unknown one.
func (s *Store) LastUsed(dgst digest.Digest) (last time.Time, err error) {
	if err := dgst.Validate(); err != nil {
		return last, fmt.Errorf("last use of blob %q: %w", dgst, err)
	}
	for _, path := range []string{s.pathOf(dgst), s.pathOf(dgst) + hintSuffix} {
		fi, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return last, fmt.Errorf("last use of blob %s: %w", dgst, err)
		}
		if fi.ModTime().After(last) {
			last = fi.ModTime()
		}
	}
	s.mu.Lock()
	e := s.mu.entries[dgst]
	s.mu.Unlock()
	if e != nil {
		if read := time.Unix(0, e.lastRead.Load()); read.After(last) {
			last = read
		}
	}
	return last, nil
}

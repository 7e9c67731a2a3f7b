package blob

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	digest "github.com/opencontainers/go-digest"
)

// State is what the store holds of a blob at one moment.
type State struct {
	Size    int64 // of the blob, in bytes; 0 until a request or an earlier run has told it
	Fetched int64 // bytes present
	Local   bool  // whole and verified
}

// State tells of a blob, open or not, without any request; zero for an unknown one.
func (s *Store) State(dgst digest.Digest) (State, error) {
	if err := dgst.Validate(); err != nil {
		return State{}, fmt.Errorf("state of blob %q: %w", dgst, err)
	}
	s.mu.Lock()
	e := s.mu.entries[dgst]
	s.mu.Unlock()
	if e != nil {
		if st, ok := e.state(); ok {
			return st, nil
		}
	}
	st, err := s.stateOnDisk(dgst)
	if err != nil {
		return State{}, fmt.Errorf("state of blob %s: %w", dgst, err)
	}
	return st, nil
}

// state is false before the files of the entry are opened.
func (e *entry) state() (State, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return State{Size: e.mu.size, Fetched: e.mu.present.total, Local: e.mu.local}, e.mu.file != nil
}

// stateOnDisk reads what an Open would find. A damaged list counts as none, as it
// does there.
func (s *Store) stateOnDisk(dgst digest.Digest) (State, error) {
	path := s.pathOf(dgst)
	file, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	defer file.Close()
	h, err := (&entry{path: path}).recall(file)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errHint) {
		return State{}, nil
	}
	if err != nil {
		return State{}, err
	}
	return State{Size: h.size, Fetched: h.present.total, Local: h.verified}, nil
}

// Linked says whether the blob's file has a name in another store too: its bytes
// stay when ours goes.
func (s *Store) Linked(dgst digest.Digest) (bool, error) {
	if err := dgst.Validate(); err != nil {
		return false, fmt.Errorf("links of blob %q: %w", dgst, err)
	}
	fi, err := os.Stat(s.pathOf(dgst))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("links of blob %s: %w", dgst, err)
	}
	return linked(fi), nil
}

func linked(fi fs.FileInfo) bool {
	st, ok := fi.Sys().(*syscall.Stat_t)
	return ok && st.Nlink > 1
}

// Usage is the disk space that the store alone holds for a blob, in bytes; 0 for
// an unknown one. It counts allocated blocks, not the length of the sparse file,
// and leaves out a file that is linked into another store, which counts it there.
func (s *Store) Usage(dgst digest.Digest) (int64, error) {
	if err := dgst.Validate(); err != nil {
		return 0, fmt.Errorf("usage of blob %q: %w", dgst, err)
	}
	var sum int64
	for _, p := range []string{s.pathOf(dgst), s.pathOf(dgst) + hintSuffix} {
		fi, err := os.Stat(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("usage of blob %s: %w", dgst, err)
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); ok && !linked(fi) {
			sum += st.Blocks * 512
		}
	}
	return sum, nil
}

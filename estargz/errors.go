package estargz

import (
	"errors"
	"fmt"
)

var (
	// ErrNotLazy says that a blob carries no table of contents that we know:
	// it can only be used whole.
	ErrNotLazy = errors.New("no table of contents")
	// ErrCorrupt is wrapped by every error that is caused by the bytes of a
	// TOC, of a compact file or of a chunk.
	ErrCorrupt = errors.New("corrupt")
	// ErrLimit is wrapped, beside ErrCorrupt, by the errors of bytes that may
	// be well-formed but exceed what we are willing to spend on them (Limits).
	ErrLimit = errors.New("limit exceeded")
	// ErrMismatch is wrapped, beside ErrCorrupt, by the errors of a TOC that is not the
	// one whose digest the manifest carries: other bytes may be.
	ErrMismatch = fmt.Errorf("%w: wrong digest", ErrCorrupt)
	// ErrNotExist is returned by look-ups of names that a TOC does not have.
	ErrNotExist = errors.New("no such entry")
)

// shownName is how many bytes of an entry's name an error message repeats: names
// come from strangers and end in logs.
const shownName = 256

// corruptf makes an error that wraps ErrCorrupt. The format may use %w.
func corruptf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrCorrupt, fmt.Errorf(format, args...))
}

// limitf makes an error that wraps ErrCorrupt and ErrLimit.
func limitf(format string, args ...any) error {
	return fmt.Errorf("%w: %w: %w", ErrCorrupt, ErrLimit, fmt.Errorf(format, args...))
}

// mismatchf makes an error that wraps ErrMismatch.
func mismatchf(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrMismatch, fmt.Errorf(format, args...))
}

// entryError names the entry that err is about.
func entryError(name []byte, err error) error {
	if len(name) > shownName {
		return fmt.Errorf("entry %q... (%d bytes): %w", name[:shownName], len(name), err)
	}
	return fmt.Errorf("entry %q: %w", name, err)
}

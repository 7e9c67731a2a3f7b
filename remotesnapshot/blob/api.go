package blob

import (
	"context"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	digest "github.com/opencontainers/go-digest"
)

// Hosts returns the registry hosts to ask for a blob, in order (mirrors first).
// It is called again for each attempt, so credentials are renewed by it.
type Hosts func(ctx context.Context) ([]docker.RegistryHost, error)

// Origin is one place where a blob can be had.
type Origin struct {
	Reference string // image reference: names host and repository
	Hosts     Hosts
}

// Priority of a fetch: a higher one is served first.
type Priority uint8

const (
	Background Priority = iota
	Prefetch
	Blocked // a process waits for these bytes
)

// Options of a Store. Zero values are the documented defaults.
type Options struct {
	Root        string // holds the sparse files and their bitmaps; required
	Connections int    // parallel requests to one host; 0: 10
	// grows: timeouts, retry, request sizes
}

// Store keeps the blobs of a daemon: one sparse file each and a bitmap of the
// ranges present, reused after a restart.
type Store struct{ _ int }

func NewStore(opts Options) (*Store, error) { panic("skeleton") }

// Open returns the blob, counted (one Close each), without any request. Origins of
// later Opens are added to those known.
func (s *Store) Open(dgst digest.Digest, o Origin) (*Blob, error) { panic("skeleton") }

// Usage is the disk space that a blob holds in the store, 0 for an unknown one.
func (s *Store) Usage(dgst digest.Digest) (int64, error) { panic("skeleton") }

// Remove frees what the store holds of a blob that nobody has open.
func (s *Store) Remove(dgst digest.Digest) error { panic("skeleton") }

// Close cancels fetches and waits for them.
func (s *Store) Close() error { panic("skeleton") }

// Blob is one remote blob. Safe for concurrent use.
type Blob struct{ _ int }

func (b *Blob) Digest() digest.Digest { panic("skeleton") }

// Tail makes the last n bytes present (all when the blob is shorter) and learns
// the blob's size on the way, in one request where the server can do that.
func (b *Blob) Tail(ctx context.Context, n int64) (tail []byte, size int64, err error) {
	panic("skeleton")
}

// Size is 0 until a request or an earlier run has told it.
func (b *Blob) Size() int64 { panic("skeleton") }

// ReadAt is io.ReaderAt with a context: it fetches what is missing of the range
// first, single-flight, at priority p.
func (b *Blob) ReadAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	panic("skeleton")
}

// Fetch makes a range present.
func (b *Blob) Fetch(ctx context.Context, p Priority, off, size int64) error { panic("skeleton") }

// Drop forgets a range whose bytes have proved wrong, so that the next read
// fetches it again.
func (b *Blob) Drop(off, size int64) { panic("skeleton") }

// Complete fetches what is missing, in large parallel ranges, and verifies the
// whole blob against its digest; the blob is local from then on.
func (b *Blob) Complete(ctx context.Context, p Priority) error { panic("skeleton") }

// Local says whether the blob is whole and verified; Path is its file then.
func (b *Blob) Local() bool  { panic("skeleton") }
func (b *Blob) Path() string { panic("skeleton") }

// Fetched is the number of bytes present.
func (b *Blob) Fetched() int64 { panic("skeleton") }

// Check asks the origins whether the blob can still be had, with one small request.
func (b *Blob) Check(ctx context.Context) error { panic("skeleton") }

// Close ends this hold. The bytes stay in the store.
func (b *Blob) Close() error { panic("skeleton") }

package layer

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// fakeBlob is a remote blob in memory. Each Fetch of missing bytes is a request.
type fakeBlob struct {
	data []byte

	mu struct {
		sync.Mutex
		disk      []byte
		present   []byte // 1: there
		size      int64
		local     bool
		requests  []fakeRequest
		coming    []*fakeFlight
		completes int
		rate      int64 // what Link says
		wait      time.Duration
		closed    int
		serve     func(ctx context.Context, r fakeRequest) error // nil: at once
		damage    map[int64]int                                  // offset -> how often it arrives wrong
	}
}

type fakeRequest struct {
	prio      Priority
	off, size int64
}

// fakeFlight is a range on its way.
type fakeFlight struct {
	fakeRequest
	done chan struct{}
	err  error
}

var _ Blob = (*fakeBlob)(nil)

func newFakeBlob(data []byte) *fakeBlob {
	b := &fakeBlob{data: data}
	b.mu.disk = make([]byte, len(data))
	b.mu.present = make([]byte, len(data))
	b.mu.damage = map[int64]int{}
	return b
}

// known makes the fake one that an earlier run has left on the disk.
func (b *fakeBlob) known() *fakeBlob {
	b.mu.size = int64(len(b.data))
	return b
}

// serveBy lets f delay, watch or fail requests.
func (b *fakeBlob) serveBy(f func(ctx context.Context, r fakeRequest) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.serve = f
}

// damage lets the byte at off arrive wrong n times.
func (b *fakeBlob) damage(off int64, n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.damage[off] = n
}

func (b *fakeBlob) requests() []fakeRequest {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]fakeRequest(nil), b.mu.requests...)
}

// forget clears the log of requests.
func (b *fakeBlob) forget() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.requests = nil
}

func (b *fakeBlob) closes() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.closed
}

func (b *fakeBlob) Digest() digest.Digest { return digest.FromBytes(b.data) }

func (b *fakeBlob) Size() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.size
}

func (b *fakeBlob) Tail(ctx context.Context, n int64) ([]byte, int64, error) {
	size := int64(len(b.data))
	n = min(n, size)
	tail := make([]byte, n)
	_, err := b.ReadAt(ctx, Blocked, tail, size-n)
	return tail, size, err
}

func (b *fakeBlob) ReadAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	if err := b.Fetch(ctx, p, off, int64(len(dst))); err != nil {
		return 0, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n := copy(dst, b.mu.disk[min(off, int64(len(b.data))):])
	if n < len(dst) {
		return n, io.EOF
	}
	return n, nil
}

func (b *fakeBlob) Fetch(ctx context.Context, p Priority, off, size int64) error {
	return b.start(p, off, size)(ctx)
}

func (b *fakeBlob) Start(p Priority, ranges ...Range) func(ctx context.Context) error {
	var waits []func(context.Context) error
	for _, r := range ranges {
		waits = append(waits, b.start(p, r.Off, r.Size))
	}
	return func(ctx context.Context) (err error) {
		for _, wait := range waits {
			err = cmp.Or(err, wait(ctx))
		}
		return err
	}
}

// start joins a flight that brings all of the range, and for whose bytes somebody
// waits if the caller does: a blob cuts others.
func (b *fakeBlob) start(p Priority, off, size int64) func(ctx context.Context) error {
	end := min(off+size, int64(len(b.data)))
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.presentLocked(off, size) {
		return func(context.Context) error { return nil }
	}
	for _, f := range b.mu.coming {
		if f.off <= off && end <= f.off+f.size && f.prio >= p {
			return func(ctx context.Context) error {
				select {
				case <-f.done:
					return f.err
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
	}
	f := &fakeFlight{fakeRequest: fakeRequest{p, off, end - off}, done: make(chan struct{})}
	b.mu.requests = append(b.mu.requests, f.fakeRequest)
	b.mu.coming = append(b.mu.coming, f)
	return func(ctx context.Context) error {
		f.err = b.bring(ctx, f.fakeRequest)
		b.mu.Lock()
		defer b.mu.Unlock()
		b.mu.coming = slices.DeleteFunc(b.mu.coming, func(o *fakeFlight) bool { return o == f })
		close(f.done)
		return f.err
	}
}

func (b *fakeBlob) bring(ctx context.Context, r fakeRequest) error {
	off, end := r.off, r.off+r.size
	b.mu.Lock()
	serve := b.mu.serve
	b.mu.Unlock()
	if serve != nil {
		if err := serve(ctx, r); err != nil {
			return err
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.size = int64(len(b.data))
	copy(b.mu.disk[off:end], b.data[off:end])
	copy(b.mu.present[off:end], bytes.Repeat([]byte{1}, int(end-off)))
	for i, n := range b.mu.damage {
		if off <= i && i < end && n > 0 {
			b.mu.damage[i]--
			b.mu.disk[i] ^= 0x55
		}
	}
	return nil
}

func (b *fakeBlob) FetchAll(ctx context.Context, p Priority, ranges []Range) error {
	for _, r := range ranges {
		if err := b.Fetch(ctx, p, r.Off, r.Size); err != nil {
			return err
		}
	}
	return nil
}

func (b *fakeBlob) Present(off, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.presentLocked(off, size)
}

func (b *fakeBlob) presentLocked(off, size int64) bool {
	end := min(off+size, int64(len(b.data)))
	return off >= end || bytes.IndexByte(b.mu.present[off:end], 0) < 0
}

func (b *fakeBlob) Drop(off, size int64) (hosts []string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.local = false
	clear(b.mu.present[off:min(off+size, int64(len(b.data)))])
	return []string{"fake.example"}
}

func (b *fakeBlob) Complete(ctx context.Context, p Priority) error {
	if err := b.Fetch(ctx, p, 0, int64(len(b.data))); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.completes++
	if digest.FromBytes(b.mu.disk) != digest.FromBytes(b.data) {
		return errors.New("fake blob: wrong digest")
	}
	b.mu.local = true
	return nil
}

func (b *fakeBlob) Local() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.local
}

func (b *fakeBlob) Link() (int64, time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.rate, b.mu.wait
}

func (b *fakeBlob) setLink(rate int64, wait time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.rate, b.mu.wait = rate, wait
}

func (b *fakeBlob) Fetched() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return int64(bytes.Count(b.mu.present, []byte{1}))
}

func (b *fakeBlob) Check(ctx context.Context) error {
	b.mu.Lock()
	serve := b.mu.serve
	b.mu.Unlock()
	if serve == nil {
		return nil
	}
	return serve(ctx, fakeRequest{})
}

func (b *fakeBlob) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.closed++
	return nil
}

// gate stops requests until it is opened.
type gate struct {
	arrived chan fakeRequest
	open    chan struct{}
}

// stop puts a gate before all requests of b.
func stop(t *testing.T, b *fakeBlob) *gate {
	t.Helper()
	g := &gate{arrived: make(chan fakeRequest, 1000), open: make(chan struct{})}
	b.serveBy(func(ctx context.Context, r fakeRequest) error {
		g.arrived <- r
		select {
		case <-g.open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	})
	return g
}

package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"sync/atomic"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Blob is a hold on one remote blob; all holds of a digest share its bytes and
// requests. Safe for concurrent use.
type Blob struct {
	*entry
	released atomic.Bool
}

// Digest names the blob.
func (b *Blob) Digest() digest.Digest { return b.dgst }

// Size is 0 until a request or an earlier run has told it.
func (b *Blob) Size() int64 {
	size, _ := b.sizeNow()
	return size
}

// Tail makes the last n bytes present (all when the blob is shorter) and learns
// the blob's size on the way, in one request where the server can do that; none
// when both are known. Errors are those of ReadAt.
func (b *Blob) Tail(ctx context.Context, n int64) (tail []byte, size int64, err error) {
	if n <= 0 {
		return nil, 0, fmt.Errorf("tail of %d bytes of blob %s: not a length", n, b.dgst)
	}
	if b.released.Load() {
		return nil, 0, ErrClosed
	}
	d, err := b.demand(demand{prio: Blocked, suffix: n})
	if d != nil {
		err = b.await(ctx, d)
	}
	size, known := b.sizeNow()
	if err != nil && !(known && errors.Is(err, errDisk)) { // ReadAt can do without the disk
		return nil, 0, err
	}
	tail = make([]byte, min(n, size))
	if _, err := b.ReadAt(ctx, Blocked, tail, size-int64(len(tail))); err != nil && err != io.EOF {
		return nil, 0, err
	}
	return tail, size, nil
}

// ReadAt is io.ReaderAt with a context: it fetches what is missing of the range
// first, single-flight, at priority p. At the end of the blob it returns the
// bytes there are and io.EOF. A fetch that fails names the blob, the range, and
// the last error of each host; one that gave up or was refused can be asked with
// errdefs (not found, unauthenticated, permission denied, unavailable). After an
// error nothing is known of dst.
func (b *Blob) ReadAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("read blob %s: negative offset %d", b.dgst, off)
	}
	if b.released.Load() {
		return 0, ErrClosed
	}
	if len(dst) == 0 {
		return 0, nil
	}
	return b.readAt(ctx, p, dst, off)
}

func (e *entry) readAt(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	want := span{off, off + int64(len(dst))}
	if want.hi < off {
		want.hi = unknownEnd
	}
	e.lastRead.Store(time.Now().UnixNano())
	err := e.get(ctx, p, want)
	if errors.Is(err, errDisk) {
		return e.readPast(ctx, p, dst, off)
	}
	if err != nil {
		return 0, err
	}
	n, err := e.pread(dst, off)
	for lost := 0; ; {
		switch {
		case errors.Is(err, io.ErrUnexpectedEOF) && lost < 3: // the file lost bytes under us
			lost++
			e.dropAny(want)
		case errors.Is(err, errAbsent) || errors.Is(err, os.ErrClosed): // evicted, or dropped, meanwhile
		default:
			return n, err
		}
		err = e.get(ctx, p, want)
		if errors.Is(err, errDisk) {
			return e.readPast(ctx, p, dst, off)
		}
		if err != nil {
			return 0, err
		}
		n, err = e.pread(dst, off)
	}
}

// errAbsent says that bytes are not there any more.
var errAbsent = errors.New("not present")

// pread reads bytes that are present. The file that has them is asked, whatever takes
// its place meanwhile.
func (e *entry) pread(dst []byte, off int64) (int, error) {
	e.mu.Lock()
	file, size := e.mu.file, e.mu.size
	here := e.mu.present.contains(span{off, min(off+int64(len(dst)), size)})
	e.mu.Unlock()
	if off >= size {
		return 0, io.EOF
	}
	if !here {
		return 0, fmt.Errorf("read blob %s at %d from the store: %w", e.dgst, off, errAbsent)
	}
	want := dst[:min(int64(len(dst)), size-off)]
	n, err := file.ReadAt(want, off)
	switch {
	case n == len(want) && n < len(dst):
		return n, io.EOF
	case n == len(want):
		return n, nil
	case err == io.EOF:
		err = io.ErrUnexpectedEOF
	}
	return n, fmt.Errorf("read blob %s at %d from the store: %w", e.dgst, off, err)
}

// Fetch makes a range present, without reading it; what lies behind the end of
// the blob is not missed. Errors are those of ReadAt.
func (b *Blob) Fetch(ctx context.Context, p Priority, off, size int64) error {
	return b.start(p, []Range{{off, size}}, false)(ctx)
}

// Start is Fetch, of several ranges if need be, in two steps. When it returns, they are
// asked for, so that a Fetch of a part of them joins in, and returns with the part. Several
// ranges are several requests, even side by side: what is in one need not wait for what is in
// another. wait must be called once: it ends the interest in the ranges.
func (b *Blob) Start(p Priority, ranges ...Range) (wait func(ctx context.Context) error) {
	return b.start(p, ranges, len(ranges) > 1)
}

// start asks for ranges; apart, each by itself.
func (b *Blob) start(p Priority, ranges []Range, apart bool) (wait func(ctx context.Context) error) {
	var demands []*demand
	var failed error
	if b.released.Load() {
		failed, ranges = ErrClosed, nil
	}
	for _, r := range ranges {
		d, err := b.startDemand(p, r, apart)
		if err != nil {
			failed = err
			break
		}
		if d != nil {
			demands = append(demands, d)
		}
	}
	return func(ctx context.Context) error {
		err := failed
		for _, d := range demands {
			if err != nil {
				b.leave(d)
				continue
			}
			err = b.await(ctx, d)
		}
		return err
	}
}

func (b *Blob) startDemand(p Priority, r Range, apart bool) (*demand, error) {
	if r.Off < 0 || r.Size < 0 || apart && r.Off+r.Size < r.Off {
		return nil, fmt.Errorf("fetch blob %s: bad range %d+%d", b.dgst, r.Off, r.Size)
	}
	s := span{r.Off, r.Off + r.Size}
	if s.hi < r.Off {
		s.hi = unknownEnd
	}
	return b.demand(demand{prio: p, span: s, apart: apart})
}

// Range is a part of a blob, in bytes.
type Range struct{ Off, Size int64 }

// FetchAll makes ranges present that the caller has chosen with care: each is a
// request as it is, not joined with others, but for what is present or on its way;
// a longer one than RequestSize is several. Those that wait for a connection get it in their order. It
// returns when all are there; errors are those of ReadAt, of the first range that failed.
func (b *Blob) FetchAll(ctx context.Context, p Priority, ranges []Range) error {
	return b.start(p, ranges, true)(ctx)
}

// Expect says that FetchAll will be called with n ranges, of this blob and of others from
// the same place. It asks the registry for nothing; what is wrong, FetchAll will meet.
func (b *Blob) Expect(ctx context.Context, n int) {
	if b.released.Load() || b.Local() {
		return
	}
	cands, err := b.candidates(ctx)
	if err != nil {
		return
	}
	c := cands[0]
	at := b.target(c)
	if at == "" {
		at = c.url(b.dgst.String())
	}
	if u, err := url.Parse(at); err == nil {
		b.store.opts.Expect(c.Host, u, min(n, c.host.planned.limit(Prefetch)))
	}
}

// Drop forgets a range whose bytes have proved wrong, so that the next read
// fetches it again. A local blob is verified against its digest instead: when
// that still matches, nothing is dropped, and otherwise all of it, into a new file.
// It returns the names of the hosts that the dropped bytes are from, as far as that
// is remembered.
func (b *Blob) Drop(off, size int64) (hosts []string) {
	return b.dropAny(span{off, off + size})
}

func (e *entry) dropAny(s span) (hosts []string) {
	e.mu.Lock()
	local := e.mu.local
	e.mu.Unlock()
	if local {
		e.dropLocal()
		return nil
	}
	return e.drop(s)
}

// Local says whether the blob is whole and verified.
func (b *Blob) Local() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.local
}

// Wrong counts how often bytes that had come were forgotten because they were not
// the blob's. When it grows, what was read before may be wrong.
func (b *Blob) Wrong() int64 { return b.wrong.Load() }

// Path is the blob's file. Its contents are the blob's, and final, when Local.
func (b *Blob) Path() string { return b.path }

// Link is how many bytes a second one connection to the host that was asked last brought
// lately, and how long its answers took to begin; 0: not known.
func (b *Blob) Link() (rate int64, wait time.Duration) {
	b.mu.Lock()
	h := b.mu.host
	b.mu.Unlock()
	return h.link()
}

// Fetched is the number of bytes present.
func (b *Blob) Fetched() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mu.present.total
}

// AddOrigin adds a place where the blob can be had; it is asked before those
// known. One with the same reference is replaced.
func (b *Blob) AddOrigin(o Origin) { b.addOrigin(o) }

// Check asks the origins whether the blob can still be had, with one small
// request to each host until one has it. It does not retry.
func (b *Blob) Check(ctx context.Context) error {
	if b.released.Load() {
		return ErrClosed
	}
	cands, err := b.candidates(ctx)
	if err != nil {
		return fmt.Errorf("check blob %s: %w", b.dgst, err)
	}
	return b.checkAny(ctx, cands)
}

// CheckOrigin is Check for one origin, known or not. It proves that whoever
// stands behind o.Hosts may read the blob: the request is theirs alone, and goes to
// the registry itself rather than where others were redirected to. An error has
// the class of the last host's answer, which is the registry; the hosts before it
// are mirrors, whose word counts only when it is yes.
func (b *Blob) CheckOrigin(ctx context.Context, o Origin) error {
	if b.released.Load() {
		return ErrClosed
	}
	cands, err := b.store.candidatesOf(ctx, o)
	if err != nil {
		return fmt.Errorf("check blob %s: %w", b.dgst, err)
	}
	errs := b.checkEach(ctx, cands)
	switch n := len(errs); n {
	case 0:
		return nil
	case 1:
		return fmt.Errorf("check blob %s: %w", b.dgst, errs[0])
	default:
		return fmt.Errorf("check blob %s: %w (mirrors: %v)", b.dgst, errs[n-1], errors.Join(errs[:n-1]...))
	}
}

func (e *entry) checkAny(ctx context.Context, cands []*candidate) error {
	if errs := e.checkEach(ctx, cands); len(errs) > 0 {
		return fmt.Errorf("check blob %s: %w", e.dgst, errors.Join(errs...))
	}
	return nil
}

// checkEach asks one candidate after the other until one has the blob; then there
// is no error, and otherwise there is one of each.
func (e *entry) checkEach(ctx context.Context, cands []*candidate) []error {
	if len(cands) == 0 {
		return []error{errNoHosts}
	}
	var errs []error
	for _, c := range cands {
		err := e.check(ctx, c)
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return errs
}

// Close ends this hold; with the last one the blob's requests end and its list of
// ranges is written. The bytes stay in the store. Closing twice does nothing.
func (b *Blob) Close() error {
	if b.released.Swap(true) {
		return nil
	}
	return b.store.release(b.entry)
}

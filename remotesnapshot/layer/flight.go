package layer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	cerrdefs "github.com/containerd/errdefs"

	"github.com/lazykit/lazykit/estargz"
)

// besides is how many bytes of other chunks are kept when a member is
// decompressed for one of them: small files that share a member are mostly read
// together.
const besides = 1 << 20

// hereBytes bounds the memory of what a reader decompresses itself.
const hereBytes = 12 << 20

// flight is the work on one member that its waiters share. What is below the
// line is guarded by Layer.flights.
type flight struct {
	member uint32
	want   uint32        // the chunk that the first waiter is after
	size   int64         // of it, decompressed
	upTo   uint32        // the last member that the first waiter will need
	done   chan struct{} // closed when chunks and err are final
	err    error

	waiters  int
	cancel   context.CancelFunc // nil while it has no goroutine
	finished bool
	ahead    bool // nobody has asked for the chunk yet
	chunks   map[uint32]*buffer
}

// load calls use with chunk c, verified. It fetches and decompresses the
// chunk's member, or joins those who do.
func (l *Layer) load(ctx context.Context, n need, use func(data []byte)) error {
	for again := false; ; {
		f, own, late := l.join(n)
		if own && !l.flyHere(f) {
			l.launch(f)
		}
		wait := l.wait
		if late {
			wait = l.waitInHaste
		}
		found, err := wait(ctx, f, n.chunk, use)
		l.leave(f)
		if err != nil && late && !again && ctx.Err() == nil && l.ctx.Err() == nil && !errors.Is(err, ErrReadTimeout) {
			// It may have begun to fail long before somebody waited.
			again = true
			continue
		}
		if found || err != nil {
			return err
		}
		// The flight was for another chunk of a member that has many, and did
		// not keep ours. The next flight may be our own.
		if b := l.pool.cache.get(chunkKey{l.id, n.chunk}); b != nil {
			use(b.data)
			b.release()
			return nil
		}
	}
}

// need is one chunk that a read can't do without.
type need struct {
	chunk  uint32
	size   int64 // decompressed
	member uint32
	upTo   uint32 // the last member that the same read will need
	ahead  bool   // nobody waits
}

// join returns the flight of a member with the caller among its waiters. It is
// the caller's own when nobody works on it yet: call flyHere or launch then. late
// says that it began when nobody waited.
func (l *Layer) join(n need) (f *flight, own, late bool) {
	l.flights.Lock()
	defer l.flights.Unlock()
	if f := l.flights.of[n.member]; f != nil {
		f.waiters++
		late = f.ahead && !n.ahead
		f.ahead = f.ahead && n.ahead
		return f, false, late
	}
	f = &flight{
		member: n.member, want: n.chunk, size: n.size, upTo: n.upTo,
		done: make(chan struct{}), waiters: 1, ahead: n.ahead,
	}
	l.flights.of[n.member] = f
	return f, true, false
}

// waitInHaste is wait for a flight that began when nobody waited: its bytes come
// now as those for which somebody does. An error of that is the flight's to report.
func (l *Layer) waitInHaste(ctx context.Context, f *flight, chunk uint32, use func([]byte)) (found bool, err error) {
	ctx, cancel := withTimeout(ctx, l.pool.opts.ReadTimeout)
	defer cancel()
	if m, err := l.toc.Member(f.member); err == nil {
		_ = l.blob.Fetch(ctx, Blocked, m.Offset, m.Size)
	}
	return l.wait(ctx, f, chunk, use)
}

// launch does the work of a flight in a goroutine, which goes on for as long as
// one of the waiters stays.
func (l *Layer) launch(f *flight) {
	ctx, cancel := context.WithCancel(l.ctx)
	l.flights.Lock()
	f.cancel = cancel
	l.flights.Unlock()
	if !l.start(func() { l.fly(ctx, f) }) {
		cancel()
		l.land(f, nil, fmt.Errorf("layer %s: %w", l.blob.Digest(), ErrClosed))
	}
}

// atOnce has ended: what would wait with it fails instead.
var atOnce = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// flyHere does the work of a flight at once when it takes no wait: the member is
// present, and there is memory. False leaves it to launch, as everything does that
// goes wrong here.
func (l *Layer) flyHere(f *flight) bool {
	m, err := l.toc.Member(f.member)
	if err != nil || !l.blob.Present(m.Offset, m.Size) || !l.toc.HasChunkDigests() && !l.blob.Local() {
		return false
	}
	reach := l.reach(f)
	if f.memory(m) > hereBytes || reach > longReach {
		return false // it takes long, and nothing could end it
	}
	release, ok := l.pool.tryReserve(f.memory(m), reach)
	if !ok {
		return false
	}
	defer release()
	chunks, err := l.decode(atOnce, f, m, 0, math.MaxUint32)
	if err != nil {
		return false
	}
	if first := l.landed(f, chunks, nil); first != nil {
		// What it names may have to be fetched, and the reader does not wait for that.
		if !l.start(func() { defer first.release(); l.followFirst(f, first.data) }) {
			first.release()
		}
	}
	return true
}

// wait returns when the flight has landed, the caller's ctx has ended, or it has
// taken too long.
func (l *Layer) wait(ctx context.Context, f *flight, chunk uint32, use func([]byte)) (found bool, err error) {
	select {
	case <-f.done: // without a question to ctx, which may start a goroutine for it
	default:
		ctx, cancel := withTimeout(ctx, l.pool.opts.ReadTimeout)
		defer cancel()
		select {
		case <-f.done:
		case <-ctx.Done():
			return false, fmt.Errorf("layer %s: chunk %d: %w", l.blob.Digest(), chunk, context.Cause(ctx))
		}
	}
	b := f.chunks[chunk]
	if b == nil && f.want == chunk {
		return false, f.err
	}
	if b == nil {
		return false, nil
	}
	use(b.data)
	return true, nil
}

// leave ends the interest of one waiter. The last one stops the work, or frees
// its results.
func (l *Layer) leave(f *flight) {
	l.flights.Lock()
	f.waiters--
	last := f.waiters == 0
	if last {
		l.forgetLocked(f)
	}
	free := last && f.finished
	cancel := f.cancel
	l.flights.Unlock()
	if last && cancel != nil {
		cancel()
	}
	if free {
		f.free()
	}
}

// forgetLocked lets later readers start anew instead of joining f.
func (l *Layer) forgetLocked(f *flight) {
	if l.flights.of[f.member] == f {
		delete(l.flights.of, f.member)
	}
}

// land publishes the results of f, and says whether somebody asked for them.
func (l *Layer) land(f *flight, chunks map[uint32]*buffer, err error) (asked bool) {
	l.flights.Lock()
	f.chunks, f.err, f.finished = chunks, err, true
	l.forgetLocked(f)
	free := f.waiters == 0
	asked = !f.ahead
	l.flights.Unlock()
	close(f.done)
	if free {
		f.free()
	}
	return asked
}

// free ends the flight's holds on its chunks, when nobody waits any more.
func (f *flight) free() {
	for _, b := range f.chunks {
		b.release()
	}
}

// fly does the work of a flight.
func (l *Layer) fly(ctx context.Context, f *flight) {
	chunks, err := l.fetchMember(ctx, f)
	if err != nil && l.ctx.Err() != nil {
		err = ErrClosed
	}
	if err != nil {
		err = fmt.Errorf("layer %s: chunk %d: %w", l.blob.Digest(), f.want, err)
	}
	if first := l.landed(f, chunks, err); first != nil {
		defer first.release()
		l.followFirst(f, first.data)
	}
}

// landed hands the results of a flight to the cache and to those who wait. It
// returns what is to be looked into, which the caller releases; mostly nil.
func (l *Layer) landed(f *flight, chunks map[uint32]*buffer, err error) (first *buffer) {
	if first = l.firstChunk(f, chunks); first != nil {
		first.acquire()
	}
	if err == nil && l.nobodyWaits(f) {
		l.wishes.decoded(f.member) // before a reader can find it in the cache
	}
	for n, b := range chunks {
		l.pool.keep(chunkKey{l.id, n}, b)
	}
	if asked := l.land(f, chunks, err); asked && err == nil {
		l.wishes.takeDecoded(f.member)
		l.used(f.member)
	}
	return first
}

// wrongTries is how often bytes are fetched that prove wrong each time. They are
// mostly the fault of one host of several, or of the way from it.
const wrongTries = 5

// fetchMember makes the member of f present and decompresses it. Bytes that
// prove wrong are fetched again.
func (l *Layer) fetchMember(ctx context.Context, f *flight) (map[uint32]*buffer, error) {
	m, err := l.toc.Member(f.member)
	if err != nil {
		return nil, err
	}
	if err := l.vouch(ctx); err != nil {
		return nil, err
	}
	if err := l.fetchWindow(ctx, f, m); err != nil {
		return nil, err
	}
	chunks, err := l.decodeReserved(ctx, f, m, 0, math.MaxUint32)
	var from givers
	for try := 1; try < wrongTries && errors.Is(err, estargz.ErrCorrupt); try++ {
		from.add(l.blob.Drop(m.Offset, m.Size))
		if err := l.vouch(ctx); err != nil {
			return nil, err
		}
		if err := l.fetch(ctx, Blocked, m.Offset, m.Size); err != nil {
			return nil, err
		}
		// Other chunks of the member may be wrong for good; this one need not be.
		chunks, err = l.decodeReserved(ctx, f, m, f.want, f.want)
	}
	if errors.Is(err, estargz.ErrCorrupt) {
		err = fmt.Errorf("bytes=%d-%d%s are wrong, fetched %d times: %w", m.Offset, m.Offset+m.Size-1, from, wrongTries, err)
	}
	return chunks, err
}

// givers are the names of hosts that have sent wrong bytes.
type givers []string

func (g *givers) add(hosts []string) {
	for _, h := range hosts {
		if !slices.Contains(*g, h) {
			*g = append(*g, h)
		}
	}
}

// String is for an error, behind what was fetched; empty when no host is known.
func (g givers) String() string {
	if len(g) == 0 {
		return ""
	}
	return " from " + strings.Join(g, ", ")
}

// vouch makes sure that the bytes of a layer without chunk digests were verified
// by the digest of the whole blob.
func (l *Layer) vouch(ctx context.Context) error {
	if l.toc.HasChunkDigests() || l.blob.Local() {
		return nil
	}
	return l.blob.Complete(ctx, Blocked)
}

// fetchWindow makes the member present, and asks for what the first waiter will
// need next, and neighbours, with it. It does not wait for those.
func (l *Layer) fetchWindow(ctx context.Context, f *flight, m estargz.Member) error {
	if l.blob.Present(m.Offset, m.Size) {
		return nil
	}
	if l.nobodyWaits(f) {
		return l.fetch(ctx, Prefetch, m.Offset, m.Size)
	}
	if l.known.Load() > 0 && !l.windows.comes(span{m.Offset, m.Offset + m.Size}) {
		l.known.Add(-1)
	}
	last, hi := l.span(f, m)
	off, size, done := l.windows.plan(f.member, last, span{m.Offset, hi}, l.blob.Present)
	begun := time.Now()
	ranges := []Range{{off, size}}
	if before := m.Offset - off; before >= splitBefore { // bytes come in their order, and somebody waits for these
		ranges = []Range{{m.Offset, size - before}, {off, before}}
	}
	stop := l.startWindow(ranges, done)
	if l.known.Load() <= 0 {
		l.followMember(f.member)
	}
	err := l.fetch(ctx, Blocked, m.Offset, m.Size)
	if err != nil {
		stop()
	}
	l.missed(time.Since(begun))
	return err
}

// splitBefore is how many bytes before a member that is waited for get a request of their own.
const splitBefore = 1 << 20

func (l *Layer) nobodyWaits(f *flight) bool {
	l.flights.Lock()
	defer l.flights.Unlock()
	return f.ahead
}

// startWindow asks for ranges, parts of which can be waited for by themselves from
// its return on. They come whole even if nobody waits for the rest, unless they are
// stopped; done is called when all of them have ended.
func (l *Layer) startWindow(ranges []Range, done func()) (stop func()) {
	ctx, stop := context.WithCancel(l.ctx)
	wait := l.blob.Start(Blocked, ranges...)
	rest := func() {
		defer done()
		defer stop()
		_ = wait(ctx) // who needs a part waits for that part, and meets its error
	}
	if !l.start(rest) {
		rest() // the layer is closed, and its context has ended
	}
	return stop
}

// fetch makes a range present for a reader. A disk that takes no bytes is
// no error here: reading will go past it.
func (l *Layer) fetch(ctx context.Context, p Priority, off, size int64) error {
	err := l.blob.Fetch(ctx, p, off, size)
	if err == nil || ctx.Err() != nil || cerrdefs.IsUnavailable(err) || cerrdefs.IsNotFound(err) ||
		cerrdefs.IsUnauthorized(err) || cerrdefs.IsPermissionDenied(err) || cerrdefs.IsResourceExhausted(err) {
		return err
	}
	return nil
}

// span returns the last member, and the end of it, that one request can bring
// for a read that needs f.member to f.upTo. Members of one file follow one
// another unless the file is stored in parts.
func (l *Layer) span(f *flight, m estargz.Member) (last uint32, hi int64) {
	last, hi = f.member, m.Offset+m.Size
	for n := f.member + 1; n <= f.upTo && n > f.member; n++ {
		next, err := l.toc.Member(n)
		if err != nil || next.Offset != hi || next.Offset+next.Size-m.Offset > l.pool.opts.Window {
			break
		}
		last, hi = n, next.Offset+next.Size
	}
	return last, hi
}

// decodeReserved is decode within the pool's budget, for which it waits.
func (l *Layer) decodeReserved(ctx context.Context, f *flight, m estargz.Member, first, last uint32) (map[uint32]*buffer, error) {
	release, err := l.pool.reserve(ctx, f.memory(m), l.reach(f))
	if err != nil {
		return nil, err
	}
	defer release()
	return l.decode(ctx, f, m, first, last)
}

// reach is how many bytes have to be decompressed for the chunk that f is for.
func (l *Layer) reach(f *flight) int64 {
	var c estargz.Chunk
	if err := l.toc.Chunk(f.want, &c); err != nil {
		return 0 // decode meets the error again
	}
	return c.Inner + c.Size
}

// memory is what decode needs of it for member m.
func (f *flight) memory(m estargz.Member) int64 {
	if m.Size > math.MaxInt32 || f.size > math.MaxInt32 {
		return besides // decode refuses it
	}
	return m.Size + f.size + besides
}

// decode decompresses member m: the chunk that f is for, and up to besides bytes
// of others from first to last. The caller owns the holds, and has reserved the
// memory.
func (l *Layer) decode(ctx context.Context, f *flight, m estargz.Member, first, last uint32) (chunks map[uint32]*buffer, err error) {
	if m.Size < 0 || m.Size > math.MaxInt32 || f.size > math.MaxInt32 {
		return nil, fmt.Errorf("%d bytes at %d: too large to be verified in memory: %w", m.Size, m.Offset, estargz.ErrCorrupt)
	}
	compressed, err := l.pool.mem.alloc(int(m.Size))
	if err != nil {
		return nil, err
	}
	defer compressed.release()
	if err := readFull(ctx, l.blob, compressed.data, m.Offset); err != nil {
		return nil, err
	}
	l.stats.loads.Add(1)

	k := keeper{mem: &l.pool.mem, want: f.want, room: besides, chunks: make(map[uint32]*buffer)}
	defer k.free()
	err = l.toc.Decode(f.member, compressed.data, first, last, k.place, k.keep)
	if err == nil {
		err = k.err
	}
	if err == nil && k.chunks[f.want] == nil {
		err = fmt.Errorf("member at %d has no such chunk: %w", m.Offset, estargz.ErrCorrupt)
	}
	if k.chunks[f.want] != nil && k.err == nil {
		// What comes after the chunk in the member is not this read's business.
		return k.chunks, nil
	}
	(&flight{chunks: k.chunks}).free()
	return nil, err
}

// keeper takes the chunks of a member that are worth keeping.
type keeper struct {
	mem    *memory
	want   uint32
	room   int64
	next   *buffer // for the chunk that comes next; nil when it is not kept
	chunks map[uint32]*buffer
	err    error
}

func (k *keeper) place(chunk uint32, size int64) []byte {
	k.free()
	if k.err != nil || chunk != k.want && size > k.room {
		return nil
	}
	if k.next, k.err = k.mem.alloc(int(size)); k.err != nil {
		return nil
	}
	return k.next.data
}

func (k *keeper) keep(chunk uint32, data []byte) (more bool) {
	if k.err != nil {
		return false
	}
	if k.next == nil {
		return k.chunks[k.want] == nil
	}
	if chunk != k.want {
		k.room -= int64(len(data))
	}
	k.chunks[chunk], k.next = k.next, nil
	return k.chunks[k.want] == nil || k.room > 0
}

// free gives memory back that no chunk came for.
func (k *keeper) free() {
	if k.next != nil {
		k.next.release()
		k.next = nil
	}
}

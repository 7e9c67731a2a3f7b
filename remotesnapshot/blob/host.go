package blob

import (
	"sync"
	"sync/atomic"
	"time"
)

// Bounds of what one more request is worth in bytes, and the guesses for a host
// that nothing is known of.
const (
	minGap    = 64 << 10
	maxGap    = 1 << 20
	minPiece  = 1 << 20
	pieceTime = 2 * time.Second // a request should not last longer than that
	leastWait = 50 * time.Millisecond
)

// A host that failed is asked behind the others for so long, doubling with each
// failure: long, since a host that hangs costs each read a timeout.
const (
	minAvoid = 30 * time.Second
	maxAvoid = 10 * time.Minute
)

// habitTime is how long a peculiarity of a host is remembered: it may have been a
// fault, and costs little to see again.
const habitTime = 10 * time.Minute

// memory of a peculiarity.
type memory struct{ until atomic.Int64 }

func (m *memory) note() { m.until.Store(time.Now().Add(habitTime).UnixNano()) }

func (m *memory) holds() bool { return time.Now().UnixNano() < m.until.Load() }

// host is what a store knows of one registry host, over all blobs.
type host struct {
	name     string
	slots    *slots
	planned  *slots // for FetchAll
	noSuffix memory // refuses suffix ranges
	noRange  memory // ignores ranges
	lastByte atomic.Int64
	mu       struct {
		sync.Mutex
		delay     time.Duration // from request to header, moving average
		rate      float64       // bytes per second of one connection, moving average
		fails     int           // in a row
		avoid     time.Time     // ask others first until then
		notBefore time.Time     // do not ask at all until then (Retry-After)
	}
}

func newHost(name string, connections int) *host {
	return &host{name: name, slots: newSlots(connections), planned: newSlots(connections * plannedTimes / 2)}
}

// plannedTimes is how many connections FetchAll may use for itself, for two of all
// others. It is for a few dozen requests that together bring what a step will
// read: sent at once, they cost one round trip. Others do not wait for them.
const plannedTimes = 5

// slotsOf are those that a flight needs one of.
func (h *host) slotsOf(f *flight) *slots {
	if f.apart {
		return h.planned
	}
	return h.slots
}

// touch notes that a byte arrived.
func (h *host) touch() { h.lastByte.Store(time.Now().UnixNano()) }

func (h *host) touched() time.Time { return time.Unix(0, h.lastByte.Load()) }

// measured takes one exchange into the averages: the time to its header, and
// its body when it was long enough to tell.
func (h *host) measured(delay time.Duration, n int64, body time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.delay == 0 {
		h.mu.delay = delay
	}
	h.mu.delay += (delay - h.mu.delay) / 4
	if n < minGap || body <= 0 {
		return
	}
	rate := float64(n) / body.Seconds()
	if h.mu.rate == 0 {
		h.mu.rate = rate
	}
	h.mu.rate += (rate - h.mu.rate) / 4
}

// gap is how many bytes cost about as much as one more request: the product of
// bandwidth and delay, within bounds.
func (h *host) gap() int64 {
	if h == nil {
		return minGap
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return min(max(int64(h.mu.rate*h.mu.delay.Seconds()), minGap), maxGap)
}

// roundTrip is what one more request costs in time, by what is known of the host.
func (h *host) roundTrip() time.Duration {
	if h == nil {
		return leastWait
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return max(2*h.mu.delay, leastWait)
}

// reach is how many bytes come on one connection in the time that one more request
// takes to begin, by what is known of the host.
func (h *host) reach() int64 {
	if h == nil {
		return 0
	}
	wait := h.roundTrip()
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(h.mu.rate * wait.Seconds())
}

// link is what one connection brought lately in a second, and how long answers took to
// begin; 0: not known.
func (h *host) link() (rate int64, wait time.Duration) {
	if h == nil {
		return 0, 0
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	return int64(h.mu.rate), h.mu.delay
}

// piece is the size of one request of a large fetch, at most limit.
func (h *host) piece(limit int64) int64 {
	if h == nil {
		return limit
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.rate == 0 {
		return limit
	}
	return min(limit, max(minPiece, int64(h.mu.rate*pieceTime.Seconds())))
}

// worked ends a series of failures.
func (h *host) worked() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.fails, h.mu.avoid, h.mu.notBefore = 0, time.Time{}, time.Time{}
}

// failed makes others be asked first for a while that grows with each failure.
func (h *host) failed(retryAfter time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mu.fails++
	now := time.Now()
	h.mu.avoid = now.Add(min(minAvoid<<min(h.mu.fails-1, 10), maxAvoid))
	if retryAfter > 0 {
		h.mu.notBefore = now.Add(retryAfter)
	}
}

// state says whether others are to be asked first, and until when not to ask.
func (h *host) state() (avoid bool, notBefore time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return time.Now().Before(h.mu.avoid), h.mu.notBefore
}

// ready says that the host has not failed lately.
func (h *host) ready() bool {
	avoid, until := h.state()
	return !avoid && time.Now().After(until)
}

package worker

import (
	"sync"
	"time"
)

// outageGap is for how long an outage is remembered that nothing runs into. The
// pauses of who asks again, in BuildKit and in containerd, are up to 4 s.
const outageGap = 30 * time.Second

// maxOutages bounds what is remembered; a daemon has few at a time.
const maxOutages = 1000

// outages are the addresses that were asked for in vain until a limit was over.
// BuildKit asks up to eight times for a blob: an outage must not get eight limits.
// Methods can be called concurrently.
type outages struct {
	mu sync.Mutex
	of map[string]outage
}

type outage struct {
	began, seen time.Time
}

// passed is how long an address has been asked for in vain, 0 if it has not been of late.
func (o *outages) passed(address string, now time.Time) time.Duration {
	o.mu.Lock()
	defer o.mu.Unlock()
	got, ok := o.of[address]
	if !ok || now.Sub(got.seen) > outageGap {
		delete(o.of, address)
		return 0
	}
	return now.Sub(got.began)
}

// failed notes that an address was asked for in vain since began.
func (o *outages) failed(address string, began, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.of == nil || len(o.of) >= maxOutages {
		o.of = map[string]outage{}
	}
	if got, ok := o.of[address]; ok && now.Sub(got.seen) <= outageGap {
		began = got.began
	}
	o.of[address] = outage{began, now}
}

// ended notes that an address gave what it was asked for.
func (o *outages) ended(address string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.of, address)
}

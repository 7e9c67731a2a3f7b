package blob

import (
	"context"
	"io"
)

// readPast fetches into memory, past a disk that can't be written: a full disk
// costs requests, not the read. Nothing of it is kept or shared.
func (e *entry) readPast(ctx context.Context, p Priority, dst []byte, off int64) (int, error) {
	size, known := e.sizeNow()
	short := false
	if known {
		if off >= size {
			return 0, io.EOF
		}
		if n := size - off; n < int64(len(dst)) {
			dst, short = dst[:n], true
		}
	}
	e.store.stats.disk.Add(1)
	ctx, cancel := context.WithTimeout(ctx, e.store.opts.GiveUp)
	defer cancel()
	f := &flight{e: e, cancel: func() {}, pos: off, end: off + int64(len(dst)), mem: dst, base: off}
	f.prio.Store(int32(p))
	if err := f.runAlone(ctx); err != nil {
		return 0, err
	}
	if size, _ := e.sizeNow(); !known && off+int64(len(dst)) > size {
		return int(max(0, size-off)), io.EOF
	}
	if short {
		return len(dst), io.EOF
	}
	return len(dst), nil
}

// runAlone is run for a flight that is in no list and that one caller waits for.
func (f *flight) runAlone(ctx context.Context) error {
	opts := f.e.store.opts
	for backoff := opts.BackoffMin; ; backoff = min(2*backoff, opts.BackoffMax) {
		wait, err := f.round(ctx)
		if err == nil || f.over() {
			return nil
		}
		if err == errProgress {
			continue
		}
		if lasting(err) || !sleep(ctx, max(wait, jitter(backoff))) {
			return f.failure()
		}
	}
}

// keep copies what of p, which lies at f.pos, belongs to the memory of the flight.
func (f *flight) keep(p []byte) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	at := span{f.pos, f.pos + int64(len(p))}
	if o := at.intersect(span{f.base, f.base + int64(len(f.mem))}); !o.empty() {
		copy(f.mem[o.lo-f.base:], p[o.lo-at.lo:o.hi-at.lo])
	}
	f.pos = at.hi
}

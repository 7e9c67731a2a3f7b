package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
)

// completion lets all callers of Complete share one run.
type completion struct {
	mu      sync.Mutex
	done    chan struct{} // nil: no run
	waiters int
	cancel  context.CancelCauseFunc
	err     error // valid when done is closed
}

// Complete fetches what is missing, in large parallel ranges, and verifies the
// whole blob against its digest; the blob is local from then on. When the digest
// does not match, everything is dropped and fetched once more, from other hosts than
// before if there are some; a mismatch of what each of them sent is an error of
// class data loss. Callers share one run, which ends early when the last of them leaves.
func (b *Blob) Complete(ctx context.Context, p Priority) error {
	if b.released.Load() {
		return ErrClosed
	}
	if b.Local() {
		return nil
	}
	c := &b.entry.complete
	c.mu.Lock()
	if c.done == nil {
		if !b.begin() {
			c.mu.Unlock()
			return ErrClosed
		}
		rctx, cancel := context.WithCancelCause(b.ctx)
		done := make(chan struct{})
		c.done, c.cancel = done, cancel
		go func() {
			defer b.wg.Done()
			defer cancel(nil)
			err := b.entry.completeRun(rctx, p)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = err
			if c.done == done {
				c.done = nil
			}
			close(done)
		}()
	} else {
		b.raiseAll(p)
	}
	done := c.done
	c.waiters++
	c.mu.Unlock()
	var err error
	select {
	case <-done:
		c.mu.Lock()
		err = c.err
	case <-ctx.Done():
		err = context.Cause(ctx)
		c.mu.Lock()
	}
	defer c.mu.Unlock()
	if c.waiters--; c.waiters == 0 && c.done == done {
		c.cancel(errUnused)
		c.done = nil // a later call starts anew rather than join a dying run
	}
	return err
}

// begin counts one more goroutine of the entry, unless it is closing.
func (e *entry) begin() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mu.closing {
		e.wg.Add(1)
	}
	return !e.mu.closing
}

// raiseAll lifts what is under way to p.
func (e *entry) raiseAll(p Priority) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, f := range e.mu.flights {
		f.raise(p)
	}
}

// wholeTries is how often a whole blob is fetched that is wrong each time.
const wholeTries = 4

// errDropped says that somebody dropped bytes while they were verified.
var errDropped = errors.New("bytes were dropped meanwhile")

func (e *entry) completeRun(ctx context.Context, p Priority) error {
	var liars []string
	for try := 1; ; try++ {
		ok, err := e.fetchAndHash(ctx, p)
		if err == errDropped {
			try--
			continue
		}
		if err != nil {
			return fmt.Errorf("complete blob %s: %w", e.dgst, err)
		}
		if ok {
			return nil
		}
		hosts, err := e.startOver()
		if err != nil {
			return fmt.Errorf("complete blob %s: %w", e.dgst, err)
		}
		for _, h := range hosts {
			if !slices.Contains(liars, h) {
				liars = append(liars, h)
			}
		}
		if try == wholeTries {
			from := ""
			if len(liars) > 0 { // else all of it was on disk
				from = " from " + strings.Join(liars, ", ")
			}
			return fmt.Errorf("complete blob %s: contents%s do not match the digest, fetched %d times: %w", e.dgst, from, try, errdefs.ErrDataLoss)
		}
	}
}

// fetchAndHash fetches all that is missing and hashes it as it arrives.
func (e *entry) fetchAndHash(ctx context.Context, p Priority) (bool, error) {
	d, err := e.demand(demand{prio: p, span: span{0, unknownEnd}})
	if err != nil {
		return false, err
	}
	if d != nil {
		defer e.leave(d) // keeps the flights going while the hash follows them
	}
	ok, err := e.hash(ctx, p)
	if err != nil {
		return false, err
	}
	if err := e.drain(ctx); err != nil {
		return false, err
	}
	e.mu.Lock()
	again := e.mu.shared
	e.mu.shared = false
	e.mu.Unlock()
	if again { // bytes may have changed behind the hash
		if ok, err = e.hash(ctx, p); err != nil {
			return false, err
		}
	}
	if !ok {
		return false, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.present.total != e.mu.size {
		return false, errDropped
	}
	e.mu.local, e.mu.dirty = true, true
	return true, nil
}

// hash reads the blob from its first to its last byte, fetching what is missing,
// and says whether its digest is the right one.
func (e *entry) hash(ctx context.Context, p Priority) (bool, error) {
	v := e.dgst.Verifier()
	buf := make([]byte, 256<<10)
	for off := int64(0); ; {
		n, err := e.readAt(ctx, p, buf, off)
		v.Write(buf[:n])
		off += int64(n)
		if err == io.EOF {
			return v.Verified(), nil
		}
		if err != nil {
			return false, err
		}
	}
}

// drain ends the flights, which have nothing left to bring, and waits until none
// of them can write any more.
func (e *entry) drain(ctx context.Context) error {
	e.mu.Lock()
	for len(e.mu.flights) > 0 {
		e.endLocked(e.mu.flights[0])
	}
	if e.mu.writing == 0 {
		e.mu.Unlock()
		return nil
	}
	if e.mu.written == nil {
		e.mu.written = make(chan struct{})
	}
	written := e.mu.written
	e.mu.Unlock()
	select {
	case <-written:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// startOver forgets all bytes and the size, and begins a new file: the old one
// may have other names by now. It returns the hosts that the bytes were from, as far
// as that is known.
func (e *entry) startOver() (hosts []string, err error) {
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	file, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.store.stats.dropped.Add(e.mu.present.total)
	e.mu.retired = append(e.mu.retired, e.mu.file) // reads may still use it
	e.mu.file, e.mu.present, e.mu.local, e.mu.dirty = file, ranges{}, false, true
	e.wrong.Add(1)
	hosts = e.mu.givers.blame(span{0, unknownEnd}, &e.mu.lies)
	e.replanLocked()
	return hosts, nil
}

// dropLocal verifies a local blob again and starts over when it is damaged. A
// chunk that does not match while the blob does has a wrong digest in its table
// of contents, which no fetch can cure.
func (e *entry) dropLocal() {
	e.mu.Lock()
	proven := e.mu.proven
	e.mu.Unlock()
	if proven {
		return
	}
	ok, err := e.hashFile()
	if err == nil && ok {
		e.mu.Lock()
		e.mu.proven = true
		e.mu.Unlock()
		return
	}
	if err == nil {
		_, err = e.startOver()
	}
	if err != nil {
		e.store.opts.OnError(fmt.Errorf("drop blob %s: %w", e.dgst, err))
	}
}

// hashFile says whether the file alone has the right digest.
func (e *entry) hashFile() (bool, error) {
	e.mu.Lock()
	file, size := e.mu.file, e.mu.size
	e.mu.Unlock()
	v := e.dgst.Verifier()
	n, err := io.Copy(v, io.NewSectionReader(file, 0, size))
	return n == size && v.Verified(), err
}

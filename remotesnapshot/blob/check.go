package blob

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// check asks c by one small request whether it has the blob, and learns the size
// when the answer tells it.
func (e *entry) check(ctx context.Context, c *candidate) error {
	size, err := e.head(ctx, c)
	var se *statusError
	if errors.As(err, &se) && (se.code == http.StatusMethodNotAllowed || se.code == http.StatusNotImplemented) {
		size, err = e.firstByte(ctx, c)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c.name(), err)
	}
	if size < 0 {
		return nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.mu.sizeKnown {
		e.learnSizeLocked(size)
		e.replanLocked()
	} else if e.mu.size != size {
		return fmt.Errorf("%s: %w: size %d, expected %d", c.name(), errWrongAnswer, size, e.mu.size)
	}
	return nil
}

// head asks for the header only. The size is -1 when it is not told: a registry
// that redirects has the blob, and its target need not allow HEAD.
func (e *entry) head(ctx context.Context, c *candidate) (int64, error) {
	resp, err := e.ask(ctx, c, http.MethodHead, "")
	if err != nil {
		return -1, err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return -1, nil
	}
	return resp.ContentLength, nil
}

// firstByte asks for one byte, for registries without HEAD.
func (e *entry) firstByte(ctx context.Context, c *candidate) (int64, error) {
	resp, err := e.ask(ctx, c, http.MethodGet, "bytes=0-0")
	var unsat *unsatisfiedError
	if errors.As(err, &unsat) {
		return unsat.total, nil
	}
	if err != nil {
		return -1, err
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return resp.ContentLength, nil
	}
	cr, err := parseContentRange(resp.Header.Get("Content-Range"))
	if err != nil {
		return -1, fmt.Errorf("%w: %w", errWrongAnswer, err)
	}
	return cr.total, nil
}

// ask sends one request whose body nobody reads, and counts it. It goes to the
// registry: a target that somebody else was redirected to would answer anybody.
func (e *entry) ask(ctx context.Context, c *candidate, method, rng string) (_ *http.Response, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := &watchdog{cancel: cancel}
	defer dog.stop()
	rec := Request{Digest: e.dgst, Host: c.Host, Kind: KindCheck, Range: rng}
	start := time.Now()
	resp, err := e.sendRegistry(ctx, dog, c, method, rng)
	err = causeOf(ctx, err)
	if err == nil {
		rec.Status = resp.StatusCode
	}
	rec.Duration, rec.Err = time.Since(start), err
	rec.Header = rec.Duration
	e.store.record(rec)
	return resp, err
}

// ensureSize learns the size by a HEAD request, for servers whose ranges do not
// tell it.
func (e *entry) ensureSize(ctx context.Context, dog *watchdog, c *candidate) (int64, error) {
	if size, ok := e.sizeNow(); ok {
		return size, nil
	}
	dog.stop()
	size, err := e.head(ctx, c)
	if err != nil {
		return 0, err
	}
	if size < 0 {
		return 0, fmt.Errorf("%w: no size in any answer", errWrongAnswer)
	}
	return size, nil
}

package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync"
	"time"
)

// try asks one candidate for what is left of the flight and takes what comes. It
// returns nil when the flight has all its bytes or another flight brings them. When
// others can be asked instead, c is given less time.
func (f *flight) try(ctx context.Context, c *candidate, others func() bool) error {
	f.e.mu.Lock()
	f.host = c.host
	f.e.mu.Unlock()
	slots := c.host.slotsOf(f)
	if err := slots.acquire(ctx, &f.prio, f.turn); err != nil {
		return err
	}
	defer slots.release()
	for {
		err := f.exchange(ctx, c, others)
		switch {
		case err == errAgain: // compared as they are: nothing wraps them
			continue
		case err == errCovered:
			f.dismiss()
			return nil
		case err == nil:
			c.host.worked()
			f.e.noteCandidate(c, true)
		case ctx.Err() == nil && !errors.Is(err, errDisk):
			f.blame(c, err)
		}
		return err
	}
}

// blame lets others be asked before c for a while. A blob that is not there says
// nothing about the host.
func (f *flight) blame(c *candidate, err error) {
	var se *statusError
	if errors.As(err, &se) && lasting(err) {
		f.e.noteCandidate(c, false)
		return
	}
	var slow *timeoutError
	switch {
	case !errors.As(err, &slow):
	case slow.early:
		f.calm = min(f.calm+1, maxPatience)
		if !f.ready.Load() {
			return // there is another host, which may be no better
		}
	case slow.step == stepHeader:
		f.patience = min(f.patience+1, maxPatience)
	}
	after := time.Duration(0)
	if se != nil {
		after = se.retryAfter
	}
	c.host.failed(after)
}

// dismiss ends a flight whose bytes come with another one.
func (f *flight) dismiss() {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if !f.ended {
		f.e.endLocked(f)
	}
}

// exchange sends one request and takes its body.
func (f *flight) exchange(ctx context.Context, c *candidate, others func() bool) (err error) {
	r, ok := f.begin(c)
	if !ok {
		return nil
	}
	defer f.pause()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	dog := &watchdog{cancel: cancel, patience: f.patience, most: f.e.store.opts.GiveUp / 3, others: others, calm: f.calm}
	defer dog.stop()

	rec := Request{Digest: f.e.dgst, Host: c.Host, Priority: f.priority(), Range: r.header()}
	if r.suffix > 0 {
		rec.Kind = KindTail
	}
	start := time.Now()
	defer func() {
		rec.Duration, rec.Err = time.Since(start), err
		f.e.store.record(rec)
	}()
	resp, err := f.e.send(ctx, dog, c, http.MethodGet, r.header())
	if err != nil {
		if status := (*statusError)(nil); errors.As(err, &status) {
			rec.Status = status.code
		}
		return f.refused(c, r, causeOf(ctx, err))
	}
	defer resp.Body.Close()
	rec.Status, rec.Header = resp.StatusCode, time.Since(start)
	if err := f.accept(ctx, dog, c, r, resp); err != nil {
		return err
	}
	if resp.StatusCode == http.StatusOK {
		rec.Kind = KindWhole
	}
	body := f.bodyBegins()
	rec.Bytes, err = f.take(ctx, dog, c, r, resp)
	c.host.measured(rec.Header, rec.Bytes, time.Since(body))
	return causeOf(ctx, err)
}

// bodyBegins notes where and when the body starts, to know its pace.
func (f *flight) bodyBegins() time.Time {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	f.bodyAt, f.bodyPos = time.Now(), f.pos
	return f.bodyAt
}

// begin fixes what the request asks for: from here on the range only shrinks.
func (f *flight) begin(c *candidate) (request, bool) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.ended || (f.suffix == 0 && f.span().empty()) {
		return request{}, false
	}
	if f.suffix > 0 && c.host.noSuffix.holds() {
		f.suffix, f.probe, f.pos, f.end = 0, true, 0, 1
	}
	if f.suffix == 0 && !f.probe && !f.apart && f.mem == nil {
		f.e.absorbLocked(f)
	}
	f.running = true
	f.bodyPos = f.pos // nothing of this body has come yet
	f.e.mu.host = c.host
	return request{f.span(), f.suffix}, true
}

// pause makes the range changeable again. A stream that broke off goes on as a
// range from its first missing byte.
func (f *flight) pause() {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	f.running = false
	if !f.stream || f.ended {
		return
	}
	f.stream = false
	if f.mem != nil {
		f.pos = max(f.base, min(f.pos, f.end))
		return
	}
	if m := f.e.mu.present.missing(nil, span{0, f.end}); len(m) > 0 {
		f.pos = m[0].lo
	} else {
		f.pos = f.end
	}
}

// refused handles answers without contents that a flight can live with: the
// range lies behind the blob's end, or suffix ranges are not supported.
func (f *flight) refused(c *candidate, r request, err error) error {
	var se *statusError
	if !errors.As(err, &se) {
		return err
	}
	var unsat *unsatisfiedError
	if errors.As(err, &unsat) {
		f.e.mu.Lock()
		defer f.e.mu.Unlock()
		if f.e.contradictsLocked(unsat.total) {
			return fmt.Errorf("%w: size %d, expected %d", errWrongAnswer, unsat.total, f.e.mu.size)
		}
		f.e.learnSizeLocked(unsat.total)
		if r.suffix > 0 || r.lo >= unsat.total {
			f.end = f.pos // what demands still miss is planned by offsets
			return nil
		}
		return err
	}
	switch se.code {
	case http.StatusRequestedRangeNotSatisfiable, http.StatusNotImplemented, http.StatusMethodNotAllowed, http.StatusBadRequest:
		if r.suffix > 0 {
			c.host.noSuffix.note()
			return errAgain // by offsets this time
		}
	}
	return err
}

// errWrongAnswer says that a server's answer contradicts what was asked for.
var errWrongAnswer = errors.New("wrong answer")

// accept checks an answer's header against the request, learns the size, and
// turns the flight into what the answer is: a range, or a stream of the whole blob.
func (f *flight) accept(ctx context.Context, dog *watchdog, c *candidate, r request, resp *http.Response) error {
	if enc := resp.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return fmt.Errorf("%w: content encoding %.32q", errWrongAnswer, enc)
	}
	if resp.StatusCode == http.StatusOK {
		c.host.noRange.note()
		return f.becomeStream(resp.ContentLength)
	}
	cr, err := parseContentRange(resp.Header.Get("Content-Range"))
	if err != nil {
		return fmt.Errorf("%w: %w", errWrongAnswer, err)
	}
	if cr.total < 0 {
		if cr.total, err = f.e.ensureSize(ctx, dog, c); err != nil {
			return err
		}
	}
	if !r.answeredBy(cr) {
		return fmt.Errorf("%w: %q for %s", errWrongAnswer, resp.Header.Get("Content-Range"), r.header())
	}
	if resp.ContentLength >= 0 && resp.ContentLength != cr.len() {
		return fmt.Errorf("%w: %d bytes for %s", errWrongAnswer, resp.ContentLength, r.header())
	}
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.e.contradictsLocked(cr.total) {
		return fmt.Errorf("%w: size %d, expected %d", errWrongAnswer, cr.total, f.e.mu.size)
	}
	if !f.e.mu.sizeKnown || f.e.mu.size != cr.total {
		f.e.learnSizeLocked(cr.total)
		f.end = min(f.end, cr.total)
		f.e.replanLocked()
	}
	if f.pos != cr.lo {
		return fmt.Errorf("%w: %q, expected offset %d", errWrongAnswer, resp.Header.Get("Content-Range"), f.pos)
	}
	return nil
}

// becomeStream makes the flight bring the whole blob, and ends all others of it.
func (f *flight) becomeStream(length int64) error {
	e := f.e
	e.mu.Lock()
	defer e.mu.Unlock()
	if length >= 0 && e.contradictsLocked(length) {
		return fmt.Errorf("%w: size %d, expected %d", errWrongAnswer, length, e.mu.size)
	}
	if f.mem != nil { // stops where its caller's bytes end
		f.stream, f.pos = true, 0
		if length >= 0 {
			e.learnSizeLocked(length)
			f.end = min(f.end, length)
		}
		return nil
	}
	for _, o := range e.mu.flights {
		if o != f && o.stream {
			return errCovered
		}
	}
	f.stream, f.suffix, f.probe, f.pos, f.end = true, 0, false, 0, unknownEnd
	if length >= 0 {
		e.learnSizeLocked(length)
	}
	if e.mu.sizeKnown {
		f.end = e.mu.size
	}
	for i := len(e.mu.flights) - 1; i >= 0; i-- {
		if o := e.mu.flights[i]; o != f {
			e.mu.shared = true
			e.endLocked(o)
		}
	}
	return nil
}

var buffers = sync.Pool{New: func() any { b := make([]byte, 128<<10); return &b }}

// minPace is the least of a body that has to come within Options.StallTimeout: a
// server that sends a byte now and then keeps nobody waiting.
const minPace = 1 << 10

// take copies the body into the file until the flight has what it wants.
func (f *flight) take(ctx context.Context, dog *watchdog, c *candidate, r request, resp *http.Response) (n int64, err error) {
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for watched := int64(-minPace); ; {
		left, ended := f.left()
		if ended || left == 0 {
			return n, nil
		}
		if n-watched >= minPace {
			dog.watch("data", f.e.store.opts.StallTimeout)
			watched = n
		}
		k, rerr := resp.Body.Read((*buf)[:min(int64(len(*buf)), left)])
		if k > 0 {
			n += int64(k)
			c.host.touch()
			dog.hold() // a disk may be slow
			err := f.put(c, (*buf)[:k])
			dog.resume()
			if err != nil {
				return n, err
			}
		}
		switch {
		case rerr == io.EOF:
			return n, f.endOfBody()
		case rerr != nil:
			return n, causeOf(ctx, rerr)
		}
	}
}

// left is how much the flight still wants of its body.
func (f *flight) left() (n int64, ended bool) {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	return max(0, f.end-f.pos), f.ended
}

// put writes the next bytes of the body where they are not present yet: bytes
// that were verified are never overwritten by ones that are not.
func (f *flight) put(c *candidate, p []byte) error {
	if f.mem != nil {
		f.keep(p)
		return nil
	}
	e := f.e
	e.mu.Lock()
	if f.ended {
		e.mu.Unlock()
		return errUnused
	}
	at := span{f.pos, f.pos + int64(len(p))}
	missing := e.mu.present.missing(nil, at)
	file := e.mu.file
	e.mu.writing++
	e.mu.Unlock()
	err := writeSpans(file, p, at.lo, missing)
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.mu.writing--; e.mu.writing == 0 && e.mu.written != nil {
		close(e.mu.written)
		e.mu.written = nil
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errDisk, err)
	}
	f.pos, f.progress = at.hi, now
	if file != e.mu.file { // started over meanwhile: these bytes are in the old file
		return errUnused
	}
	for _, m := range missing {
		e.mu.givers.add(m, c)
		e.arrivedLocked(m, now)
	}
	return nil
}

// writeSpans writes those parts of p, which lies at offset at, that spans name.
func writeSpans(file *os.File, p []byte, at int64, spans []span) error {
	for _, s := range spans {
		if _, err := file.WriteAt(p[s.lo-at:s.hi-at], s.lo); err != nil {
			return err
		}
	}
	return nil
}

// endOfBody says whether the body brought all that was promised. The end of a
// stream of unknown length is the size of the blob.
func (f *flight) endOfBody() error {
	f.e.mu.Lock()
	defer f.e.mu.Unlock()
	if f.stream && f.end == unknownEnd {
		f.end = f.pos
		f.e.learnSizeLocked(f.pos)
	}
	if left := f.end - f.pos; left > 0 {
		return fmt.Errorf("%d bytes short: %w", left, io.ErrUnexpectedEOF)
	}
	return nil
}

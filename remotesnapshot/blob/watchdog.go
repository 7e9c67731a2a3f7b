package blob

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// stepHeader is the wait for a response's header.
const stepHeader = "response header"

// watchdog cancels one attempt when a step of it takes too long.
type watchdog struct {
	cancel context.CancelCauseFunc
	// patience doubles the limit of stepHeader so many times, as long as it is below most.
	patience int
	most     time.Duration
	// others says whether somebody else can be asked instead; then a step has a
	// fraction of its limit, doubled calm times. It is called from goroutines of its
	// own. nil: nobody.
	others func() bool
	calm   int

	mu struct {
		sync.Mutex
		step         string    // "": none
		since        time.Time // its beginning, or the last sign of life
		held         time.Time // when hold was called; zero: it was not
		early, limit time.Duration
		timer        *time.Timer
		turn         int // of the timer
	}
}

// haste is the part of a limit after which others are asked, if there are some.
const haste = 5

// timeoutError says which step of an attempt took too long.
type timeoutError struct {
	step  string
	limit time.Duration
	early bool // others were to be asked
}

func (e *timeoutError) Error() string { return fmt.Sprintf("no %s within %v", e.step, e.limit) }
func (e *timeoutError) Timeout() bool { return true }

// watch starts a step of the attempt and ends the one before; the same step begins
// anew.
func (w *watchdog) watch(step string, limit time.Duration) {
	early := min(limit/haste<<w.calm, limit)
	if step == stepHeader {
		limit = max(limit, min(limit<<w.patience, w.most))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.since = time.Now()
	if w.mu.step == step {
		return // the timer that runs will see it
	}
	w.endLocked()
	w.mu.step, w.mu.early, w.mu.limit = step, early, limit
	w.waitLocked(limit)
}

// waitLocked looks again when the limit is reached, and before that at times when
// others might be asked.
func (w *watchdog) waitLocked(left time.Duration) {
	if w.others != nil {
		left = min(left, w.mu.early)
	}
	turn := w.mu.turn
	w.mu.timer = time.AfterFunc(left, func() { w.look(turn) })
}

// look cancels the attempt if the step of that turn has taken too long.
func (w *watchdog) look(turn int) {
	hurry := w.others != nil && w.others()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mu.turn != turn {
		return
	}
	idle := time.Since(w.mu.since)
	switch {
	case !w.mu.held.IsZero():
		w.waitLocked(w.mu.limit)
	case idle >= w.mu.limit:
		w.cancel(&timeoutError{step: w.mu.step, limit: w.mu.limit})
	case hurry && idle >= w.mu.early:
		w.cancel(&timeoutError{step: w.mu.step, limit: w.mu.early, early: true})
	default:
		w.waitLocked(w.mu.limit - idle)
	}
}

// hold stops the clock until resume: what is done meanwhile is not the host's doing.
func (w *watchdog) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.held = time.Now()
}

func (w *watchdog) resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.mu.since = w.mu.since.Add(time.Since(w.mu.held))
	w.mu.held = time.Time{}
}

// stop ends the last step.
func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.endLocked()
}

func (w *watchdog) endLocked() {
	w.mu.turn++
	w.mu.step = ""
	if w.mu.timer != nil {
		w.mu.timer.Stop()
	}
}

// causeOf prefers the reason why ctx ended to the error that its end led to.
func causeOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

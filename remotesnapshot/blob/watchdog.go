package blob

import (
	"context"
	"fmt"
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

	timer *time.Timer
	step  string
	limit time.Duration
}

// timeoutError says which step of an attempt took too long.
type timeoutError struct {
	step  string
	limit time.Duration
}

func (e *timeoutError) Error() string { return fmt.Sprintf("no %s within %v", e.step, e.limit) }
func (e *timeoutError) Timeout() bool { return true }

// watch starts a step of the attempt that cancel ends, and ends the one before.
// It is used by the goroutine of the attempt only.
func (w *watchdog) watch(step string, limit time.Duration) {
	if step == stepHeader {
		limit = max(limit, min(limit<<w.patience, w.most))
	}
	if w.timer != nil && w.step == step {
		w.timer.Reset(limit)
		return
	}
	w.stop()
	err := &timeoutError{step, limit}
	w.step, w.limit = step, limit
	w.timer = time.AfterFunc(limit, func() { w.cancel(err) })
}

// stop ends the last step.
func (w *watchdog) stop() {
	if w.timer != nil {
		w.timer.Stop()
	}
}

// causeOf prefers the reason why ctx ended to the error that its end led to.
func causeOf(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

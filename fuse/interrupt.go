package fuse

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// request is the context of one FUSE request. Nearly all of them are answered
// from memory and nobody asks for their Done, so the machinery (a cancellable
// context and the goroutine that listens for INTERRUPT) is made at the first
// question only, and an unused request goes back to a pool.
type request struct {
	dir    *Dir
	cancel <-chan struct{} // closed by go-fuse at INTERRUPT and when the connection ends
	tid    uint32          // of the caller; 0 when it is in a pid namespace that we can't see

	mu      sync.Mutex
	live    atomic.Pointer[liveRequest]
	stopped sync.WaitGroup
}

type liveRequest struct {
	context.Context
	end context.CancelCauseFunc
}

var requests = sync.Pool{New: func() any { return new(request) }}

func newRequest(d *Dir, cancel <-chan struct{}, tid uint32) *request {
	r := requests.Get().(*request)
	r.dir, r.cancel, r.tid = d, cancel, tid
	return r
}

// done ends the request; its goroutine is gone afterwards. A request whose
// context was derived from is left to the garbage collector.
func (r *request) done() {
	if l := r.live.Load(); l != nil {
		l.end(context.Canceled)
		r.stopped.Wait()
		return
	}
	r.dir, r.cancel = nil, nil
	requests.Put(r)
}

// Deadline, Done, Err and Value make a request a context.Context.
func (r *request) Deadline() (time.Time, bool) { return time.Time{}, false }

func (r *request) Done() <-chan struct{} { return r.start().Done() }

func (r *request) Err() error {
	if l := r.live.Load(); l != nil {
		return l.Err()
	}
	return r.dir.ctx.Err()
}

func (r *request) Value(key any) any {
	// The live context answers package context's own question for the cancel
	// context behind Done, which spares a goroutine per derived context.
	if l := r.live.Load(); l != nil {
		return l.Value(key)
	}
	return nil
}

// cause is why the request's context ended, nil when it has not.
func (r *request) cause() error {
	if l := r.live.Load(); l != nil {
		return context.Cause(l)
	}
	return context.Cause(r.dir.ctx)
}

func (r *request) start() *liveRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	if l := r.live.Load(); l != nil {
		return l
	}
	ctx, end := context.WithCancelCause(r.dir.ctx)
	l := &liveRequest{ctx, end}
	r.live.Store(l)
	r.stopped.Go(func() { l.listen(r.cancel, r.tid) })
	return l
}

// dyingPoll is how often an interrupted caller is looked at again: the kernel
// sends one INTERRUPT per request, so a kill that follows a stray signal is not
// announced.
const dyingPoll = 100 * time.Millisecond

// listen ends the request when its caller is being killed. It returns when the
// request ends.
func (l *liveRequest) listen(cancel <-chan struct{}, tid uint32) {
	select {
	case <-l.Done():
		return
	case <-cancel:
	}
	if tid == 0 {
		return
	}
	tick := time.NewTicker(dyingPoll)
	defer tick.Stop()
	for !dying(tid) {
		select {
		case <-l.Done():
			return
		case <-tick.C:
		}
	}
	l.end(errKilled)
}

// dying says whether a thread has SIGKILL pending or is gone. The kernel turns
// every fatal signal of a process into a pending SIGKILL of each of its threads
// (complete_signal in kernel/signal.c), so this covers SIGTERM and Ctrl-C too, for
// programs that do not handle them.
func dying(tid uint32) bool {
	status, err := os.ReadFile("/proc/" + strconv.FormatUint(uint64(tid), 10) + "/status")
	if err != nil {
		return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH)
	}
	return pendingKill(status)
}

// pendingKill reads the SigPnd line of a /proc/<tid>/status: a bit mask in
// hexadecimal, bit n-1 for signal n.
func pendingKill(status []byte) bool {
	_, rest, ok := bytes.Cut(status, []byte("\nSigPnd:\t"))
	if !ok {
		return false
	}
	line, _, _ := bytes.Cut(rest, []byte("\n"))
	mask, err := strconv.ParseUint(string(line), 16, 64)
	return err == nil && mask&(1<<(syscall.SIGKILL-1)) != 0
}

package remotesnapshot

import (
	"errors"
	"fmt"
	"sync"

	cerrdefs "github.com/containerd/errdefs"
)

// holds knows the open layer of each committed remote snapshot. An entry belongs
// to the snapshot until it is dropped, and is borrowed by calls that use the
// layer; the layer is closed when neither remains. No layer method is called
// under mu.
type holds struct {
	mu struct {
		sync.Mutex
		byID   map[string]*hold
		closed bool
	}
}

// hold is one open layer and the number of its users. refs is guarded by holds.mu.
type hold struct {
	layer Layer
	refs  int
}

var errClosed = fmt.Errorf("snapshotter is closed: %w", cerrdefs.ErrUnavailable)

// borrow returns the layer of snapshot id; the caller gives it back.
func (h *holds) borrow(id string) (*hold, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	e := h.mu.byID[id]
	if e == nil {
		return nil, false
	}
	e.refs++
	return e, true
}

// giveBack ends a borrow. An error is that of closing the layer.
func (h *holds) giveBack(e *hold) error {
	h.mu.Lock()
	e.refs--
	last := e.refs == 0
	h.mu.Unlock()
	if last {
		return e.layer.Close()
	}
	return nil
}

// put makes layer the one of snapshot id. It reports whether it has taken it
// over: not when there is one already, or after close (an error then).
func (h *holds) put(id string, layer Layer) (bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mu.closed {
		return false, errClosed
	}
	if h.mu.byID[id] != nil {
		return false, nil
	}
	if h.mu.byID == nil {
		h.mu.byID = map[string]*hold{}
	}
	h.mu.byID[id] = &hold{layer: layer, refs: 1}
	return true, nil
}

// drop ends the snapshot's own use of its layer.
func (h *holds) drop(id string) error {
	h.mu.Lock()
	e := h.mu.byID[id]
	delete(h.mu.byID, id)
	h.mu.Unlock()
	if e == nil {
		return nil
	}
	return h.giveBack(e)
}

// close drops all; layers that are borrowed close with their last user.
func (h *holds) close() error {
	h.mu.Lock()
	all := h.mu.byID
	h.mu.byID, h.mu.closed = nil, true
	h.mu.Unlock()
	var errs []error
	for _, e := range all {
		errs = append(errs, h.giveBack(e))
	}
	return errors.Join(errs...)
}

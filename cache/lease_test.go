package cache

import (
	"testing"

	"github.com/moby/buildkit/identity"
)

// TestLeaseThatCouldNotBeEnded: what a failed operation can't take back, as on a full
// disk, is taken back by the next prune; a record that was made meanwhile keeps its own.
func TestLeaseThatCouldNotBeEnded(t *testing.T) {
	w := newWorld(t, true)
	failing := func(id string) {
		t.Helper()
		undo, err := w.m.lease(w.ctx(), id)
		if err != nil {
			t.Fatal(err)
		}
		w.faults.fail(1)
		undo()
		w.faults.disarm()
	}
	failing(identity.NewID())
	kept, err := w.m.New(w.ctx(), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	failing(identity.NewID())
	if n := len(w.m.mu.stale); n != 2 {
		t.Fatalf("%d leases are remembered, want 2", n)
	}
	w.m.mu.stale = append(w.m.mu.stale, kept.ID()) // as after a commit that failed at first
	w.pruneAll()
	list, err := w.leases.List(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].ID != kept.ID() {
		t.Errorf("leases are %v, want only that of %s", list, kept.ID())
	}
	w.done(kept)
}

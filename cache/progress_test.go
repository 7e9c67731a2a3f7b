package cache

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/moby/buildkit/util/progress"
)

// TestReadAheadIsShown: what was fetched ahead of the step that is the first to mount an
// image is shown as that step's, and no later step's that needs nothing.
func TestReadAheadIsShown(t *testing.T) {
	w := newWorld(t, true)
	h := w.pull(w.layers("a", lazyLayer)...)
	fetched := func(n int64) {
		w.reg.mu.Lock()
		defer w.reg.mu.Unlock()
		w.reg.usage = n
	}
	fetched(10)
	if err := h.Extract(w.ctx(), group("s")); err != nil {
		t.Fatal(err)
	}
	fetched(40) // by something that read ahead
	shown := func() (ids []string) {
		pr, ctx, cancel := progress.NewContext(w.ctx())
		m, err := h.Mount(ctx, true, group("s"))
		if err != nil {
			t.Fatal(err)
		}
		w.use(m)()
		cancel(context.Canceled)
		for {
			list, err := pr.Read(w.ctx())
			if errors.Is(err, io.EOF) {
				return slices.Compact(ids)
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range list {
				if st, ok := p.Sys.(progress.Status); ok && strings.HasPrefix(p.ID, "lazy ") {
					if st.Current != 40 {
						t.Errorf("%s: %d bytes, want 40", p.ID, st.Current)
					}
					ids = append(ids, p.ID)
				}
			}
		}
	}
	want := []string{"lazy " + keyBlob.get(h.meta).String()}
	if got := shown(); !slices.Equal(got, want) {
		t.Errorf("the first step shows %q, want %q", got, want)
	}
	if got := shown(); len(got) > 0 {
		t.Errorf("the second step shows %q", got)
	}
	w.done(h)
}

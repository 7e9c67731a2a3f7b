package cache

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/util/progress"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// reportEvery is how often progress is reported.
const reportEvery = 500 * time.Millisecond

// noteReason remembers why a layer is not lazy, for disk usage reports; nil: it is.
func (m *Manager) noteReason(r *record, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	blob := keyBlob.get(r.meta)
	if err == nil || m.lazy == nil && m.opts.NotLazy == nil {
		delete(m.mu.reasons, blob)
		return
	}
	m.mu.reasons[blob] = err.Error()
}

// forgetReason is for a blob whose record is erased.
func (m *Manager) forgetReason(blob digest.Digest) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.mu.reasons, blob)
}

// report writes the state of something to a build's progress, again and again until
// it is stopped. write is called with last=true at the end.
func report(ctx context.Context, write func(pw progress.Writer, last bool)) (stop func()) {
	pw, ok, _ := progress.NewFromContext(ctx)
	if !ok {
		pw.Close()
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer pw.Close()
		t := time.NewTicker(reportEvery)
		defer t.Stop()
		for {
			write(pw, false)
			select {
			case <-t.C:
			case <-quit:
				write(pw, true)
				return
			}
		}
	}()
	return sync.OnceFunc(func() {
		close(quit)
		<-done
	})
}

// reportFetch reports on a blob that is being made local.
func (m *Manager) reportFetch(ctx context.Context, desc ocispecs.Descriptor) (stop func()) {
	started := time.Now()
	return report(ctx, func(pw progress.Writer, last bool) {
		info := m.lazy.Info(desc.Digest)
		st := progress.Status{Action: "downloading", Current: int(info.Fetched), Total: int(max(info.Size, desc.Size, 0)), Started: &started}
		if last {
			now := time.Now()
			st.Action, st.Completed = "done", &now
		}
		pw.Write(desc.Digest.String(), st)
	})
}

// aheadTime is for how long what was fetched may have been fetched for a step to come.
const aheadTime = time.Minute

// reportReads reports how much of the lazy layers that are mounted has been
// fetched so far, if anything of them was fetched for the step that mounts them.
func (h *ref) reportReads(ctx context.Context) (stop func()) {
	var layers []digest.Digest
	before, shown := map[digest.Digest]int64{}, map[digest.Digest]int64{}
	for _, r := range h.record.ancestry() {
		if list, err := h.m.sourcesOf(ctx, r); err == nil && len(list) > 0 {
			l := keyBlob.get(r.meta)
			layers = append(layers, l)
			shown[l] = h.m.lazy.Info(l).Fetched
			before[l] = shown[l]
			if then := r.ahead.Swap(nil); then != nil && time.Since(then.at) < aheadTime {
				before[l] = then.bytes
			}
		}
	}
	if len(layers) == 0 {
		return func() {}
	}
	started := time.Now()
	return report(ctx, func(pw progress.Writer, last bool) {
		for _, l := range layers {
			info := h.m.lazy.Info(l)
			st := progress.Status{Action: "lazy layer", Current: int(info.Fetched), Total: int(info.Size), Started: &started}
			switch {
			case info.Size == 0, info.Fetched == before[l]:
				continue // nothing of it was needed: not worth a line
			case last:
				now := time.Now()
				st.Completed = &now
			case info.Fetched == shown[l]:
				continue
			}
			shown[l] = info.Fetched
			pw.Write("lazy "+l.String(), st)
		}
	})
}

// resolving reports on layers whose tables of contents are looked for.
type resolving struct {
	pw    progress.Writer
	start time.Time
	end   func(error)
}

// startProgress shows the layers of a record that are to be mounted in the progress
// of the vertex that pulls the image.
func (h *ref) startProgress(ctx context.Context, layers []*record) *resolving {
	p := &resolving{start: time.Now(), end: func(error) {}}
	for _, r := range layers {
		if dh := handlerOf(r, h.handlers); dh != nil && dh.Progress != nil {
			ctx, p.end = dh.Progress.Start(ctx)
			break
		}
	}
	p.pw, _, _ = progress.NewFromContext(ctx)
	return p
}

// resolved shows what became of a layer.
func (p *resolving) resolved(r *record, err error) {
	now := time.Now()
	what := "lazy"
	if err != nil {
		what = "not lazy: " + reasonOf(err)
	}
	id := fmt.Sprintf("%s %s", keyBlob.get(r.meta), what)
	p.pw.Write(id, progress.Status{Action: "resolve layer", Started: &p.start, Completed: &now})
}

func (p *resolving) stop() {
	p.pw.Close()
	p.end(nil)
}

// reasonOf is the innermost error, which says what is wrong with a layer without
// naming it again. A single word is a class of errors, which alone says nothing.
func reasonOf(err error) string {
	for {
		next := errors.Unwrap(err)
		if next == nil || !strings.Contains(next.Error(), " ") {
			return err.Error()
		}
		err = next
	}
}

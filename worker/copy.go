package worker

import (
	"context"
	"errors"
	"syscall"
	"time"

	"github.com/moby/buildkit/frontend"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/pb"
	bkworker "github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/cache"
	"github.com/lazykit/lazykit/remotesnapshot"
)

// ResolveOp implements bkworker.Worker. Copies from lazy layers, and the hashes that
// they are cached by, say why bytes could not be had: all that BuildKit sees of that
// is an I/O error. What steps read is followed by their executor.
func (w *Worker) ResolveOp(v solver.Vertex, s frontend.FrontendLLBBridge, sm *bksession.Manager, proxy bkworker.ProxyOpt) (solver.Op, error) {
	def, ok := v.Sys().(*pb.Op)
	if exec, is := def.GetOp().(*pb.Op_Exec); ok && is && w.parts.storage.steps != nil && !proxy.Network {
		return w.resolveExec(v, def.Platform, exec, sm)
	}
	op, err := w.Worker.ResolveOp(v, s, sm, proxy)
	if err == nil && ok && def.GetFile() != nil && w.parts.storage.lazy != nil {
		return explainedOp{op, w.parts.storage.lazy}, nil
	}
	return op, err
}

// explainedOp gives I/O errors of an operation their cause.
type explainedOp struct {
	solver.Op
	lazy remotesnapshot.Lazy
}

// CacheMap implements solver.Op.
func (o explainedOp) CacheMap(ctx context.Context, job solver.JobContext, index int) (*solver.CacheMap, bool, error) {
	m, done, err := o.Op.CacheMap(ctx, job, index)
	if m == nil {
		return m, done, err
	}
	for i := range m.Deps {
		hash := m.Deps[i].ComputeDigestFunc
		if hash == nil {
			continue
		}
		m.Deps[i].ComputeDigestFunc = func(ctx context.Context, r solver.Result, g bksession.Group) (digest.Digest, error) {
			start := time.Now()
			dgst, err := hash(ctx, r, g)
			return dgst, o.explain(ctx, err, start, g, r)
		}
	}
	return m, done, err
}

// Exec implements solver.Op.
func (o explainedOp) Exec(ctx context.Context, job solver.JobContext, inputs []solver.Result) ([]solver.Result, error) {
	start := time.Now()
	out, err := o.Op.Exec(ctx, job, inputs)
	return out, o.explain(ctx, err, start, job.Session(), inputs...)
}

// explain adds to an I/O error why a layer of the inputs could not be read since start.
func (o explainedOp) explain(ctx context.Context, err error, start time.Time, g bksession.Group, inputs ...solver.Result) error {
	if !errors.Is(err, syscall.EIO) || ctx.Err() != nil {
		return err
	}
	for _, in := range inputs {
		ref, ok := in.Sys().(*bkworker.WorkerRef)
		if !ok || ref.ImmutableRef == nil {
			continue
		}
		mounts, merr := ref.ImmutableRef.Mount(ctx, true, g)
		if merr != nil {
			continue // the first error says more
		}
		for _, dgst := range cache.LazyLayers(mounts) {
			if info := o.lazy.Info(dgst); info.LastFailed.After(start) {
				return &readError{err, errors.New(info.LastError)}
			}
		}
	}
	return err
}

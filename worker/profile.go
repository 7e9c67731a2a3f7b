package worker

import (
	"context"
	"errors"
	"sync"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"

	"github.com/lazykit/lazykit/cache"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// followed is an executor that tells a lazy file system which steps run on which
// layers, so that it fetches what they have read before, and that fails the steps
// that could not read all they wanted.
type followed struct {
	executor.Executor
	announcements *announcements
	announced     *announced // of the operation whose process is run; nil: it is not announced
}

func (e followed) Run(ctx context.Context, id string, rootfs executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	running, kill := context.WithCancelCause(ctx)
	defer kill(nil)
	names := sync.OnceValue(func() named { return filesNamed(p.Meta) })
	dgst, broken := profile.StepDigest(p.Meta.Args, p.Meta.Cwd), func() { kill(errBroken) }
	step := e.announced.take(dgst, broken)
	if step == nil {
		step = e.announcements.fs.BeginStep(lazyfs.StepOptions{
			ID:     dgst,
			Wants:  func() layer.Wants { return names().Wants },
			Broken: broken,
		})
	}
	defer func() { step.End(err == nil) }()
	rootfs.Src = followedMountable{rootfs.Src, step, func(ref executor.MountableRef) {
		if dirs := plainDirs(cache.LayerMounts(ref), e.announcements.plain); len(dirs) > 0 {
			step.Runs(func() []layer.Source { return readSources(names().sources, dirs) })
		}
	}}
	all := make([]executor.Mount, len(mounts))
	for i, m := range mounts {
		if m.Src != nil { // nil: a tmpfs
			m.Src = followedMountable{m.Src, step, nil}
		}
		all[i] = m
	}
	rec, err := e.Executor.Run(running, id, rootfs, all, p, started)
	if rerr := step.ReadError(); rerr != nil && ctx.Err() == nil {
		if running.Err() != nil {
			err = nil // how it ended was our doing
		}
		err = &readError{err, rerr}
	}
	return rec, err
}

// errBroken is why a step is killed that can't read its base.
var errBroken = errors.New("a read failed")

// readError is the end of a step whose process was given an I/O error in place of bytes
// of its base. What it made of that must not count as its result, even if it ended well.
type readError struct {
	step  error // of the step without that; nil if its process ended well
	cause error
}

func (e *readError) Error() string {
	if e.step == nil {
		return e.cause.Error()
	}
	return e.step.Error() + ": " + e.cause.Error()
}

// Unwrap returns the step's own error, which BuildKit looks for an exit code in.
func (e *readError) Unwrap() error {
	if e.step == nil {
		return e.cause
	}
	return e.step
}

// followedMountable is one mount of a step.
type followedMountable struct {
	executor.Mountable
	step   *lazyfs.Step
	mounts func(executor.MountableRef) // is told; may be nil
}

func (m followedMountable) Mount(ctx context.Context, readonly bool) (executor.MountableRef, error) {
	ref, err := m.Mountable.Mount(ctx, readonly)
	if err == nil {
		m.step.Reads(cache.LazyLayers(ref))
		if m.mounts != nil {
			m.mounts(ref)
		}
	}
	return ref, err
}

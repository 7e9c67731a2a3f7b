package worker

import (
	"context"

	"github.com/moby/buildkit/executor"
	resourcestypes "github.com/moby/buildkit/executor/resources/types"

	"github.com/lazykit/lazykit/cache"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// followed is an executor that tells a lazy file system which steps run on which
// layers, so that it fetches what they have read before.
type followed struct {
	executor.Executor
	fs *lazyfs.FS
}

func (e followed) Run(ctx context.Context, id string, rootfs executor.Mount, mounts []executor.Mount, p executor.ProcessInfo, started chan<- struct{}) (_ resourcestypes.Recorder, err error) {
	step := e.fs.BeginStep(profile.StepDigest(p.Meta.Args, p.Meta.Cwd))
	defer func() { step.End(err == nil) }()
	rootfs.Src = followedMountable{rootfs.Src, step}
	all := make([]executor.Mount, len(mounts))
	for i, m := range mounts {
		if m.Src != nil { // nil: a tmpfs
			m.Src = followedMountable{m.Src, step}
		}
		all[i] = m
	}
	return e.Executor.Run(ctx, id, rootfs, all, p, started)
}

// followedMountable is one mount of a step.
type followedMountable struct {
	executor.Mountable
	step *lazyfs.Step
}

func (m followedMountable) Mount(ctx context.Context, readonly bool) (executor.MountableRef, error) {
	ref, err := m.Mountable.Mount(ctx, readonly)
	if err == nil {
		m.step.Reads(cache.LazyLayers(ref))
	}
	return ref, err
}

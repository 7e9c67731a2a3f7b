package worker

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/buildkit/executor"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/llbsolver/linuxresources"
	"github.com/moby/buildkit/solver/llbsolver/ops"
	"github.com/moby/buildkit/solver/pb"
	srctypes "github.com/moby/buildkit/source/types"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/lazyfs"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// A step's process runs some time after its base can be read: snapshots and mounts are made
// first. What it will read is known before, by its command line and by profiles, and is asked for
// meanwhile.

const (
	// maxAnnounced bounds the steps that are remembered, for announcedAge at most: one whose
	// result is in the cache never runs.
	maxAnnounced = 64
	announcedAge = 2 * time.Minute
	// maxAnnouncedSize is how much a step's command line may have, in bytes.
	maxAnnouncedSize = 64 << 10
	// announcedFor is how long a step reads ahead without its process.
	announcedFor = 10 * time.Second
	// maxAhead is how many steps read ahead of the same layers at the same time.
	maxAhead = 8
)

// announcements are the steps that were planned right on an image, and that may run soon.
// Safe for concurrent use.
type announcements struct {
	fs    *lazyfs.FS
	plain string // directory below which layers are that are not lazy

	mu    sync.Mutex
	steps []*announced // the oldest first
}

// announced is one of them, guarded by its announcements.
type announced struct {
	all       *announcements
	reference string // of the image
	meta      *pb.Meta
	id        digest.Digest
	at        time.Time

	step  *lazyfs.Step // from when the image can be read until the process runs
	timer *time.Timer  // ends it, with step
	kill  func()       // ends the process; nil before it runs
}

// resolveExec makes the operation of a RUN as BuildKit's worker does, with an executor that
// knows if it was announced.
func (w *Worker) resolveExec(v solver.Vertex, platform *pb.Platform, op *pb.Op_Exec, sm *bksession.Manager) (solver.Op, error) {
	steps := w.WorkerOpt.Executor
	if f, ok := steps.(followed); ok {
		if reference := imageBelow(v, op.Exec); reference != "" {
			f.announced = f.announcements.add(reference, op.Exec.GetMeta())
		}
		steps = f
	}
	var limits *pb.LinuxResources
	if m, ok := v.Options().Metadata.(*linuxresources.Metadata); ok && m != nil {
		limits = m.LinuxResources
	}
	return ops.NewExecOp(v, op, platform, w.CacheMgr, w.ParallelismSem, sm, steps, w.Worker, limits, false)
}

// imageBelow is the reference of the image on which a RUN is the first one; "" when there
// is none, or another RUN comes before.
func imageBelow(v solver.Vertex, op *pb.ExecOp) string {
	for _, m := range op.GetMounts() {
		if m.GetDest() != pb.RootMount {
			continue
		}
		input := m.GetInput()
		for range maxBelow {
			base, ok := inputOf(v, input)
			if !ok {
				return ""
			}
			def, _ := base.Sys().(*pb.Op)
			if reference, ok := strings.CutPrefix(def.GetSource().GetIdentifier(), srctypes.DockerImageScheme+"://"); ok {
				return reference
			}
			actions := def.GetFile().GetActions() // a COPY, or a WORKDIR
			if len(actions) == 0 {
				return ""
			}
			v, input = base, actions[0].GetInput()
		}
	}
	return ""
}

// maxBelow bounds the operations between a RUN and its image that are looked at.
const maxBelow = 64

func inputOf(v solver.Vertex, n int64) (solver.Vertex, bool) {
	inputs := v.Inputs()
	if n < 0 || n >= int64(len(inputs)) {
		return nil, false
	}
	return inputs[n].Vertex, true
}

// add remembers a step, in the place of another one that does the same; nil when it is too
// large to be remembered.
func (s *announcements) add(reference string, meta *pb.Meta) *announced {
	size := len(meta.GetCwd())
	for _, list := range [][]string{meta.GetArgs(), meta.GetEnv()} {
		for _, v := range list {
			size += len(v)
		}
	}
	if size > maxAnnouncedSize {
		return nil
	}
	a := &announced{all: s, reference: reference, meta: meta, id: profile.StepDigest(meta.GetArgs(), meta.GetCwd()), at: time.Now()}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.steps = slices.DeleteFunc(s.steps, func(o *announced) bool {
		return o.step == nil && (o.reference == reference && o.id == a.id || a.at.Sub(o.at) > announcedAge)
	})
	if len(s.steps) >= maxAnnounced {
		s.steps = slices.Delete(s.steps, 0, 1)
	}
	s.steps = append(s.steps, a)
	return a
}

// resolved says which layers can be read now: the steps on their image read ahead, the latest
// ones if there are many. It does not block.
func (s *announcements) resolved(layers []remotesnapshot.Source) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, a := range slices.Backward(s.steps) {
		var of []digest.Digest
		for _, l := range layers {
			if l.Reference == a.reference {
				of = append(of, l.Digest)
			}
		}
		if len(of) == 0 || n == maxAhead || time.Since(a.at) > announcedAge {
			continue
		}
		n++
		a.beginLocked(of)
	}
}

func (a *announced) beginLocked(layers []digest.Digest) {
	if a.step == nil {
		a.step = a.all.fs.BeginStep(lazyfs.StepOptions{
			ID: a.id,
			Wants: func() layer.Wants {
				return filesNamed(executor.Meta{Args: a.meta.GetArgs(), Env: a.meta.GetEnv(), Cwd: a.meta.GetCwd()}).Wants
			},
			Broken: a.broken,
		})
		a.timer = time.AfterFunc(announcedFor, func() { a.take("", nil) })
	}
	a.step.WillRead(layers)
}

// take hands the step over to who runs its process, and ends it. It returns nil when none has
// begun that is the process's, by its ID: an emulator may have been put before the command. kill
// is for StepOptions.Broken. Nothing is read ahead any more.
func (a *announced) take(id digest.Digest, kill func()) *lazyfs.Step {
	if a == nil {
		return nil
	}
	a.all.mu.Lock()
	defer a.all.mu.Unlock()
	if i := slices.Index(a.all.steps, a); i >= 0 {
		a.all.steps = slices.Delete(a.all.steps, i, i+1)
	}
	step := a.step
	a.step = nil
	if step == nil {
		return nil
	}
	a.timer.Stop()
	if id != a.id {
		step.End(false)
		return nil
	}
	a.kill = kill
	return step
}

// broken is called when a read has failed which only this step can have asked for: its process
// runs.
func (a *announced) broken() {
	a.all.mu.Lock()
	kill := a.kill
	a.all.mu.Unlock()
	if kill != nil {
		kill()
	}
}

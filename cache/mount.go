package cache

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	cerrdefs "github.com/containerd/errdefs"
	bksession "github.com/moby/buildkit/session"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/moby/buildkit/util/overlay"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// Mount implements bkcache.Mountable. The record is prepared first, with the
// credentials of s, which are also those of the reads until the mounts are released.
// A record that is not mounted readonly may be written to by the caller's
// overlay only; for that a twin is finalized.
func (h *immutableRef) Mount(ctx context.Context, readonly bool, s bksession.Group) (snapshot.Mountable, error) {
	if !readonly {
		if err := h.Finalize(ctx); err != nil {
			return nil, err
		}
	}
	if err := h.Extract(ctx, s); err != nil {
		return nil, err
	}
	return h.ref.mount(ctx, readonly, s, h.record.mountForReaders)
}

// mountToCompare is a read-only Mount whose directories answer exactly for xattrs.
func (h *immutableRef) mountToCompare(ctx context.Context, s bksession.Group) (snapshot.Mountable, error) {
	if err := h.Extract(ctx, s); err != nil {
		return nil, err
	}
	return h.ref.mount(ctx, true, s, h.record.mountImmutable)
}

// Mount implements bkcache.Mountable. Mounts of the same record share one mount
// point, so that several steps can write to it.
func (h *mutableRef) Mount(ctx context.Context, readonly bool, s bksession.Group) (snapshot.Mountable, error) {
	return h.ref.mount(ctx, readonly, s, h.record.mountMutable)
}

// mount makes what a caller gets of the record's own mounts: mounts with the caller's
// sessions, and read-only if it asked for that.
func (h *ref) mount(ctx context.Context, readonly bool, s bksession.Group, own func(context.Context) (snapshot.Mountable, error)) (snapshot.Mountable, error) {
	grants, err := h.grants(ctx, h.record.ancestry())
	if err != nil {
		return nil, err
	}
	// A layer whose TOC was lost is resolved again when it is mounted.
	release, err := grants.take(ctx, sessionsOf(s))
	if err != nil {
		return nil, err
	}
	defer release()
	mnt, err := own(ctx)
	if err != nil {
		return nil, err
	}
	if h.m.lazy != nil {
		mnt = &heldMountable{Mountable: mnt, ctx: context.WithoutCancel(ctx), ref: h, grants: grants, sessions: sessionsOf(s)}
	}
	if readonly {
		mnt = &readonlyMountable{mnt}
	}
	return mnt, nil
}

// mountForReaders is mountImmutable with directories that are fast to read.
func (r *record) mountForReaders(ctx context.Context) (snapshot.Mountable, error) {
	mnt, err := r.mountImmutable(ctx)
	if err != nil || r.m.lazy == nil {
		return mnt, err
	}
	return &fastMountable{Mountable: mnt, fast: r.m.lazy.Fast}, nil
}

// mountImmutable says how to mount an immutable record that has a snapshot: by a
// view, or as long as there is a twin by its snapshot. Its directories answer
// exactly for xattrs, for those who compare trees.
func (r *record) mountImmutable(ctx context.Context) (snapshot.Mountable, error) {
	if err := r.state.io.lock(ctx); err != nil {
		return nil, err
	}
	defer r.state.io.unlock()
	if r.mounted != nil {
		return r.mounted, nil
	}
	mnt, err := r.openView(ctx)
	if err != nil {
		return nil, fmt.Errorf("mount record %s: %w", r.ID(), err)
	}
	r.mounted = mnt
	return mnt, nil
}

func (r *record) openView(ctx context.Context) (_ snapshot.Mountable, rerr error) {
	m := r.m
	if twin := r.twinNow(); twin != nil {
		return m.sn.Mounts(ctx, twin.snapshotID())
	}
	key := r.snapshotID() + "-view"
	lease := viewLease(r.ID())
	defer func() {
		if rerr != nil {
			m.unlease(ctx, lease)
		}
	}()
	if err := m.ensureLease(ctx, lease, leaseOpts(flat, leaseutil.MakeTemporary), m.snapshotResource(key)); err != nil {
		return nil, err
	}
	// Some snapshotters only take the mounts that View returns.
	mnt, err := m.sn.View(ctx, key, r.snapshotID())
	if err == nil && mnt != nil {
		return mnt, nil
	}
	if err != nil && !cerrdefs.IsAlreadyExists(err) {
		return nil, err
	}
	return m.sn.Mounts(ctx, key)
}

// closeView ends a view, unless somebody holds the record again.
func (r *record) closeView(ctx context.Context) error {
	if err := r.state.io.lock(ctx); err != nil {
		return err
	}
	defer r.state.io.unlock()
	r.m.mu.Lock()
	idle := len(r.refs) == 0 && !r.dead
	r.m.mu.Unlock()
	if r.mounted == nil || !idle {
		return nil
	}
	r.mounted = nil
	return r.m.endLease(ctx, viewLease(r.ID()))
}

// mountMutable says how to mount a mutable record, whose snapshot is a step's to
// write to: on lower directories that are fast for steps.
func (r *record) mountMutable(ctx context.Context) (snapshot.Mountable, error) {
	if err := r.state.io.lock(ctx); err != nil {
		return nil, err
	}
	defer r.state.io.unlock()
	if r.mounted != nil {
		return r.mounted, nil
	}
	mnt, err := r.m.sn.Mounts(ctx, r.snapshotID())
	if err != nil {
		return nil, fmt.Errorf("mount record %s: %w", r.ID(), err)
	}
	if r.m.lazy != nil {
		mnt = &fastMountable{Mountable: mnt, fast: r.m.lazy.Fast}
	}
	r.mounted = r.m.pool.share(mnt)
	return r.mounted, nil
}

// heldMountable holds a caller's sessions while the mounts are in use.
type heldMountable struct {
	snapshot.Mountable
	ctx      context.Context // for values: Mount takes none
	ref      *ref
	grants   grants
	sessions remotesnapshot.Sessions
}

// Mount implements snapshot.Mountable.
func (h *heldMountable) Mount() ([]mount.Mount, func() error, error) {
	release, err := h.grants.take(h.ctx, h.sessions)
	if err != nil {
		return nil, nil, err
	}
	mounts, unmount, err := h.Mountable.Mount()
	if err != nil {
		release()
		return nil, nil, err
	}
	stop := h.ref.reportReads(h.ctx)
	var once sync.Once
	return mounts, func() error {
		once.Do(func() {
			stop()
			release()
		})
		if unmount == nil {
			return nil
		}
		return unmount()
	}, nil
}

// LazyLayers lists the lazy layers of registries that mounts show, which a ref of
// ours gave, the topmost first; others show none.
func LazyLayers(mounts any) (layers []digest.Digest) {
	if r, ok := mounts.(*readonlyMountable); ok {
		mounts = r.Mountable
	}
	if h, ok := mounts.(*heldMountable); ok {
		for _, g := range h.grants.list {
			layers = append(layers, g.sources[0].Digest)
		}
	}
	return layers
}

// LayerMounts returns the snapshotter's own mounts of what a ref of ours is mounted by, which name
// the directories of its layers; nil for what is not ours. They may be looked into, and not be used.
func LayerMounts(mounts any) []mount.Mount {
	for ours := false; ; ours = true {
		switch m := mounts.(type) {
		case *readonlyMountable:
			mounts = m.Mountable
		case *heldMountable:
			mounts = m.Mountable
		case *sharedMountable:
			mounts = m.Mountable
		case *fastMountable:
			mounts = m.Mountable
		case snapshot.Mountable:
			if !ours {
				return nil
			}
			list, release, err := m.Mount()
			if err != nil || release == nil {
				return list
			}
			// It counts uses, and this is none.
			_ = release()
			return list
		default:
			return nil
		}
	}
}

// fastMountable puts the directories that are fast in place of those that answer
// exactly for xattrs (see remotesnapshot.Xattrs). Through overlay a file is looked
// at in a third of the time. Only who compares trees asks for attributes that are
// not listed, and needs exact answers.
type fastMountable struct {
	snapshot.Mountable
	fast func(dirs []string) ([]string, error)
}

// Mount implements snapshot.Mountable.
func (f *fastMountable) Mount() ([]mount.Mount, func() error, error) {
	return changeMounts(f.Mountable, func(m mount.Mount) (mount.Mount, error) {
		return changeDirs(m, f.fast)
	})
}

// changeMounts mounts and changes each mount.
func changeMounts(inner snapshot.Mountable, change func(mount.Mount) (mount.Mount, error)) ([]mount.Mount, func() error, error) {
	mounts, unmount, err := inner.Mount()
	if err != nil {
		return nil, nil, err
	}
	out := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		if out[i], err = change(m); err != nil {
			if unmount != nil {
				_ = unmount() // the first error says what is wrong
			}
			return nil, nil, err
		}
	}
	return out, unmount, nil
}

const (
	optionLower = "lowerdir="
	optionUpper = "upperdir="
	optionWork  = "workdir="
)

// changeDirs changes the directory of a bind mount, or the lower ones of an overlay.
func changeDirs(m mount.Mount, f func([]string) ([]string, error)) (mount.Mount, error) {
	if !overlay.IsOverlayMountType(m) {
		dirs, err := f([]string{m.Source})
		if err == nil {
			m.Source = dirs[0]
		}
		return m, err
	}
	options := make([]string, len(m.Options))
	for i, o := range m.Options {
		options[i] = o
		if lowers, ok := strings.CutPrefix(o, optionLower); ok {
			dirs, err := f(strings.Split(lowers, ":"))
			if err != nil {
				return m, err
			}
			options[i] = optionLower + strings.Join(dirs, ":")
		}
	}
	m.Options = options
	return m, nil
}

// readonlyMountable makes mounts read-only.
type readonlyMountable struct{ snapshot.Mountable }

// Mount implements snapshot.Mountable.
func (r *readonlyMountable) Mount() ([]mount.Mount, func() error, error) {
	return changeMounts(r.Mountable, func(m mount.Mount) (mount.Mount, error) {
		if overlay.IsOverlayMountType(m) {
			m.Options = readonlyOverlay(m.Options)
			return m, nil
		}
		options := []string{}
		for _, o := range m.Options {
			if o != "rw" && o != "ro" {
				options = append(options, o)
			}
		}
		m.Options = append(options, "ro")
		return m, nil
	})
}

// readonlyOverlay makes the upper directory the uppermost lower one.
func readonlyOverlay(options []string) []string {
	out := []string{}
	upper := ""
	for _, o := range options {
		if dir, ok := strings.CutPrefix(o, optionUpper); ok {
			upper = dir
		} else if !strings.HasPrefix(o, optionWork) {
			out = append(out, o)
		}
	}
	for i, o := range out {
		if lowers, ok := strings.CutPrefix(o, optionLower); ok && upper != "" {
			out[i] = optionLower + upper + ":" + lowers
		}
	}
	return out
}

package worker

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/bklog"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// lazySnapshotter is in front of the snapshotter that BuildKit's cache manager
// uses, and thereby in front of containerd's metadata database, which holds its
// read lock while a snapshot is prepared: what needs the network is done here.
type lazySnapshotter struct {
	snapshot.Snapshotter
	lazy  lazyResolver
	steps *stepMounts

	starting *starting
}

// lazyResolver is the part of the lazy file system that makes layers lazy.
type lazyResolver interface {
	// Resolve is that of remotesnapshot.Lazy.
	Resolve(ctx context.Context, srcs ...remotesnapshot.Source) []error
	// Attach lets reads of src's layer authenticate through src.Sessions.
	Attach(src remotesnapshot.Source)
}

// Stat hides from BuildKit, while it starts, that snapshots are remote.
func (s *lazySnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	if err == nil && s.starting.Load() {
		delete(info.Labels, remotesnapshot.LabelRemote)
	}
	return info, err
}

// Prepare makes a remote snapshot when opts have the label of a target
// (remotesnapshot.LabelTarget), as BuildKit has for each layer of an image that
// it would like to be lazy, and a plain one otherwise.
//
// With a target the layer is resolved first. The result is
// errdefs.ErrAlreadyExists for a snapshot that is lazy now, and any other error
// for a layer that has to be pulled. It is never nil: BuildKit gives up on a
// layer either way, but it forgets to remove the active snapshot that a success
// would leave.
func (s *lazySnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) error {
	var info snapshots.Info
	for _, opt := range opts {
		if err := opt(&info); err != nil {
			return err
		}
	}
	target := info.Labels[remotesnapshot.LabelTarget]
	if target == "" {
		err := s.Snapshotter.Prepare(ctx, key, parent, opts...)
		if err == nil && parent != "" {
			s.steps.add(key)
		}
		return err
	}
	src, ok, err := remotesnapshot.ParseLabels(info.Labels)
	if err != nil {
		return fmt.Errorf("snapshot %s: %w", target, err)
	}
	if !ok {
		return fmt.Errorf("snapshot %s has no layer of a registry: %w", target, cerrdefs.ErrUnavailable)
	}
	s.lazy.Attach(src)
	log := bklog.G(ctx).WithField("image", src.Reference).WithField("layer", src.Digest.String())
	if err := s.lazy.Resolve(ctx, src)[0]; err != nil {
		if ctx.Err() == nil {
			log.WithError(err).Info("layer is not lazy")
		}
		return err
	}
	err = s.Snapshotter.Prepare(ctx, key, parent, snapshots.WithLabels(lastingLabels(info.Labels)))
	switch {
	case cerrdefs.IsAlreadyExists(err):
		log.Info("layer is lazy")
		return err
	case err != nil:
		log.WithError(err).Warn("layer was resolved, but its snapshot can't be made")
		return err
	}
	// The layer was closed in between, and the snapshotter made a plain snapshot.
	if rerr := s.Snapshotter.Remove(context.WithoutCancel(ctx), key); rerr != nil {
		log.WithError(rerr).Debugf("snapshot %s is left to the garbage collector", key)
	}
	return fmt.Errorf("layer %s of %s was closed while its snapshot was made: %w", src.Digest, src.Reference, cerrdefs.ErrUnavailable)
}

// Mounts returns how to mount a snapshot for a step, or for BuildKit itself: see
// stepMounts.
func (s *lazySnapshotter) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	m, err := s.Snapshotter.Mounts(ctx, key)
	if err == nil && s.steps.take(key) {
		m = s.steps.wrap(m)
	}
	return m, err
}

// Commit makes a snapshot that no step can be run on any more.
func (s *lazySnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	err := s.Snapshotter.Commit(ctx, name, key, opts...)
	if err == nil {
		s.steps.take(key)
	}
	return err
}

// Update keeps BuildKit's temporary labels in memory: what they say is for whom
// to ask for the layer's bytes, and goes to the sessions that may be asked.
// BuildKit adds them for each mount of each layer and removes them again, which
// would be four transactions on two databases.
func (s *lazySnapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	if !onlyTemporary(fieldpaths) {
		return s.Snapshotter.Update(ctx, info, fieldpaths...)
	}
	given := make(map[string]string, len(fieldpaths))
	for _, path := range fieldpaths {
		key := strings.TrimPrefix(path, labelField)
		if v := info.Labels[key]; v != "" {
			given[key] = v
		}
	}
	src, ok, err := remotesnapshot.ParseLabels(given)
	if err != nil {
		return snapshots.Info{}, fmt.Errorf("snapshot %s: %w", info.Name, err)
	}
	if ok {
		s.lazy.Attach(src)
	}
	return info, nil
}

// labelField is what a field path of Update starts with when it names a label.
const labelField = "labels."

// idLength is the length of BuildKit's random identifiers.
const idLength = 25

// onlyTemporary says whether an update names nothing but temporary labels: those
// that end in one of BuildKit's random identifiers, one for all of them. An
// update that names nothing is BuildKit's for a layer without labels; passed on,
// it would replace all labels of the snapshot.
func onlyTemporary(fieldpaths []string) bool {
	for i, path := range fieldpaths {
		key, ok := strings.CutPrefix(path, labelField)
		if !ok || temporaryID(key) == "" || i > 0 && temporaryID(key) != temporaryID(fieldpaths[0]) {
			return false
		}
	}
	return true
}

// temporaryID is the identifier that a temporary label ends in, "" for others.
func temporaryID(key string) string {
	dot := strings.LastIndexByte(key, '.')
	id := key[dot+1:]
	if dot < 0 || len(id) != idLength {
		return ""
	}
	for _, c := range id {
		if (c < '0' || c > '9') && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return id
}

// lastingLabels are the labels that are not temporary.
func lastingLabels(labels map[string]string) map[string]string {
	out := make(map[string]string, len(labels))
	for k, v := range labels {
		if temporaryID(k) == "" {
			out[k] = v
		}
	}
	return out
}

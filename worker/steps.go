package worker

import (
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/moby/buildkit/snapshot"
)

// stepMounts tells the mounts that a build step runs on from those that BuildKit
// reads itself.
//
// A layer without xattrs has two directories. The fast one says that xattrs are
// not supported, and the kernel asks no more: a step looks at files in a third of
// the time. The exact one says that there is no such attribute, which is what
// BuildKit wants to hear where it compares or hashes a tree; of the other answer
// it makes an error. The snapshotter's mounts are exact. The first mount of a
// snapshot after it was prepared is for the step that it was prepared for, or for
// a copy into it, which reads no attribute: that one is made fast. Later ones are
// BuildKit's reads of what the step has left, before it commits the snapshot.
type stepMounts struct {
	fast func(dirs []string) ([]string, error) // lazyfs.FS.Fast
	mu   struct {
		sync.Mutex
		prepared map[string]struct{} // keys that were not mounted yet
	}
}

func newStepMounts(fast func([]string) ([]string, error)) *stepMounts {
	s := &stepMounts{fast: fast}
	s.mu.prepared = make(map[string]struct{})
	return s
}

// maxPrepared bounds the keys that are remembered: one that is never mounted is
// never taken. To forget one only costs its step speed.
const maxPrepared = 4096

func (s *stepMounts) add(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.mu.prepared) >= maxPrepared {
		clear(s.mu.prepared)
	}
	s.mu.prepared[key] = struct{}{}
}

// take says whether key was added and not taken or dropped since.
func (s *stepMounts) take(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mu.prepared[key]
	delete(s.mu.prepared, key)
	return ok
}

// wrap makes the mounts of m fast.
func (s *stepMounts) wrap(m snapshot.Mountable) snapshot.Mountable {
	return &fastMountable{Mountable: m, fast: s.fast}
}

// fastMountable changes the lower directories of overlay mounts.
type fastMountable struct {
	snapshot.Mountable
	fast func(dirs []string) ([]string, error)
}

// Mount implements snapshot.Mountable.
func (f *fastMountable) Mount() ([]mount.Mount, func() error, error) {
	mounts, release, err := f.Mountable.Mount()
	if err != nil {
		return nil, nil, err
	}
	out := make([]mount.Mount, len(mounts))
	for i, m := range mounts {
		if out[i], err = f.mount(m); err != nil {
			release()
			return nil, nil, err
		}
	}
	return out, release, nil
}

const lowerOption = "lowerdir="

func (f *fastMountable) mount(m mount.Mount) (mount.Mount, error) {
	options := make([]string, len(m.Options))
	for i, o := range m.Options {
		options[i] = o
		lowers, ok := strings.CutPrefix(o, lowerOption)
		if !ok {
			continue
		}
		dirs, err := f.fast(strings.Split(lowers, ":"))
		if err != nil {
			return m, err
		}
		options[i] = lowerOption + strings.Join(dirs, ":")
	}
	m.Options = options
	return m, nil
}

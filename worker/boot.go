package worker

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/moby/buildkit/snapshot"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// boot saves the records of lazy layers from the start of BuildKit's cache
// manager.
//
// The manager loads its records when it is made, and deletes those of lazy
// layers, with all that was built on them: it wants to know where a lazy layer's
// bytes can be had, which only a build can tell. The snapshots of these layers
// are there, though, and need nobody to tell. So until the manager is made, a
// layer that has a remote snapshot does not look lazy to it: its blob seems to be
// there, and its snapshot to be plain. Afterwards both look what they are, and a
// build brings along what the manager wants to know, as in a daemon that never
// stopped.
type boot struct {
	mu struct {
		sync.RWMutex
		layers map[digest.Digest]struct{} // blobs of the remote snapshots; nil: the start is over
	}
}

// begin looks for remote snapshots in the database.
func (b *boot) begin(ctx context.Context, sn snapshots.Snapshotter) error {
	layers := map[digest.Digest]struct{}{}
	err := sn.Walk(namespaces.WithNamespace(ctx, namespace), func(_ context.Context, info snapshots.Info) error {
		if _, ok := info.Labels[remotesnapshot.LabelRemote]; !ok {
			return nil
		}
		// Labels that can't be read are the snapshotter's to report.
		if src, ok, err := remotesnapshot.ParseLabels(info.Labels); ok && err == nil {
			layers[src.Digest] = struct{}{}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list remote snapshots: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.layers = layers
	return nil
}

// end lets everything look what it is.
func (b *boot) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.layers = nil
}

// under says whether the start goes on.
func (b *boot) under() bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.mu.layers != nil
}

// has says whether dgst is the blob of a remote snapshot, during the start.
func (b *boot) has(dgst digest.Digest) bool {
	b.mu.RLock()
	defer b.mu.RUnlock()
	_, ok := b.mu.layers[dgst]
	return ok
}

// bootContent is the content store during the start.
type bootContent struct {
	content.Store
	boot *boot
}

// Info implements content.Store.
func (s *bootContent) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	info, err := s.Store.Info(ctx, dgst)
	if err != nil && s.boot.has(dgst) {
		return content.Info{Digest: dgst}, nil
	}
	return info, err
}

// bootSnapshotter is the snapshotter during the start.
type bootSnapshotter struct {
	snapshot.Snapshotter
	boot *boot
}

// Stat implements snapshot.Snapshotter.
func (s *bootSnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	info, err := s.Snapshotter.Stat(ctx, key)
	if err == nil && s.boot.under() {
		info.Labels = maps.Clone(info.Labels)
		delete(info.Labels, remotesnapshot.LabelRemote)
	}
	return info, err
}

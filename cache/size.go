package cache

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// measure is the disk space of a record in bytes: of its snapshot, without those
// below, of its blob in all compressions, and of what is kept of a lazy blob. The
// last changes with each read, so then nothing is stored.
func (m *Manager) measure(ctx context.Context, r *record) (int64, error) {
	if n := r.size(); n != sizeUnknown {
		lazy, err := r.holdsLazily(ctx)
		if err != nil || !lazy {
			return n, err
		}
	}
	return m.sizes.Do(ctx, r.ID(), func(ctx context.Context) (int64, error) {
		n, err := m.snapshotSize(ctx, r)
		if err != nil {
			return sizeUnknown, err
		}
		blobs, err := m.blobSizes(ctx, keyBlob.get(r.meta))
		if err != nil {
			return sizeUnknown, err
		}
		n += blobs
		lazy, err := r.holdsLazily(ctx)
		if err != nil {
			return sizeUnknown, err
		}
		if lazy {
			kept, err := m.lazy.Usage(keyBlob.get(r.meta))
			if err != nil {
				return sizeUnknown, fmt.Errorf("size of record %s: %w", r.ID(), err)
			}
			return n + kept, nil
		}
		var c change
		put(&c, keySize, n)
		return n, r.meta.commit(c)
	})
}

// ownSize is the part of measure that is this record's alone in a report: a blob
// that several records have counts for the one with the lowest id.
func (m *Manager) ownSize(ctx context.Context, r *record, owners map[digest.Digest]string) (int64, error) {
	n, err := m.measure(ctx, r)
	blob := keyBlob.get(r.meta)
	if owner := owners[blob]; err != nil || owner == "" || owner == r.ID() {
		return n, err
	}
	blobs, err := m.blobSizes(ctx, blob)
	if err != nil {
		return sizeUnknown, err
	}
	n -= blobs
	if lazy, err := r.holdsLazily(ctx); err != nil {
		return sizeUnknown, err
	} else if lazy {
		kept, err := m.lazy.Usage(blob)
		if err != nil {
			return sizeUnknown, fmt.Errorf("size of record %s: %w", r.ID(), err)
		}
		n -= kept
	}
	return max(n, 0), nil
}

// blobOwners has the lowest id of the records that have a blob.
func (m *Manager) blobOwners() map[digest.Digest]string {
	m.mu.Lock()
	defer m.mu.Unlock()
	owners := map[digest.Digest]string{}
	for id, r := range m.mu.records {
		blob := keyBlob.get(r.meta)
		if have := owners[blob]; blob != "" && (have == "" || id < have) {
			owners[blob] = id
		}
	}
	return owners
}

// holdsLazily says that the lazy file system may keep something of the layer.
func (r *record) holdsLazily(ctx context.Context) (bool, error) {
	list, err := r.m.sourcesOf(ctx, r)
	return len(list) > 0, err
}

// snapshotSize is 0 for a layer that is not extracted: what a remote snapshot has
// is counted by the blob.
func (m *Manager) snapshotSize(ctx context.Context, r *record) (int64, error) {
	if keyBlobOnly.get(r.meta) {
		return 0, nil
	}
	id := r.snapshotID()
	if twin := r.twinNow(); twin != nil && !r.mutable {
		id = twin.snapshotID()
	}
	info, err := m.sn.Stat(ctx, id)
	if err == nil && info.Labels[remotesnapshot.LabelRemote] != "" {
		return 0, nil
	}
	var usage snapshots.Usage
	if err == nil {
		usage, err = m.sn.Usage(ctx, id)
	}
	if err == nil {
		return usage.Size, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.dead || cerrdefs.IsNotFound(err) {
		return 0, nil
	}
	return 0, fmt.Errorf("size of record %s: %w", r.ID(), err)
}

// blobSizes is the size of what the content store has of a blob and its variants.
func (m *Manager) blobSizes(ctx context.Context, dgst digest.Digest) (n int64, err error) {
	if dgst == "" {
		return 0, nil
	}
	add := func(d digest.Digest) error {
		info, err := m.content.Info(ctx, d)
		if err != nil && !cerrdefs.IsNotFound(err) {
			return fmt.Errorf("size of blob %s: %w", d, err)
		}
		n += info.Size
		return nil
	}
	if err := add(dgst); err != nil {
		return 0, err
	}
	var aerr error
	err = m.variants(ctx, dgst, func(desc ocispecs.Descriptor) bool {
		aerr = add(desc.Digest)
		return aerr == nil
	})
	return n, errors.Join(err, aerr)
}

// forgetSize lets the next measure find out anew.
func (r *record) forgetSize() error {
	if r.isDead() {
		return nil
	}
	var c change
	put(&c, keySize, sizeUnknown)
	return r.meta.commit(c)
}

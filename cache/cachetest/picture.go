package cachetest

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/sys/mountinfo"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// ownPrefix is of keys that an implementation may have beside BuildKit's.
const ownPrefix = "lazykit."

// picture is all that the state directory holds, but files: records with their keys,
// index entries, leases, snapshots and blobs, a line each.
func (e *env) picture() string {
	var lines []string
	items, err := e.records.All()
	require.NoError(e.t, err)
	names := nameRecords(items)
	for _, si := range items {
		lines = append(lines, pictureOfRecord(si)...)
	}
	lines = append(lines, e.pictureOfBuckets()...)
	lines = append(lines, e.pictureOfLeases()...)
	lines = append(lines, e.pictureOfSnapshots()...)
	lines = append(lines, e.pictureOfBlobs()...)
	for i, l := range lines {
		lines[i] = names.Replace(l)
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// nameRecords names records in the order of their making, in place of their ids.
func nameRecords(items []*metadata.StorageItem) *strings.Replacer {
	var pairs []string
	for i, si := range byAge(items) {
		pairs = append(pairs, si.ID(), fmt.Sprintf("record%02d", i+1))
	}
	return strings.NewReplacer(pairs...)
}

// byAge sorts records, the oldest first.
func byAge(items []*metadata.StorageItem) []*metadata.StorageItem {
	return slices.SortedFunc(slices.Values(items), func(a, b *metadata.StorageItem) int {
		return cmp.Or(cmp.Compare(made(a), made(b)), cmp.Compare(a.ID(), b.ID()))
	})
}

func made(si *metadata.StorageItem) (ns int64) {
	if v := si.Get(keyCreatedAt); v != nil {
		_ = v.Unmarshal(&ns)
	}
	return ns
}

func pictureOfRecord(si *metadata.StorageItem) (lines []string) {
	for _, k := range si.Keys() {
		if strings.HasPrefix(k, ownPrefix) {
			continue
		}
		v := si.Get(k)
		text := string(v.Value)
		if k == keyCreatedAt || k == keyLastUsedAt {
			text = "(time)"
		}
		if v.Index != "" {
			text += " index " + v.Index
		}
		lines = append(lines, fmt.Sprintf("record %s %s = %s", si.ID(), k, text))
	}
	return lines
}

// pictureOfBuckets lists what the store keeps beside the records.
func (e *env) pictureOfBuckets() (lines []string) {
	err := e.records.DB().View(func(tx *bolt.Tx) error {
		if b := tx.Bucket([]byte("_index")); b != nil {
			if err := b.ForEach(func(k, _ []byte) error {
				lines = append(lines, "index "+string(k))
				return nil
			}); err != nil {
				return err
			}
		}
		b := tx.Bucket([]byte("_external"))
		if b == nil {
			return nil
		}
		return b.ForEach(func(id, _ []byte) error {
			return b.Bucket(id).ForEach(func(k, v []byte) error {
				lines = append(lines, fmt.Sprintf("external %s %s = %s", id, k, v))
				return nil
			})
		})
	})
	require.NoError(e.t, err)
	return lines
}

func (e *env) pictureOfLeases() (lines []string) {
	list, err := e.leases.List(e.ctx)
	require.NoError(e.t, err)
	for _, l := range list {
		lines = append(lines, fmt.Sprintf("lease %s %v", l.ID, slices.Sorted(maps.Keys(l.Labels))))
		resources, err := e.leases.ListResources(e.ctx, l)
		if err != nil {
			continue // it has just ended
		}
		for _, r := range resources {
			lines = append(lines, fmt.Sprintf("lease %s keeps %s %s", l.ID, r.Type, r.ID))
		}
	}
	return lines
}

func (e *env) pictureOfSnapshots() (lines []string) {
	err := e.snapshot.Walk(e.ctx, func(_ context.Context, i snapshots.Info) error {
		lines = append(lines, fmt.Sprintf("snapshot %s %s on %q", i.Name, i.Kind, i.Parent))
		return nil
	})
	require.NoError(e.t, err)
	return lines
}

func (e *env) pictureOfBlobs() (lines []string) {
	err := e.content.Walk(e.ctx, func(i content.Info) error {
		lines = append(lines, fmt.Sprintf("blob %s %d bytes", i.Digest, i.Size))
		for k, v := range i.Labels {
			lines = append(lines, fmt.Sprintf("blob %s %s = %s", i.Digest, k, v))
		}
		return nil
	})
	require.NoError(e.t, err)
	writes, err := e.content.ListStatuses(e.ctx)
	require.NoError(e.t, err)
	for _, w := range writes {
		lines = append(lines, "write "+w.Ref)
	}
	return lines
}

// finish ends a test: nothing is left when all is released and pruned.
func (e *env) finish() {
	e.t.Helper()
	e.faults.set(nil)
	e.releaseAll()
	if left := e.leftovers(); e.leaks {
		require.NotEmpty(e.t, left, "%s has no known bug here any more", e.impl.Name)
	} else {
		require.Empty(e.t, left, "what is left after all was released and pruned")
	}
}

// leftovers prunes all and says what is there still.
func (e *env) leftovers() (left string) {
	e.t.Helper()
	for range 5 {
		e.prune(all)
		e.settle()
		if left = e.picture(); left == "" {
			break
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(e.dir))
	require.NoError(e.t, err)
	for _, m := range mounts {
		left += "\nmount " + m.Mountpoint
	}
	for _, p := range e.mountPoints() {
		left += "\nmount point " + p
	}
	return left
}

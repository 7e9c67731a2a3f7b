package cachetest

import (
	"context"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	bkcache "github.com/moby/buildkit/cache"
)

// Implementation is a cache manager under test.
type Implementation struct {
	Name string
	// New opens a manager. It owns the metadata store of the options and closes it.
	New func(context.Context, bkcache.ManagerOpt) (bkcache.Manager, error)
	// Bugs are the faults that the implementation is known to have.
	Bugs []Bug
}

func (i Implementation) has(b Bug) bool { return slices.Contains(i.Bugs, b) }

// Bug is a fault of BuildKit's manager.
type Bug string

const (
	// LeaksParentOfNew: New keeps its ref of the parent when that can't be extracted.
	LeaksParentOfNew Bug = "New leaks the parent"
	// CountsPruneAsUse: pruning a record that was loaded from disk counts as a use of
	// its parent (moby/buildkit#5436).
	CountsPruneAsUse Bug = "pruning a child marks the parent used"
	// LosesUnsized: a prune swallows the error when a record can't be measured, and
	// removes it with a size of -1. (If the database fails instead, the record stays
	// dead in memory; no test can bring that about.)
	LosesUnsized Bug = "a prune removes what it can't measure"
	// PrunesOneTooMany: with enough free space the oldest record is removed all the same.
	PrunesOneTooMany Bug = "a prune for free space removes a record in any case"
	// LosesLazy: lazy records are removed at a start, since nobody has handlers then.
	LosesLazy Bug = "a restart loses lazy records"
	// CountsUsageAsUse: measuring an idle mutable record commits it, and counts.
	CountsUsageAsUse Bug = "disk usage counts as a use"
	// LeaksOnFaults: what fails half-way leaves refs, leases or snapshots.
	LeaksOnFaults Bug = "failed operations leak"
)

// Storage is a snapshotter to run on.
type Storage struct {
	// Name is what BuildKit calls the snapshotter; it decides by it.
	Name string
	// Open opens the snapshotter on a directory.
	Open func(ctx context.Context, root string) (snapshots.Snapshotter, error)
	// Overlay says that its mounts are overlays.
	Overlay bool
	// TOCs says that a layer's TOC digest is part of what it is shared by.
	TOCs bool
}

// test is one test of the suite.
type test struct {
	name string
	run  func(*env)
	only func(Storage) bool // nil: on every storage
}

func onOverlay(s Storage) bool { return s.Overlay }

// onPlain is for tests that take long and do not depend on the storage.
func onPlain(s Storage) bool  { return !s.Overlay && !s.TOCs }
func withTOCs(s Storage) bool { return s.TOCs }

// groups are all tests, by what they are about.
func groups() map[string][]test {
	return map[string][]test{
		"Lifecycle": lifecycleTests,
		"Metadata":  metadataTests,
		"ByBlob":    byBlobTests,
		"Legacy":    legacyTests,
		"TOC":       tocTests,
		"Extract":   extractTests,
		"Blobs":     blobTests,
		"Variants":  variantTests,
		"Merge":     mergeTests,
		"Diff":      diffTests,
		"Usage":     usageTests,
		"Prune":     pruneTests,
		"Mount":     mountTests,
		"Recovery":  recoveryTests,
		"Bugs":      bugTests,
		"Faults":    faultTests,
	}
}

// Run runs the suite on an implementation over a storage.
func Run(t *testing.T, impl Implementation, st Storage) {
	for name, tests := range groups() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, c := range tests {
				if c.only != nil && !c.only(st) {
					continue
				}
				t.Run(c.name, func(t *testing.T) {
					t.Parallel()
					e := newEnv(t, impl, st)
					c.run(e)
					e.finish()
				})
			}
		})
	}
}

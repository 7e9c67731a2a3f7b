package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/plugins/snapshots/overlay/overlayutils"
	fuseoverlayfs "github.com/containerd/fuse-overlayfs-snapshotter/v2"
	bolt "go.etcd.io/bbolt"
)

// Names of snapshotters. Overlay is named as containerd names its plugin.
const (
	Auto          = "auto"
	Stargz        = "stargz"
	Overlay       = "overlayfs"
	FUSEOverlay   = "fuse-overlayfs"
	Native        = "native"
	recordsBucket = "_main" // of BuildKit's cache/metadata
)

// Choice is a snapshotter and the reason why it was chosen.
type Choice struct {
	Name   string
	Reason string
	// NotLazy is the innermost reason why nothing is lazy, where only the machine keeps
	// it from that; nil otherwise.
	NotLazy error
}

// Choose says which snapshotter "auto" stands for on the daemon's root: the
// first of stargz, overlayfs, fuse-overlayfs and native that works there, except
// that a cache which overlayfs has filled is kept in use. A snapshotter has a
// directory of its own, so a change of mind would hide the user's cache and leave
// its disk space to nobody.
func Choose(root string) Choice {
	return choose(root, realProbes)
}

var realProbes = probes{
	overlay:     func(root string) error { return probing(root, overlayutils.Supported) },
	fuseOverlay: func(root string) error { return probing(root, fuseoverlayfs.Supported) },
	fuse:        func(root string) error { return probing(root, fuseWorks) },
}

// probes say, each by an error, why something does not work in a directory.
type probes struct {
	overlay, fuseOverlay, fuse func(dir string) error
}

func choose(root string, p probes) Choice {
	if err := p.overlay(root); err != nil {
		return withoutOverlay(root, p, err)
	}
	ours, err := hasRecords(root, Stargz)
	if err != nil {
		return Choice{Name: Stargz, Reason: fmt.Sprintf("%s has a cache (which can't be read: %v)", StateDir(root, Stargz), err)}
	}
	if !ours {
		theirs, err := hasRecords(root, Overlay)
		if err != nil {
			return Choice{Name: Overlay, Reason: fmt.Sprintf("%s has a cache (which can't be read: %v)", StateDir(root, Overlay), err)}
		}
		if theirs {
			return Choice{Name: Overlay, Reason: fmt.Sprintf("%s has a cache and %s has none; ask for stargz by name to start anew",
				StateDir(root, Overlay), StateDir(root, Stargz))}
		}
	}
	if err := p.fuse(root); err != nil {
		return withoutFUSE(err)
	}
	return Choice{Name: Stargz, Reason: "overlayfs and FUSE work"}
}

// Demand says which snapshotter stands in for stargz, which was asked for by name, on
// a machine where it does not work. Layers are pulled whole then.
func Demand(root string) Choice {
	return demand(root, realProbes)
}

func demand(root string, p probes) Choice {
	if err := p.overlay(root); err != nil {
		return withoutOverlay(root, p, err)
	}
	if err := p.fuse(root); err != nil {
		return withoutFUSE(err)
	}
	return Choice{Name: Stargz, Reason: "it was asked for"}
}

func withoutFUSE(err error) Choice {
	return Choice{Overlay, fmt.Sprintf("FUSE does not work, so nothing can be mounted lazily: %v", err),
		fmt.Errorf("FUSE does not work here: %v", err)}
}

func withoutOverlay(root string, p probes, err error) Choice {
	why := fmt.Errorf("overlayfs does not work here: %v", err)
	if err2 := p.fuseOverlay(root); err2 != nil {
		return Choice{Native, fmt.Sprintf("overlayfs does not work on %s (%v), nor does fuse-overlayfs (%v)", root, err, err2), why}
	}
	return Choice{FUSEOverlay, fmt.Sprintf("overlayfs does not work on %s: %v", root, err), why}
}

// StateDir is the directory under the daemon's root that belongs to the worker
// with this snapshotter.
func StateDir(root, snapshotter string) string {
	return filepath.Join(root, "runc-"+snapshotter)
}

// hasRecords says whether the cache manager has ever kept a record for the
// snapshotter. The database exists from the first start on, so its presence alone
// says nothing.
func hasRecords(root, snapshotter string) (bool, error) {
	file := filepath.Join(StateDir(root, snapshotter), metadataFile)
	if st, err := os.Stat(file); err != nil || st.Size() == 0 {
		if err == nil || errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return false, fmt.Errorf("open %s: %w", file, err)
	}
	defer db.Close()
	found := false
	err = db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket([]byte(recordsBucket)); b != nil {
			k, _ := b.Cursor().First()
			found = k != nil
		}
		return nil
	})
	return found, err
}

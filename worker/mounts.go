package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// sweepSteps removes what steps of an earlier process left: their mounts and their
// bundles.
func sweepSteps(dir string) error {
	if err := sweepMounts(dir); err != nil {
		return err
	}
	bundles := filepath.Join(dir, executorDir)
	entries, err := os.ReadDir(bundles)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list bundles of steps: %w", err)
	}
	for _, e := range entries {
		if !e.IsDir() && !strings.HasPrefix(e.Name(), "hosts.") {
			continue // resolv.conf, hosts: made once, for all steps
		}
		if err := os.RemoveAll(filepath.Join(bundles, e.Name())); err != nil {
			return fmt.Errorf("remove the bundle that a step left: %w", err)
		}
	}
	return nil
}

// sweepMounts detaches what steps left mounted under the worker's directory:
// their root file systems, when a daemon was killed or could not wait for them.
// Mounts elsewhere under dir are the administrator's, or have an owner who
// detaches them.
func sweepMounts(dir string) error {
	return detachBelow(filepath.Join(dir, executorDir))
}

// detachBelow detaches all mounts below a directory, which need not exist.
func detachBelow(dir string) error {
	dir, err := filepath.EvalSymlinks(dir) // the kernel lists real paths
	if err != nil {
		return nil
	}
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		return fmt.Errorf("list mounts under %s: %w", dir, err)
	}
	// The innermost first: a detached outer mount would hide them.
	slices.SortFunc(found, func(a, b *mountinfo.Info) int {
		return strings.Compare(b.Mountpoint, a.Mountpoint)
	})
	for _, m := range found {
		if m.Mountpoint == dir {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("detach %s: %w", m.Mountpoint, err)
		}
		bklog.L.Infof("detached %s, which an earlier process left mounted", m.Mountpoint)
	}
	return nil
}

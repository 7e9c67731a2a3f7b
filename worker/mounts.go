package worker

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// sweepMounts detaches what steps left mounted under the worker's directory:
// their root file systems, when a daemon was killed or could not wait for them.
// Mounts elsewhere under dir are the administrator's, or have an owner who
// detaches them.
func sweepMounts(dir string) error {
	bundles, err := filepath.EvalSymlinks(filepath.Join(dir, executorDir))
	if err != nil {
		return nil // no step has ever run
	}
	found, err := mountinfo.GetMounts(mountinfo.PrefixFilter(bundles))
	if err != nil {
		return fmt.Errorf("list mounts under %s: %w", bundles, err)
	}
	// The innermost first: a detached outer mount would hide them.
	slices.SortFunc(found, func(a, b *mountinfo.Info) int {
		return strings.Compare(b.Mountpoint, a.Mountpoint)
	})
	for _, m := range found {
		if m.Mountpoint == bundles {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("detach %s: %w", m.Mountpoint, err)
		}
		bklog.L.Infof("detached %s, which a step left mounted", m.Mountpoint)
	}
	return nil
}

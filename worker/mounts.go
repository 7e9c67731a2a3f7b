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
	if err := sweepLooks(dir, os.TempDir()); err != nil {
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

// isLook says whether a mount in the directory for temporary files is called as those of
// BuildKit and containerd through which the daemon itself looks at snapshots.
func isLook(name string) bool {
	return strings.HasPrefix(name, "buildkit-mount") || strings.HasPrefix(name, "containerd-mount")
}

// sweepLooks detaches overlays and bind mounts of the snapshots of the worker in dir
// through which an earlier process has looked, in tmp: they keep its FUSE mounts, and the
// space of what is removed, for ever.
func sweepLooks(dir, tmp string) error {
	tmp, found, err := mountsBelow(tmp)
	if err != nil {
		return err
	}
	isOf, err := mountsOf(dir)
	if err != nil {
		return err
	}
	for _, m := range found {
		if filepath.Dir(m.Mountpoint) != tmp || !isLook(filepath.Base(m.Mountpoint)) || !isOf(m) {
			continue
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("detach %s: %w", m.Mountpoint, err)
		}
		bklog.L.Infof("detached %s, through which an earlier process looked", m.Mountpoint)
		_ = os.Remove(m.Mountpoint) // empty, and of no harm
	}
	return nil
}

// mountsOf returns what tells the mounts of something that lies below dir, wherever they
// are: of overlays by their options, which are as they were given, and of bind mounts
// by the root that the kernel shows, which is a path in their file system, or by the
// file system, where that is a layer's, which is mounted below dir.
func mountsOf(dir string) (func(*mountinfo.Info) bool, error) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", dir, err)
	}
	under, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return nil, fmt.Errorf("mounts of %s: %w", dir, err)
	}
	at := &mountinfo.Info{}
	for _, m := range under { // one on another comes later
		if len(m.Mountpoint) >= len(at.Mountpoint) {
			at = m
		}
	}
	root := filepath.Join(at.Root, strings.TrimPrefix(real, at.Mountpoint))
	_, below, err := mountsBelow(real)
	if err != nil {
		return nil, err
	}
	layers := map[[2]int]bool{} // devices
	for _, m := range below {
		if isLayers(m.FSType) {
			layers[[2]int{m.Major, m.Minor}] = true
		}
	}
	return func(m *mountinfo.Info) bool {
		if m.FSType == "overlay" {
			return strings.Contains(m.VFSOptions, "="+dir+"/")
		}
		if layers[[2]int{m.Major, m.Minor}] {
			return true
		}
		return m.Major == at.Major && m.Minor == at.Minor && strings.HasPrefix(m.Root, root+"/")
	}, nil
}

// mountsBelow lists the mounts on a directory, which need not exist, and below it. The
// kernel lists real paths: real is the directory's.
func mountsBelow(dir string) (real string, found []*mountinfo.Info, err error) {
	real, err = filepath.EvalSymlinks(dir)
	if err != nil {
		return dir, nil, nil
	}
	found, err = mountinfo.GetMounts(mountinfo.PrefixFilter(real))
	if err != nil {
		return real, nil, fmt.Errorf("list mounts under %s: %w", real, err)
	}
	return real, found, nil
}

// EndConnections ends the FUSE connections whose mount points are below a state
// directory: whoever waits for an answer from one gets an error.
func EndConnections(root string) error {
	_, found, err := mountsBelow(root)
	if err != nil {
		return err
	}
	for _, m := range found {
		if !isFUSE(m.FSType) {
			continue
		}
		// Forced, it aborts before it looks whether the mount is busy.
		if err := unix.Unmount(m.Mountpoint, unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EBUSY {
			return fmt.Errorf("unmount %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

func isFUSE(fstype string) bool { return fstype == "fuse" || strings.HasPrefix(fstype, "fuse.") }

// isLayers says whether a file system is of a type that shows lazy layers.
func isLayers(fstype string) bool { return isFUSE(fstype) || fstype == "erofs" }

// detachBelow detaches all mounts below a directory, which need not exist.
func detachBelow(dir string) error {
	dir, found, err := mountsBelow(dir)
	if err != nil {
		return err
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

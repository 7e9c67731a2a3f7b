package worker

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fuseWorks says, by an error, why FUSE can't be mounted in dir. It opens the
// device and mounts it once, with nobody behind it: the kernel does not wait for
// the answer to its first message, so this costs two system calls.
func fuseWorks(dir string) (rerr error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { rerr = errors.Join(rerr, dev.Close()) }()
	probe, err := os.MkdirTemp(dir, ".fuse-probe-")
	if err != nil {
		return err
	}
	defer func() { rerr = errors.Join(rerr, os.Remove(probe)) }()
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,allow_other", dev.Fd())
	if err := unix.Mount("lazykit-probe", probe, "fuse.lazykit-probe", unix.MS_RDONLY|unix.MS_NODEV|unix.MS_NOSUID, data); err != nil {
		return fmt.Errorf("mount FUSE on %s: %w", probe, err)
	}
	// Detached, not unmounted: nobody answers, so nothing may be asked.
	if err := unix.Unmount(probe, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("unmount FUSE from %s: %w", probe, err)
	}
	return nil
}

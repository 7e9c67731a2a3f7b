package worker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// probeDir is where the daemon tries out what works on its root.
const probeDir = ".probe"

// probing makes a directory on root for f and removes it afterwards, with all that f
// leaves in it. What a process left there that was killed meanwhile goes first.
func probing(root string, f func(dir string) error) (rerr error) {
	dir := filepath.Join(root, probeDir)
	if err := clearProbes(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer func() { rerr = errors.Join(rerr, clearProbes(dir)) }()
	return f(dir)
}

func clearProbes(dir string) error {
	if err := detachBelow(dir); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// fuseWorks says, by an error, why FUSE can't be mounted in dir. It opens the
// device and mounts it once, with nobody behind it: the kernel does not wait for
// the answer to its first message, so this costs two system calls.
func fuseWorks(dir string) (rerr error) {
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { rerr = errors.Join(rerr, dev.Close()) }()
	probe, err := os.MkdirTemp(dir, "fuse-")
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

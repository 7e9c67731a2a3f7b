package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/hack/lab"
)

// diskSize is that of the file systems made for power cuts. The file is sparse.
const diskSize = 3 << 30

// disk is an ext4 file system in a file.
type disk struct {
	file, mount string
}

func newDisk(ctx context.Context, dir string) (*disk, error) {
	d := &disk{file: filepath.Join(dir, "disk"), mount: filepath.Join(dir, "mnt")}
	if err := errors.Join(os.WriteFile(d.file, nil, 0o600), os.Truncate(d.file, diskSize), os.Mkdir(d.mount, 0o755)); err != nil {
		return nil, err
	}
	if out, err := exec.CommandContext(ctx, "mkfs.ext4", "-q", "-E", "lazy_itable_init=1,lazy_journal_init=1", d.file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("mkfs.ext4: %w: %s", err, out)
	}
	return d, d.up()
}

// up mounts it. What has a copy of the mount, as a container that is just ending,
// keeps the file system alive that was shut down, and a mount would only be of that.
func (d *disk) up() error {
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		if out, err := exec.Command("mount", "-o", "loop", d.file, d.mount).CombinedOutput(); err != nil {
			return fmt.Errorf("mount: %w: %s", err, out)
		}
		probe := filepath.Join(d.mount, "probe")
		err := errors.Join(os.WriteFile(probe, nil, 0o600), os.Remove(probe))
		if err == nil {
			return nil
		}
		if err := errors.Join(err, d.down()); time.Now().After(deadline) {
			return fmt.Errorf("it stays shut down: %w", err)
		}
	}
}

// down unmounts it, which a container that is just ending may delay.
func (d *disk) down() error {
	var err error
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if err = unix.Unmount(d.mount, 0); err != unix.EBUSY {
			return err
		}
	}
	return fmt.Errorf("unmount %s: %w", d.mount, err)
}

func (d *disk) sync() error {
	f, err := os.Open(d.mount)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

const (
	ext4IOCShutdown = 0x8004587d // _IOR('X', 125, __u32)
	ext4NoLogFlush  = 2          // EXT4_GOING_FLAGS_NOLOGFLUSH: what is not in the journal yet is lost
)

// cut drops all that has not been written, and everything fails from now on.
func (d *disk) cut() {
	f, err := os.Open(d.mount)
	if err != nil {
		lab.Logf("cut the power: %v", err)
		return
	}
	defer f.Close()
	flags := uint32(ext4NoLogFlush)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), ext4IOCShutdown, uintptr(unsafe.Pointer(&flags))); errno != 0 {
		lab.Logf("cut the power: %v", errno)
	}
}

// again is the machine's start after the power cut: no mount is left, and the
// journal is replayed.
func (d *disk) again(root string) error {
	mounts, err := (&lab.Daemon{Root: root}).Mounts()
	if err != nil {
		return err
	}
	for _, m := range mounts {
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil && err != unix.EINVAL {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	if err := d.down(); err != nil {
		return err
	}
	return d.up()
}

func (d *disk) remove() error {
	if err := d.down(); err != nil && err != unix.EINVAL {
		return err
	}
	return nil
}

package fuse

import (
	"errors"
	"fmt"
	stdlog "log"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/containerd/log"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// fsName is the type that mount shows, behind "fuse.".
	fsName = "lazykit"

	// maxRead bounds one READ and with it the buffer that a blocked read holds. It
	// is the kernel's default read-ahead: larger READs come only where that is
	// raised, were not faster, and go-fuse's input buffers, which are as large,
	// would be made anew after each garbage collection.
	maxRead = 128 << 10

	// defaultMaxBackground is far above go-fuse's 12, which one dead registry
	// fills: readahead of every other layer would wait behind it.
	defaultMaxBackground = 1024
	largestMaxBackground = 1<<16 - 1 // 16 bits in the protocol
)

// mount makes the FUSE mount and starts to serve it.
func (m *mount) mount(opts Options) error {
	server, err := m.connect(opts)
	if err != nil {
		detach(m.path) // go-fuse leaves the mount behind when INIT fails
		return fmt.Errorf("mount %s: %w", m.path, err)
	}
	m.server = server
	go func() { // ends with the connection; unmount ends it
		defer close(m.served)
		server.Serve()
		if !m.closing.Load() {
			m.log.Error("mount was taken away: its layers can't be read any more")
		}
	}()
	if err := m.ready(); err != nil {
		m.unmount()
		<-m.served
		return fmt.Errorf("mount %s: %w", m.path, err)
	}
	return nil
}

// connect mounts, with a connection that no other process inherits.
//
// go-fuse opens the device without O_CLOEXEC. A child that has it, runc and with
// it every process of a step, would keep the connection alive after the daemon
// was killed: readers would wait for ever for an answer, unkillable, when they
// should get an error. So nothing is forked from the open until the flag is set.
func (m *mount) connect(opts Options) (*gofuse.Server, error) {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	server, err := gofuse.NewServer(m, m.path, m.mountOptions(opts))
	return server, errors.Join(err, closeOnExec("/dev/fuse"))
}

// closeOnExec keeps this process's descriptors of a file from its children.
func closeOnExec(file string) error {
	const own = "/proc/self/fd"
	fds, err := os.ReadDir(own)
	if err != nil {
		return fmt.Errorf("list open files: %w", err)
	}
	for _, e := range fds {
		// One that is closed meanwhile is nobody's to inherit.
		if target, err := os.Readlink(filepath.Join(own, e.Name())); err != nil || target != file {
			continue
		}
		if fd, err := strconv.Atoi(e.Name()); err == nil {
			syscall.CloseOnExec(fd)
		}
	}
	return nil
}

// ready waits for the first answer.
func (m *mount) ready() error {
	if err := m.server.WaitMount(); err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Stat(m.path, &st); err != nil {
		return fmt.Errorf("stat: %w", err)
	}
	m.device = unix.Minor(st.Dev)
	return nil
}

func (m *mount) mountOptions(opts Options) *gofuse.MountOptions {
	background := opts.MaxBackground
	if background <= 0 {
		background = defaultMaxBackground
	}
	return &gofuse.MountOptions{
		// Read-only spares a GETATTR after each read, since no atime moves.
		// Set-user-id bits and devices work as in any lower directory.
		DirectMountStrict: true,
		DirectMountFlags:  unix.MS_RDONLY,
		Options:           []string{"default_permissions"},
		AllowOther:        true,
		FsName:            fsName,
		Name:              fsName,
		MaxWrite:          maxRead,
		MaxReadAhead:      m.readAhead,
		MaxBackground:     min(background, largestMaxBackground),
		// Passthrough would put us one level up in the stack of file systems,
		// and a build could not mount an overlay on its own root any more.
		// File handles would be decoded by node ids that a restart gives to
		// other files.
		DisabledCapabilities: gofuse.CAP_PASSTHROUGH,
		ExtraCapabilities:    gofuse.CAP_NO_OPENDIR_SUPPORT | gofuse.CAP_NO_EXPORT_SUPPORT,
		EnableSymlinkCaching: true,
		EnableAcl:            !m.plain,
		DisableSplice:        true, // the bytes are in memory
		PanicHandler:         m.panicked,
		Debug:                opts.Debug,
		Logger:               stdlog.New(&goFuseLog{m.log, opts.Debug}, "", 0),
	}
}

// sweep detaches what an earlier process left at the mount point, and makes the
// mount point. The order matters: a dead FUSE mount answers ENOTCONN to stat and
// mkdir, but not to umount2.
func (m *mount) sweep() error {
	n, err := detach(m.path)
	if err != nil {
		return err
	}
	if n > 0 {
		m.log.Infof("detached %d mounts of an earlier process", n)
	}
	if err := os.MkdirAll(filepath.Dir(m.path), 0o700); err != nil {
		return fmt.Errorf("mount point: %w", err)
	}
	if err := os.Mkdir(m.path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("mount point: %w", err)
	}
	return nil
}

// detach takes all mounts away from path, also those that overlays or processes
// use, and returns how many there were.
func detach(path string) (int, error) {
	for n := 0; ; n++ {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return n, nil // not a mount point, or nothing at all
		default:
			return n, fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// unmount takes the mount away and aborts its connection: requests under way
// end, and m.served is closed when their handlers have returned.
//
// MNT_FORCE is FUSE's abort (fuse_umount_begin), which unlike the abort file of
// fusectl needs no second file system to be mounted. An overlay on top pins the
// superblock, so detaching alone would not end the connection.
func (m *mount) unmount() error {
	m.closing.Store(true)
	err := unix.Unmount(m.path, unix.MNT_DETACH|unix.MNT_FORCE|unix.UMOUNT_NOFOLLOW)
	if err == nil {
		return nil
	}
	// Somebody else has detached it: the connection is still there, as long as
	// something uses the mount.
	if !errors.Is(err, unix.EINVAL) {
		_, err = detach(m.path)
	} else {
		err = nil
	}
	select {
	case <-m.served: // and its number may be another connection's by now
		return err
	default:
	}
	if m.device != 0 {
		abort := filepath.Join("/sys/fs/fuse/connections", strconv.FormatUint(uint64(m.device), 10), "abort")
		if werr := os.WriteFile(abort, []byte("1"), 0); werr != nil && !errors.Is(werr, os.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("abort connection of %s: %w", m.path, werr))
		}
	}
	return err
}

// goFuseLog passes go-fuse's lines on: its complaints, and every message when
// debugging.
type goFuseLog struct {
	log   *log.Entry
	debug bool
}

func (l *goFuseLog) Write(line []byte) (int, error) {
	s := strings.TrimSuffix(string(line), "\n")
	if l.debug {
		l.log.Info(s)
	} else {
		l.log.Debug(s)
	}
	return len(line), nil
}

package fuse_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/fuse"
)

// child is a command that runs one of children.
func child(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "FUSE_TEST_CHILD="+name)
	return cmd
}

// mapFile maps all pages of a file, for as long as the process lives. The file is the
// first size bytes.
func mapFile(path string) (pages []byte, size int, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	size = int(st.Size())
	page := os.Getpagesize()
	pages, err = unix.Mmap(int(f.Fd()), 0, (size+page-1)/page*page, unix.PROT_READ, unix.MAP_SHARED)
	return pages, size, err
}

// readRandom reads n bytes of a file at off without the kernel's read-ahead.
func readRandom(path string, off int64, n int) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_RANDOM); err != nil {
		return err
	}
	_, err = f.ReadAt(make([]byte, n), off) // an error if there are less
	return err
}

// childMmap prints the digest of a file's mapping. args: path.
func childMmap(args []string) error {
	b, size, err := mapFile(args[0])
	if err != nil {
		return err
	}
	// Random access: single pages, read by read_folio rather than readahead.
	if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
		return err
	}
	_, err = fmt.Printf("%x", sha256.Sum256(b[:size]))
	return err
}

// childPage reads one page of a file, without read-ahead. args: path, offset.
func childPage(args []string) error {
	off, err := strconv.ParseInt(args[1], 10, 64)
	if err != nil {
		return err
	}
	return readRandom(args[0], off, os.Getpagesize())
}

// childTail maps a file, and fails when there is something behind its end in its last
// page. args: path.
func childTail(args []string) error {
	b, size, err := mapFile(args[0])
	if err != nil {
		return err
	}
	if tail := b[size:]; len(bytes.Trim(tail, "\x00")) > 0 {
		return fmt.Errorf("behind the end is %q", tail)
	}
	return nil
}

// childServe mounts a server at args[0], prints a line and waits to be killed.
func childServe(args []string) error {
	if _, err := fuse.NewServer(context.Background(), fuse.Options{Root: args[0]}); err != nil {
		return err
	}
	fmt.Println("mounted")
	select {}
}

// childStorm reads files (in three ways) with all threads under a rain of
// signals, and fails when any call does. args: directory, number of files.
func childStorm(args []string) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1, unix.SIGWINCH)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		for ctx.Err() == nil {
			tids, _ := filepath.Glob("/proc/self/task/*")
			for _, tid := range tids {
				if n, err := strconv.Atoi(filepath.Base(tid)); err == nil {
					unix.Tgkill(os.Getpid(), n, unix.SIGUSR1)
					unix.Tgkill(os.Getpid(), n, unix.SIGURG)
				}
			}
			time.Sleep(time.Millisecond)
		}
	}()
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	errs := make(chan error, 3*n)
	var wg sync.WaitGroup
	for i := range n {
		path := filepath.Join(args[0], "f"+strconv.Itoa(i))
		for _, read := range []func(string) error{readDirect, readMapped, readBuffered} {
			wg.Go(func() {
				runtime.LockOSThread()
				if err := read(path); err != nil {
					errs <- fmt.Errorf("%s: %w", path, err)
				}
			})
		}
	}
	wg.Wait()
	close(errs)
	return <-errs
}

func readBuffered(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY, 0) // not os.File, which hides EINTR
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 4096))
	return err
}

func readDirect(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Read(fd, make([]byte, 4096))
	return err
}

// readMapped faults a page in; an error there is SIGBUS.
func readMapped(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	defer unix.Munmap(b)
	if err := unix.Madvise(b, unix.MADV_RANDOM); err != nil {
		return err
	}
	if b[0] != 0 {
		return fmt.Errorf("first byte is %d", b[0])
	}
	return nil
}

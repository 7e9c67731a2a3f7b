package lab

import (
	"archive/tar"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stamp changes whenever a file or its inode is written.
type stamp struct {
	ino   uint64
	mode  uint32
	size  int64
	ctime syscall.Timespec
}

// stampTree records the state of every entry below dir, by path relative to it.
func stampTree(dir string) (map[string]stamp, error) {
	stamps := map[string]stamp{}
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil || rel == "." {
			return err
		}
		var st syscall.Stat_t
		if err := syscall.Lstat(p, &st); err != nil {
			return &fs.PathError{Op: "lstat", Path: p, Err: err}
		}
		stamps[rel] = stamp{ino: st.Ino, mode: st.Mode, size: st.Size, ctime: st.Ctim}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("record the tree %s: %w", dir, err)
	}
	return stamps, nil
}

// writeTree writes the tree at dir to w as a layer's tar, and of it only what
// changed since before was recorded: changed and new entries with their parent
// directories, and whiteouts for what is gone. A nil before means everything.
// Entries are sorted, and times are whole seconds no later than epoch. It
// returns the number of entries.
func writeTree(w io.Writer, dir string, before map[string]stamp) (int, error) {
	now, err := stampTree(dir)
	if err != nil {
		return 0, err
	}
	names, whiteouts := changes(before, now)
	tw := tar.NewWriter(w)
	links := map[uint64]string{}
	for _, name := range names {
		if whiteouts[name] {
			hdr := &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(name), ".wh."+path.Base(name)), ModTime: time.Unix(epoch, 0)}
			if err := tw.WriteHeader(hdr); err != nil {
				return 0, fmt.Errorf("write whiteout of %s: %w", name, err)
			}
			continue
		}
		if err := writeEntry(tw, dir, name, links); err != nil {
			return 0, fmt.Errorf("write entry %s: %w", name, err)
		}
	}
	if err := tw.Close(); err != nil {
		return 0, fmt.Errorf("end the tar: %w", err)
	}
	return len(names), nil
}

// changes lists in order the names that a layer over before needs to become
// now, and which of them are deletions.
func changes(before, now map[string]stamp) (names []string, whiteouts map[string]bool) {
	want, whiteouts := map[string]bool{}, map[string]bool{}
	add := func(name string) {
		for ; name != "." && !want[name]; name = path.Dir(name) {
			want[name] = true
		}
	}
	for name, st := range now {
		if old, ok := before[name]; !ok || old != st {
			add(name)
		}
	}
	for name := range before {
		if _, ok := now[name]; ok {
			continue
		}
		// Only the topmost of what is gone, and only where its directory stayed one.
		parent, ok := now[path.Dir(name)]
		if path.Dir(name) == "." || ok && parent.mode&syscall.S_IFMT == syscall.S_IFDIR {
			add(path.Dir(name))
			want[name], whiteouts[name] = true, true
		}
	}
	for name := range want {
		names = append(names, name)
	}
	sort.Strings(names)
	return names, whiteouts
}

func writeEntry(tw *tar.Writer, dir, name string, links map[uint64]string) error {
	full := filepath.Join(dir, name)
	info, err := os.Lstat(full)
	if err != nil {
		return err
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = os.Readlink(full); err != nil {
			return err
		}
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // tar has none
	}
	hdr, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	hdr.Name = name
	if info.IsDir() {
		hdr.Name += "/"
	}
	hdr.Uname, hdr.Gname = "", ""
	hdr.AccessTime, hdr.ChangeTime = time.Time{}, time.Time{}
	hdr.ModTime = time.Unix(min(info.ModTime().Unix(), epoch), 0)
	st := info.Sys().(*syscall.Stat_t)
	if st.Nlink > 1 && !info.IsDir() {
		if first, ok := links[st.Ino]; ok {
			hdr.Typeflag, hdr.Linkname, hdr.Size = tar.TypeLink, first, 0
			return tw.WriteHeader(hdr)
		}
		links[st.Ino] = name
	}
	if hdr.PAXRecords, err = xattrRecords(full); err != nil {
		return err
	}
	if err := tw.WriteHeader(hdr); err != nil || hdr.Typeflag != tar.TypeReg {
		return err
	}
	file, err := os.Open(full)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(tw, file)
	return err
}

// xattrRecords reads the extended attributes of the entry at p (never through a
// symlink) as PAX records; nil without any.
func xattrRecords(p string) (map[string]string, error) {
	size, err := unix.Llistxattr(p, nil)
	if err != nil || size == 0 {
		if err == unix.ENOTSUP || err == unix.EPERM {
			err = nil
		}
		return nil, err
	}
	names := make([]byte, size)
	if size, err = unix.Llistxattr(p, names); err != nil {
		return nil, err
	}
	records := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(names[:size]), "\x00"), "\x00") {
		value := make([]byte, 64<<10) // the kernel's limit
		n, err := unix.Lgetxattr(p, name, value)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		records["SCHILY.xattr."+name] = string(value[:n])
	}
	return records, nil
}

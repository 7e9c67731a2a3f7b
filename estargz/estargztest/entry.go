package estargztest

import (
	"archive/tar"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

// Entry is one entry of a layer's tar.
type Entry struct {
	tar.Header
	Data []byte // of a regular file
}

// Option changes an entry.
type Option func(*Entry)

// Epoch is the modification time of entries that do not say.
var Epoch = time.Date(2024, 5, 6, 7, 8, 9, 0, time.UTC)

const paxXattr = "SCHILY.xattr."

func newEntry(typ byte, name string, mode int64, opts []Option) Entry {
	e := Entry{Header: tar.Header{Typeflag: typ, Name: name, Mode: mode, ModTime: Epoch, Format: tar.FormatPAX}}
	for _, o := range opts {
		o(&e)
	}
	return e
}

// Dir is a directory, 0755.
func Dir(name string, opts ...Option) Entry { return newEntry(tar.TypeDir, name, 0o755, opts) }

// File is a regular file, 0644.
func File(name string, data []byte, opts ...Option) Entry {
	e := newEntry(tar.TypeReg, name, 0o644, opts)
	e.Data = data
	return e
}

// Symlink is a symbolic link to target.
func Symlink(name, target string, opts ...Option) Entry {
	e := newEntry(tar.TypeSymlink, name, 0o777, opts)
	e.Linkname = target
	return e
}

// Hardlink is another name of the entry called target.
func Hardlink(name, target string, opts ...Option) Entry {
	e := newEntry(tar.TypeLink, name, 0o644, opts)
	e.Linkname = target
	return e
}

// Char is a character device.
func Char(name string, major, minor int64, opts ...Option) Entry {
	e := newEntry(tar.TypeChar, name, 0o600, opts)
	e.Devmajor, e.Devminor = major, minor
	return e
}

// Block is a block device.
func Block(name string, major, minor int64, opts ...Option) Entry {
	e := newEntry(tar.TypeBlock, name, 0o660, opts)
	e.Devmajor, e.Devminor = major, minor
	return e
}

// Fifo is a named pipe.
func Fifo(name string, opts ...Option) Entry { return newEntry(tar.TypeFifo, name, 0o640, opts) }

// Whiteout hides name of the layers below.
func Whiteout(name string, opts ...Option) Entry {
	dir, base := path.Split(name)
	return newEntry(tar.TypeReg, dir+".wh."+base, 0, opts)
}

// Opaque hides everything of the layers below in dir.
func Opaque(dir string, opts ...Option) Entry {
	return newEntry(tar.TypeReg, strings.TrimPrefix(path.Join(dir, ".wh..wh..opq"), "/"), 0, opts)
}

// Mode sets permissions with suid, sgid and sticky bits, as in a tar header.
func Mode(mode int64) Option { return func(e *Entry) { e.Header.Mode = mode } }

// Owner sets user and group.
func Owner(uid, gid int) Option { return func(e *Entry) { e.Uid, e.Gid = uid, gid } }

// Mtime sets the modification time.
func Mtime(t time.Time) Option { return func(e *Entry) { e.ModTime = t } }

// Xattr adds an extended attribute.
func Xattr(name, value string) Option {
	return func(e *Entry) {
		if e.PAXRecords == nil {
			e.PAXRecords = map[string]string{}
		}
		e.PAXRecords[paxXattr+name] = value
	}
}

// WriteTar writes entries as a tar.
func WriteTar(w io.Writer, entries ...Entry) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		hdr := e.Header
		if hdr.Typeflag == tar.TypeReg {
			hdr.Size = int64(len(e.Data))
		}
		if err := tw.WriteHeader(&hdr); err != nil {
			return fmt.Errorf("tar: %q: %w", hdr.Name, err)
		}
		if _, err := tw.Write(e.Data); err != nil {
			return fmt.Errorf("tar: %q: %w", hdr.Name, err)
		}
	}
	return tw.Close()
}

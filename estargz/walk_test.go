package estargz

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// compileDoc compiles a TOC document of a blob of 1 MiB and returns the compact
// file's bytes.
func compileDoc(dir string, doc io.Reader, format Format, byBlob bool, lim Limits) ([]byte, error) {
	src := &source{
		loc:      Location{Format: format, Offset: 1 << 20, Size: 100},
		blobSize: 1<<20 + 151,
		lim:      lim.withDefaults(),
	}
	b, err := buildFrom(context.Background(), doc, src, byBlob)
	if err != nil {
		return nil, err
	}
	t, err := b.number()
	if err != nil {
		return nil, src.readError(context.Background(), err)
	}
	path := filepath.Join(dir, "toc")
	if err := t.writeFile(path); err != nil {
		return nil, err
	}
	return os.ReadFile(path)
}

// checkAll calls every method with every index, checks that what they say fits
// together, and returns the first thing that does not.
func checkAll(t *TOC) error {
	names := make([]uint32, t.Len()) // how often each inode is named
	var files uint32
	var fileBytes int64
	for i := range t.Len() {
		var in Inode
		if err := t.Inode(i, &in); err != nil {
			return err
		}
		if err := t.Xattrs(i, func(name, value []byte) bool { return true }); err != nil {
			return err
		}
		if _, err := t.Symlink(i); (err == nil) != (in.Mode&unix.S_IFMT == unix.S_IFLNK) {
			return fmt.Errorf("inode %d of mode %o: Symlink says %w", i, in.Mode, err)
		}
		switch in.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			files++
			fileBytes += in.Size
			if err := checkFile(t, i, in); err != nil {
				return err
			}
		case unix.S_IFDIR:
			if err := checkDir(t, i, in, names); err != nil {
				return err
			}
		}
	}
	for i := uint32(1); i < t.Len(); i++ {
		var in Inode
		t.Inode(i, &in)
		if in.Mode&unix.S_IFMT == unix.S_IFDIR {
			if names[i] != 1 {
				return fmt.Errorf("directory %d has %d names", i, names[i])
			}
		} else if names[i] == 0 || names[i] != in.Nlink {
			return fmt.Errorf("inode %d has %d names, nlink %d", i, names[i], in.Nlink)
		}
	}
	if files != t.Files() || fileBytes != t.FileBytes() {
		return fmt.Errorf("%d files of %d bytes, header says %d of %d", files, fileBytes, t.Files(), t.FileBytes())
	}
	return checkMembers(t)
}

func checkDir(t *TOC, i uint32, in Inode, names []uint32) error {
	var last []byte
	subdirs := uint32(0)
	for n := range in.Entries {
		name, child, err := t.Entry(i, n)
		if err != nil {
			return err
		}
		if n > 0 && bytes.Compare(last, name) >= 0 {
			return fmt.Errorf("directory %d: %q before %q", i, last, name)
		}
		if s := string(name); s == "." || s == ".." || bytes.ContainsAny(name, "/\x00") {
			return fmt.Errorf("directory %d has %q", i, name)
		}
		last = name
		if got, err := t.Lookup(i, name); err != nil || got != child {
			return fmt.Errorf("lookup of %q: %d, %w; want %d", name, got, err, child)
		}
		names[child]++
		var c Inode
		if err := t.Inode(child, &c); err != nil {
			return err
		}
		isDir := c.Mode&unix.S_IFMT == unix.S_IFDIR
		if isDir {
			subdirs++
		}
		// A file of several names is in the directory of one of them.
		if p, err := t.Parent(child); err != nil || p != i && (isDir || c.Nlink == 1) {
			return fmt.Errorf("parent of %d: %d, %w; want %d", child, p, err, i)
		}
	}
	if in.Nlink != 2+subdirs {
		return fmt.Errorf("directory %d has nlink %d, %d subdirectories", i, in.Nlink, subdirs)
	}
	if _, _, err := t.Entry(i, in.Entries); !errors.Is(err, ErrNotExist) {
		return fmt.Errorf("entry behind the last: %w", err)
	}
	if _, err := t.Lookup(i, append(last, 0xff)); !errors.Is(err, ErrNotExist) {
		return fmt.Errorf("lookup of no name: %w", err)
	}
	_, err := t.Path(i)
	return err
}

func checkFile(t *TOC, i uint32, in Inode) error {
	first, n, err := t.FileChunks(i)
	if err != nil {
		return err
	}
	pos := int64(0)
	for c := first; c < first+n; c++ {
		var ch Chunk
		if err := t.Chunk(c, &ch); err != nil {
			return err
		}
		if ch.FileOffset != pos || ch.Size <= 0 {
			return fmt.Errorf("file %d: chunk at %d of %d bytes, expected at %d", i, ch.FileOffset, ch.Size, pos)
		}
		for _, off := range []int64{pos, pos + ch.Size/2, pos + ch.Size - 1} {
			if got, err := t.FindChunk(i, off); err != nil || got != c {
				return fmt.Errorf("file %d: chunk of byte %d: %d, %w; want %d", i, off, got, err, c)
			}
		}
		if !ch.Zeros {
			mFirst, mLast, err := t.MemberChunks(ch.Member)
			if err != nil || c < mFirst || c > mLast {
				return fmt.Errorf("chunk %d is in member %d, which has %d to %d: %w", c, ch.Member, mFirst, mLast, err)
			}
		}
		pos += ch.Size
	}
	if pos != in.Size {
		return fmt.Errorf("file %d: chunks end at %d of %d", i, pos, in.Size)
	}
	if _, err := t.FindChunk(i, in.Size); !errors.Is(err, ErrNotExist) {
		return fmt.Errorf("chunk behind the end: %w", err)
	}
	return nil
}

func checkMembers(t *TOC) error {
	end := int64(0)
	for m := range t.Members() {
		at, err := t.Member(m)
		if err != nil {
			return err
		}
		if at.Offset < end || at.Size <= 0 || at.Offset+at.Size > t.BlobSize() {
			return fmt.Errorf("member %d is [%d, +%d), the one before ends at %d", m, at.Offset, at.Size, end)
		}
		end = at.Offset + at.Size
		if got, err := t.FindMember(at.Offset + at.Size/2); err != nil || got != m {
			return fmt.Errorf("FindMember in member %d: %d, %w", m, got, err)
		}
		chunk, _, err := t.MemberChunks(m)
		if err != nil {
			return err
		}
		file, err := t.MemberFile(m)
		if err != nil {
			return err
		}
		if first, n, err := t.FileChunks(file); err != nil || chunk < first || chunk >= first+n {
			return fmt.Errorf("member %d begins with chunk %d of file %d, which has [%d, +%d): %w", m, chunk, file, first, n, err)
		}
	}
	return nil
}

// touchAll calls every method with every index, up to a bound, and wants nothing
// but that they return.
func touchAll(t *TOC) {
	const bound = 2000
	var in Inode
	var ch Chunk
	for i := range min(t.Len(), bound) + 1 {
		t.Inode(i, &in)
		t.Xattrs(i, func(_, _ []byte) bool { return true })
		t.Xattr(i, []byte("user.x"))
		t.Symlink(i)
		t.FileChunks(i)
		t.Lookup(i, []byte("name"))
		t.Path(i)
		t.Parent(i)
		for n := range min(in.Entries, bound) + 1 {
			name, _, _ := t.Entry(i, n)
			t.Lookup(i, name)
		}
		for _, off := range []int64{-1, 0, 1, in.Size / 2, in.Size - 1, in.Size} {
			t.FindChunk(i, off)
		}
	}
	for c := range min(t.Chunks(), bound) + 1 {
		t.Chunk(c, &ch)
	}
	for m := range min(t.Members(), bound) + 1 {
		at, err := t.Member(m)
		t.MemberChunks(m)
		t.MemberFile(m)
		t.FindMember(at.Offset)
		if err == nil && at.Size < 1<<20 {
			t.Decode(m, make([]byte, at.Size), 0, ^uint32(0), nil, func(uint32, []byte) bool { return true })
		}
	}
}

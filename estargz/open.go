package estargz

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Root is the inode index of a layer's root directory.
const Root uint32 = 0

// TOC is the compact form of one layer's table of contents, memory-mapped. It
// is safe for concurrent use; its indices are checked at use, so a damaged file
// gives errors that wrap ErrCorrupt. The mapping ends with Close, which must not
// run while another method does: owners count their readers.
//
// What is mapped is a copy without a name, where the file system has such files and
// room for it: whoever cuts or overwrites the file that Open was given changes
// nothing. Without it reads of a file that was cut are SIGBUS, and its bytes are
// trusted as they were when it was opened.
type TOC struct {
	header
	data   []byte // the mapping; nil for a TOC of plain bytes
	closed atomic.Bool

	inodeTable, chunkTable, memberTable, direntTable, xattrTable, stringTable []byte
}

// Open maps a file that Compile wrote and checks its size and checksum (reading
// it once, and copying it: some milliseconds for a layer of 35,000 entries). Errors
// wrap ErrCorrupt where the file's bytes are at fault, which is to be rebuilt then.
func Open(path string) (*TOC, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open TOC: %w", err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open TOC: %w", err)
	}
	if size := fi.Size(); size < headerSize || size != int64(int(size)) {
		return nil, corruptf("open TOC %s: file of %d bytes", path, size)
	}
	head := make([]byte, headerSize)
	if _, err := io.ReadFull(f, head); err != nil {
		return nil, fmt.Errorf("open TOC %s: %w", path, err)
	}
	if _, err := decodeHeader(head, uint64(fi.Size())); err != nil {
		return nil, fmt.Errorf("open TOC %s: %w", path, err)
	}
	mapped := f
	if own, err := nameless(f, fi.Size()); err == nil {
		defer own.Close()
		mapped = own
	}
	data, err := unix.Mmap(int(mapped.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("open TOC %s: mmap: %w", path, err)
	}
	t, err := openBytes(data)
	if err != nil {
		unix.Munmap(data)
		return nil, fmt.Errorf("open TOC %s: %w", path, err)
	}
	t.data = data
	return t, nil
}

// nameless returns a copy of f's size bytes in a file beside it that has no name.
// File systems that can share blocks do so.
func nameless(f *os.File, size int64) (*os.File, error) {
	fd, err := unix.Open(filepath.Dir(f.Name()), unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	own := os.NewFile(uintptr(fd), f.Name())
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		own.Close()
		return nil, err
	}
	n, err := io.Copy(own, io.LimitReader(f, size)) // by copy_file_range
	if err == nil && n != size {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		own.Close()
		return nil, err
	}
	return own, nil
}

// openBytes checks a file's bytes, which must not change as long as the TOC is
// used.
func openBytes(data []byte) (*TOC, error) {
	h, err := decodeHeader(data, uint64(len(data)))
	if err != nil {
		return nil, err
	}
	sum := crc32.Checksum(data[headerSize:], castagnoli)
	if sum = crc32.Update(sum, castagnoli, data[:headerSums]); sum != h.checksum {
		return nil, corruptf("checksum is %08x, header says %08x", sum, h.checksum)
	}
	t := &TOC{header: h}
	rest := data[headerSize:]
	for _, table := range []struct {
		to   *[]byte
		size uint64
	}{
		{&t.inodeTable, uint64(h.inodes) * inodeSize},
		{&t.chunkTable, uint64(h.chunks) * chunkSize},
		{&t.memberTable, uint64(h.members) * memberSize},
		{&t.direntTable, uint64(h.dirents) * direntSize},
		{&t.xattrTable, uint64(h.xattrs) * xattrSize},
		{&t.stringTable, h.strings},
	} {
		*table.to, rest = rest[:table.size:table.size], rest[table.size:]
	}
	return t, nil
}

// decodeHeader reads the header of a file of size bytes; a file it accepts is as
// long as its tables need.
func decodeHeader(b []byte, size uint64) (header, error) {
	if len(b) < headerSize || string(b[:8]) != fileMagic {
		return header{}, corruptf("not a compact TOC")
	}
	le := binary.LittleEndian
	if v := le.Uint32(b[8:]); v != fileVersion {
		return header{}, corruptf("compact TOC of version %d", v)
	}
	h := header{
		format: Format(b[12]), flags: b[13],
		blobSize: int64(le.Uint64(b[16:])), prefetch: int64(le.Uint64(b[24:])), fileBytes: int64(le.Uint64(b[32:])),
		files: le.Uint32(b[40:]), inodes: le.Uint32(b[44:]), chunks: le.Uint32(b[48:]),
		members: le.Uint32(b[52:]), dirents: le.Uint32(b[56:]), xattrs: le.Uint32(b[60:]),
		strings: le.Uint64(b[64:]), fileSize: le.Uint64(b[72:]), checksum: le.Uint32(b[80:]),
	}
	switch {
	case h.fileSize != size || h.strings > size || h.size() != size:
		return header{}, corruptf("file of %d bytes, header says %d", size, h.fileSize)
	case !h.format.known() || h.inodes == 0 || h.blobSize < 0 || h.prefetch < 0 || h.prefetch > h.blobSize:
		return header{}, corruptf("header of a compact TOC")
	}
	return h, nil
}

// Close ends the mapping. Nothing that a method returned may be used afterwards.
// A second Close does nothing.
func (t *TOC) Close() error {
	if t.closed.Swap(true) || t.data == nil {
		return nil
	}
	data := t.data
	// What comes too late finds empty tables, not a mapping that is gone.
	t.header.inodes, t.header.chunks, t.header.members = 0, 0, 0
	t.data, t.inodeTable, t.chunkTable, t.memberTable = nil, nil, nil, nil
	t.direntTable, t.xattrTable, t.stringTable = nil, nil, nil
	if err := unix.Munmap(data); err != nil {
		return fmt.Errorf("close TOC: munmap: %w", err)
	}
	return nil
}

// Format of the blob that the TOC describes.
func (t *TOC) Format() Format { return t.header.format }

// BlobSize of the blob that the TOC describes, in bytes.
func (t *TOC) BlobSize() int64 { return t.header.blobSize }

// Len is the number of inodes: valid indices are below it.
func (t *TOC) Len() uint32 { return t.header.inodes }

// Chunks is the number of chunks: valid chunk indices are below it.
func (t *TOC) Chunks() uint32 { return t.header.chunks }

// Members is the number of members: valid member indices are below it. They are
// in the order of the blob.
func (t *TOC) Members() uint32 { return t.header.members }

// HasXattrs says whether any inode has an extended attribute or any directory
// is opaque, so that the layer has to be served with xattr calls.
func (t *TOC) HasXattrs() bool { return t.header.flags&headerXattrs != 0 }

// HasChunkDigests says whether every chunk can be verified alone. It is false
// for legacy stargz, but where no file has more than one chunk (those have the
// digests of their files).
func (t *TOC) HasChunkDigests() bool { return t.header.flags&headerDigests != 0 }

// PrefetchEnd is the blob offset up to which the landmark asks to prefetch; 0
// when the layer has no prefetch landmark (or has the no-prefetch one).
func (t *TOC) PrefetchEnd() int64 { return t.header.prefetch }

// FileBytes is the size of all regular files together, hard links counted once.
func (t *TOC) FileBytes() int64 { return t.header.fileBytes }

// Files is the number of regular files, hard links counted once.
func (t *TOC) Files() uint32 { return t.header.files }

// FileSize is the size of the compact file, in bytes.
func (t *TOC) FileSize() int64 { return int64(t.header.fileSize) }

// records returns n records of size bytes from the first on, checked.
func records(table []byte, size, first, n uint32) ([]byte, bool) {
	from, to := uint64(first)*uint64(size), (uint64(first)+uint64(n))*uint64(size)
	if to > uint64(len(table)) {
		return nil, false
	}
	return table[from:to:to], true
}

// str returns a string of the string table.
func (t *TOC) str(off, n uint32) ([]byte, bool) { return records(t.stringTable, 1, off, n) }

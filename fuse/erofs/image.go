package erofs

import (
	"encoding/binary"
	"fmt"
	"os"
	"sort"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Image is the metadata of a layer as EROFS wants them, and where the bytes of its
// files lie on the data device. Counted: who made it has one hold, and methods are called
// by holders only. They are safe for concurrent use.
type Image struct {
	holds atomic.Int64
	file  *os.File
	data  []byte // the mapping of the tables

	byBlock []byte // block and inode, by block
	byInode []byte // block, by inode
	blocks  uint32
	size    int64
}

func open(f *os.File, b *build) (*Image, error) {
	m := &Image{file: f, blocks: b.dataBlock, size: b.end}
	pairs := int64(len(b.order)) * pairLen
	size := pairs + int64(len(b.starts))*4
	// The tables begin at a block, and so, where pages are no larger, at a page.
	page := int64(unix.Getpagesize())
	from := b.end / page * page
	data, err := unix.Mmap(int(f.Fd()), from, int(b.end-from+size), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mmap: %w", err)
	}
	m.data = data
	tables := data[b.end-from:]
	m.byBlock, m.byInode = tables[:pairs:pairs], tables[pairs:]
	m.holds.Store(1)
	return m, nil
}

// Path names the metadata to mount(2), in this process.
func (m *Image) Path() string { return fmt.Sprintf("/proc/self/fd/%d", m.file.Fd()) }

// MetadataSize is the number of bytes that the kernel can see of the metadata.
func (m *Image) MetadataSize() int64 { return m.size }

// DataSize is the size of the data device, in bytes. 0: there is none to be mounted.
func (m *Image) DataSize() int64 { return int64(m.blocks) * BlockSize }

// Start returns where on the data device a regular file begins; false for inodes
// without bytes.
func (m *Image) Start(inode uint32) (off int64, ok bool) {
	if uint64(inode)*4+4 > uint64(len(m.byInode)) {
		return 0, false
	}
	b := binary.LittleEndian.Uint32(m.byInode[inode*4:])
	return int64(b) * BlockSize, b != noStart
}

// File returns the file that lies at offset off of the data device, or that off is
// behind the end of, where it begins and where the next one does.
func (m *Image) File(off int64) (inode uint32, start, next int64, ok bool) {
	if off < 0 || off >= m.DataSize() {
		return 0, 0, 0, false
	}
	n := len(m.byBlock) / pairLen
	at := sort.Search(n, func(i int) bool { return m.block(i) > off }) - 1
	if at < 0 {
		return 0, 0, 0, false
	}
	next = m.DataSize()
	if at+1 < n {
		next = m.block(at + 1)
	}
	return binary.LittleEndian.Uint32(m.byBlock[at*pairLen+4:]), m.block(at), next, true
}

func (m *Image) block(i int) int64 {
	return int64(binary.LittleEndian.Uint32(m.byBlock[i*pairLen:])) * BlockSize
}

// Hold takes one more hold; false when the last one has ended.
func (m *Image) Hold() bool {
	for {
		n := m.holds.Load()
		if n == 0 {
			return false
		}
		if m.holds.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// Release ends a hold. With the last one the file and the mapping are given back; what
// is mounted stays so.
func (m *Image) Release() {
	if m.holds.Add(-1) > 0 {
		return
	}
	m.byBlock, m.byInode = nil, nil
	// Neither can fail in a way that matters to anybody: nothing was left to be written.
	_ = unix.Munmap(m.data)
	_ = m.file.Close()
}

package fuse

import (
	"fmt"
	"math"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// Read answers READ into go-fuse's buffer, which is of the size asked for.
func (m *mount) Read(cancel <-chan struct{}, in *gofuse.ReadIn, buf []byte) (gofuse.ReadResult, gofuse.Status) {
	m.begin(opRead)
	d, index := m.node(in.NodeId)
	if d == nil {
		return nil, errno(errNoNode)
	}
	r := newRequest(d, cancel, in.Pid)
	defer r.done()
	read := d.read
	if d.image != nil {
		read = d.readData
	}
	n, err := read(r, index, buf, in.Offset)
	if err != nil {
		return nil, d.fail("read", index, fmt.Errorf("%d bytes at %d: %w", len(buf), in.Offset, err))
	}
	return newReadResult(buf[:n]), gofuse.OK
}

func (d *Dir) read(r *request, index uint32, buf []byte, off uint64) (int, error) {
	if off > math.MaxInt64 {
		return 0, errNotFile
	}
	switch index {
	case stateDirIndex:
		return 0, errIsDir
	case stateFileIndex:
		c := d.content.Load()
		if c == nil {
			return 0, errRemoved
		}
		body := d.state.read(c.Status)
		return copy(buf, body[min(off, uint64(len(body))):]), nil
	}
	h, err := d.acquire(r)
	if err != nil {
		return 0, err
	}
	defer h.content.Release()
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return 0, err
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFDIR:
		return 0, errIsDir
	default:
		return 0, errNotFile
	}
	if off >= uint64(in.Size) {
		return 0, nil
	}
	want := int(min(uint64(len(buf)), uint64(in.Size)-off))
	if err := d.fill(r, h, index, buf[:want], int64(off)); err != nil {
		return 0, err
	}
	d.storeRest(h.content, index, int64(off)+int64(want)-1, in.Size)
	return want, nil
}

// fill reads all of buf from a regular file. The kernel zeroes what a read leaves of a
// page: a short answer inside the file would turn into wrong bytes, so it is an error.
func (d *Dir) fill(r *request, h hold, index uint32, buf []byte, off int64) error {
	n, err := h.content.ReadAt(r, index, buf, off)
	if err == nil && n < len(buf) {
		err = fmt.Errorf("%d of %d bytes", n, len(buf))
	}
	return d.failure(r, err)
}

// readResult is go-fuse's ReadResultData from a pool.
type readResult struct{ data []byte }

var readResults = sync.Pool{New: func() any { return new(readResult) }}

func newReadResult(data []byte) gofuse.ReadResult {
	r := readResults.Get().(*readResult)
	r.data = data
	return r
}

// Bytes returns the data, which lies in the request's own buffer already.
func (r *readResult) Bytes([]byte) ([]byte, gofuse.Status) { return r.data, gofuse.OK }

// Size is the length of the data.
func (r *readResult) Size() int { return len(r.data) }

// Done gives the result back.
func (r *readResult) Done() {
	r.data = nil
	readResults.Put(r)
}

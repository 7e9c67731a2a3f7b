package fusetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"sync"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse"
)

// Content is a layer in memory: a fuse.Content of a TOC and its blob.
type Content struct {
	toc  *estargz.TOC
	blob []byte

	// Before is called at the start of each ReadAt, when not nil; an error is
	// the read's. A test makes reads wait or fail with it. Set before use.
	Before func(ctx context.Context, inode uint32, off int64, size int) error

	mu struct {
		sync.Mutex
		status  fuse.Status
		chunks  map[uint32][]byte
		closed  bool
		holders int
		idle    *sync.Cond // no holder is left
	}
}

var _ fuse.Content = (*Content)(nil)

// NewContent takes ownership of toc: Close ends it.
func NewContent(toc *estargz.TOC, blob []byte) *Content {
	c := &Content{toc: toc, blob: blob}
	c.mu.chunks = make(map[uint32][]byte)
	c.mu.idle = sync.NewCond(&c.mu)
	c.mu.status = fuse.Status{Digest: digest.FromBytes(blob), Size: int64(len(blob))}
	return c
}

// TOC is valid until Close.
func (c *Content) TOC() *estargz.TOC { return c.toc }

// Acquire implements fuse.Content.
func (c *Content) Acquire() (*estargz.TOC, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.closed {
		return nil, errors.New("content is closed")
	}
	c.mu.holders++
	return c.toc, nil
}

// Release implements fuse.Content; one too many panics.
func (c *Content) Release() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.holders == 0 {
		panic("fusetest: Release without Acquire")
	}
	if c.mu.holders--; c.mu.holders == 0 {
		c.mu.idle.Broadcast()
	}
}

// Holders is the number of requests that hold the content.
func (c *Content) Holders() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.holders
}

// Close waits for the holders and unmaps the TOC.
func (c *Content) Close() error {
	c.mu.Lock()
	c.mu.closed = true
	for c.mu.holders > 0 {
		c.mu.idle.Wait()
	}
	c.mu.Unlock()
	return c.toc.Close()
}

// Status implements fuse.Content.
func (c *Content) Status() fuse.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.mu.status
}

// SetStatus changes what Status returns.
func (c *Content) SetStatus(f func(*fuse.Status)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f(&c.mu.status)
}

// ReadAt implements fuse.Content.
func (c *Content) ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (int, error) {
	if c.Before != nil {
		if err := c.Before(ctx, inode, off, len(dst)); err != nil {
			return 0, err
		}
	}
	var in estargz.Inode
	if err := c.toc.Inode(inode, &in); err != nil {
		return 0, err
	}
	n := 0
	for n < len(dst) && off < in.Size {
		m, err := c.readChunk(inode, dst[n:], off)
		if err != nil {
			return n, err
		}
		n, off = n+m, off+int64(m)
	}
	return n, nil
}

func (c *Content) readChunk(inode uint32, dst []byte, off int64) (int, error) {
	i, err := c.toc.FindChunk(inode, off)
	if err != nil {
		return 0, err
	}
	var ch estargz.Chunk
	if err := c.toc.Chunk(i, &ch); err != nil {
		return 0, err
	}
	if ch.Zeros {
		n := min(int64(len(dst)), ch.FileOffset+ch.Size-off)
		clear(dst[:n])
		return int(n), nil
	}
	data, err := c.chunk(i, ch.Member)
	if err != nil {
		return 0, err
	}
	if inner := off - ch.FileOffset; inner < int64(len(data)) {
		return copy(dst, data[inner:]), nil
	}
	return 0, fmt.Errorf("chunk %d of inode %d does not hold offset %d", i, inode, off)
}

// chunk decompresses a chunk and its neighbours in the member, and keeps them
// for good.
func (c *Content) chunk(i, member uint32) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if data, ok := c.mu.chunks[i]; ok {
		return data, nil
	}
	m, err := c.toc.Member(member)
	if err != nil {
		return nil, err
	}
	err = c.toc.Decode(member, c.blob[m.Offset:m.Offset+m.Size], 0, math.MaxUint32, nil, func(i uint32, b []byte) bool {
		c.mu.chunks[i] = append([]byte(nil), b...)
		return true
	})
	if err != nil {
		return nil, err
	}
	data, ok := c.mu.chunks[i]
	if !ok {
		return nil, fmt.Errorf("member %d has no chunk %d", member, i)
	}
	return data, nil
}

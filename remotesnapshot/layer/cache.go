package layer

import (
	"container/list"
	"sync"
)

// chunkKey names a chunk of a layer that is open (or was: ids are not reused).
type chunkKey struct {
	layer uint64
	chunk uint32
}

// cache keeps the chunks used last, bounded in bytes. One lock serves all: a
// shard would have to hold several chunks of 4 MiB to be of use, and what is done
// under the lock is a look-up.
//
// Chunks larger than a quarter of the capacity have a segment of their own, of
// that quarter or one chunk, whichever is more: a large one can push out only
// another large one, and the whole never exceeds the capacity and one chunk.
type cache struct {
	mu struct {
		sync.Mutex
		entries map[chunkKey]*list.Element
		layers  map[uint64]map[uint32]struct{} // which chunks of a layer are here
	}
	small, large segment
}

// segment is a list in order of use; guarded by the cache's lock.
type segment struct {
	capacity int64
	size     int64
	order    *list.List // of *cached, the last used one first
}

type cached struct {
	key chunkKey
	buf *buffer
	in  *segment
}

func newCache(capacity int64) *cache {
	c := &cache{
		small: segment{capacity: capacity - capacity/4, order: list.New()},
		large: segment{capacity: capacity / 4, order: list.New()},
	}
	c.mu.entries = make(map[chunkKey]*list.Element)
	c.mu.layers = make(map[uint64]map[uint32]struct{})
	return c
}

// get returns a chunk with a hold for the caller, or nil.
func (c *cache) get(k chunkKey) *buffer {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.entries[k]
	if e == nil {
		return nil
	}
	it := e.Value.(*cached)
	it.in.order.MoveToFront(e)
	return it.buf.acquire()
}

// put takes a hold of its own on b. What has to go is freed after the lock.
func (c *cache) put(k chunkKey, b *buffer) {
	for _, old := range c.insert(k, b) {
		old.release()
	}
}

func (c *cache) insert(k chunkKey, b *buffer) (evicted []*buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.entries[k] != nil {
		return nil
	}
	in := &c.small
	if b.cost() > c.large.capacity {
		in = &c.large
	}
	c.mu.entries[k] = in.order.PushFront(&cached{key: k, buf: b.acquire(), in: in})
	if c.mu.layers[k.layer] == nil {
		c.mu.layers[k.layer] = make(map[uint32]struct{})
	}
	c.mu.layers[k.layer][k.chunk] = struct{}{}
	in.size += b.cost()
	for in.size > in.capacity && in.order.Len() > 1 {
		evicted = append(evicted, c.removeLocked(in.order.Back()))
	}
	return evicted
}

// dropLayer forgets all chunks of a layer.
func (c *cache) dropLayer(id uint64) {
	for _, b := range c.removeLayer(id) {
		b.release()
	}
}

func (c *cache) removeLayer(id uint64) (bufs []*buffer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for n := range c.mu.layers[id] {
		bufs = append(bufs, c.removeLocked(c.mu.entries[chunkKey{id, n}]))
	}
	return bufs
}

func (c *cache) removeLocked(e *list.Element) *buffer {
	it := e.Value.(*cached)
	it.in.order.Remove(e)
	it.in.size -= it.buf.cost()
	delete(c.mu.entries, it.key)
	chunks := c.mu.layers[it.key.layer]
	if delete(chunks, it.key.chunk); len(chunks) == 0 {
		delete(c.mu.layers, it.key.layer)
	}
	return it.buf
}

// bytes is the memory held by the cache.
func (c *cache) bytes() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.small.size + c.large.size
}

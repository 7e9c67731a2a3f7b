package layer

import (
	"container/list"
	"sync"
	"time"
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
// A chunk larger than half of the capacity has a place of its own, beside it: it
// can push out only another one of its kind, and the whole never exceeds the
// capacity and one chunk.
type cache struct {
	mu struct {
		sync.Mutex
		entries map[chunkKey]*list.Element
		layers  map[uint64]map[uint32]struct{} // which chunks of a layer are here
	}
	small, large segment
}

// cacheIdle is how long a chunk stays without being used. Programs read what they
// need of a chunk at once; a daemon at rest, or one whose memory an export needs,
// should not hold what can be had again in milliseconds.
const cacheIdle = time.Second

// segment is a list in order of use, of at least one chunk once there was one;
// guarded by the cache's lock.
type segment struct {
	capacity int64
	size     int64
	order    *list.List // of *cached, the last used one first
}

type cached struct {
	key  chunkKey
	buf  *buffer
	in   *segment
	used time.Time

	handed bool // see takeWhole
}

func newCache(capacity int64) *cache {
	c := &cache{
		small: segment{capacity: capacity, order: list.New()},
		large: segment{capacity: 0, order: list.New()}, // keeps one, as every segment does
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
	it.used = time.Now()
	return it.buf.acquire()
}

// takeWhole returns a chunk with a hold for a caller who will keep it elsewhere, and
// whether that was said before; nil when it is not here. It is the next one to go.
func (c *cache) takeWhole(k chunkKey) (_ *buffer, again bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := c.mu.entries[k]
	if e == nil {
		return nil, false
	}
	it := e.Value.(*cached)
	if again = it.handed; !again {
		it.handed = true
		it.in.order.MoveToBack(e)
	}
	return it.buf.acquire(), again
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
	if b.cost() > c.small.capacity/2 {
		in = &c.large
	}
	c.mu.entries[k] = in.order.PushFront(&cached{key: k, buf: b.acquire(), in: in, used: time.Now()})
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

// expire forgets the chunks that were used last before a time, and says whether
// others remain.
func (c *cache) expire(before time.Time) (more bool) {
	old, more := c.removeOld(before)
	for _, b := range old {
		b.release()
	}
	return more
}

func (c *cache) removeOld(before time.Time) (old []*buffer, more bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range []*segment{&c.small, &c.large} {
		for e := s.order.Back(); e != nil && e.Value.(*cached).used.Before(before); e = s.order.Back() {
			old = append(old, c.removeLocked(e))
		}
	}
	return old, len(c.mu.entries) > 0
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

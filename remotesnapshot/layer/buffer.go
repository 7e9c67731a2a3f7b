package layer

import (
	"container/list"
	"math/bits"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Chunks live outside of Go's heap: there, 32 MiB of cache would let the heap
// grow by 64 MiB before each collection, and memory given back would stay
// resident for minutes. Here it is counted, and freed at once.

const (
	// heapBuffer: smaller buffers are left to Go, pages would waste half of them.
	heapBuffer = 2 << 10
	// spareBytes is how much freed memory is kept for the next buffers. To map and
	// unmap each chunk of a scan, and to have its pages cleared, cost as much as a
	// third of inflating it.
	spareBytes = 12 << 20
)

// buffer is a counted piece of memory. The one who calls alloc has the first
// hold; the memory is freed with the last one.
type buffer struct {
	data []byte // as long as asked for
	full []byte // the whole mapping; nil when data is of Go's heap
	refs atomic.Int32
	from *memory
}

// memory hands out buffers. Its zero value is ready.
type memory struct {
	mapped atomic.Int64 // bytes mapped now, spare ones included

	mu struct {
		sync.Mutex
		order  list.List               // of spare []byte, the one freed first in front
		bySize map[int][]*list.Element // in the same order
		bytes  int
		closed bool
	}
}

// alloc returns a buffer of n bytes of undefined contents.
func (m *memory) alloc(n int) (*buffer, error) {
	b := &buffer{from: m}
	b.refs.Store(1)
	if n <= heapBuffer {
		b.data = make([]byte, n)
		return b, nil
	}
	size := sizeClass(n)
	if b.full = m.takeSpare(size); b.full == nil {
		full, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			return nil, err
		}
		m.mapped.Add(int64(size))
		b.full = full
	}
	b.data = b.full[:n]
	return b, nil
}

func (m *memory) takeSpare(size int) []byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.mu.bySize[size]
	if len(list) == 0 {
		return nil
	}
	e := list[len(list)-1]
	m.mu.bySize[size] = list[:len(list)-1]
	m.mu.bytes -= size
	return m.mu.order.Remove(e).([]byte)
}

// free keeps full, or gives back what was freed first.
func (m *memory) free(full []byte) {
	for _, old := range m.keepSpare(full) {
		m.unmap(old)
	}
}

func (m *memory) unmap(full []byte) {
	m.mapped.Add(-int64(len(full)))
	// Munmap of a mapping that Mmap returned has no way to fail.
	_ = unix.Munmap(full)
}

func (m *memory) keepSpare(full []byte) (old [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.closed || len(full) > spareBytes {
		return [][]byte{full}
	}
	if m.mu.bySize == nil {
		m.mu.bySize = make(map[int][]*list.Element)
	}
	m.mu.bySize[len(full)] = append(m.mu.bySize[len(full)], m.mu.order.PushBack(full))
	m.mu.bytes += len(full)
	for m.mu.bytes > spareBytes {
		first := m.mu.order.Remove(m.mu.order.Front()).([]byte)
		m.mu.bySize[len(first)] = m.mu.bySize[len(first)][1:]
		m.mu.bytes -= len(first)
		old = append(old, first)
	}
	return old
}

// releaseSpare gives the kept memory back to the system; for good: none is kept
// from now on.
func (m *memory) releaseSpare(forGood bool) {
	m.mu.Lock()
	var spare [][]byte
	for e := m.mu.order.Front(); e != nil; e = e.Next() {
		spare = append(spare, e.Value.([]byte))
	}
	m.mu.order.Init()
	m.mu.bySize, m.mu.bytes = nil, 0
	m.mu.closed = m.mu.closed || forGood
	m.mu.Unlock()
	for _, full := range spare {
		m.unmap(full)
	}
}

// acquire takes one more hold; the caller has, or is guarded by, another one.
func (b *buffer) acquire() *buffer {
	if b.refs.Add(1) < 2 {
		panic("layer: hold on a freed buffer")
	}
	return b
}

// release ends a hold.
func (b *buffer) release() {
	n := b.refs.Add(-1)
	if n < 0 {
		panic("layer: buffer released twice")
	}
	if n > 0 {
		return
	}
	full := b.full
	b.data, b.full = nil, nil
	if full != nil {
		b.from.free(full)
	}
}

// cost is the memory that the buffer holds.
func (b *buffer) cost() int64 {
	if b.full != nil {
		return int64(len(b.full))
	}
	return int64(cap(b.data))
}

// sizeClass rounds up to whole pages, and from 16 KiB on to a quarter of the
// power of two below, so that freed buffers fit the next ones.
func sizeClass(n int) int {
	step := 4 << 10
	if n > 16<<10 {
		step = 1 << (bits.Len(uint(n-1)) - 3)
	}
	return (n + step - 1) / step * step
}

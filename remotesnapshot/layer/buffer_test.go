package layer

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// used is what buffers in use have mapped.
func (m *memory) used() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mapped.Load() - int64(m.mu.bytes)
}

// TestFreedMemoryServesTheNextBuffers: as far as spareBytes go, and of what was
// freed last.
func TestFreedMemoryServesTheNextBuffers(t *testing.T) {
	const size = 1 << 20
	var m memory
	alloc := func(n int) *buffer {
		t.Helper()
		b, err := m.alloc(n)
		require.NoError(t, err)
		require.Len(t, b.data, n)
		return b
	}
	var all []*buffer
	for range 2 * spareBytes / size {
		all = append(all, alloc(size))
	}
	require.EqualValues(t, 2*spareBytes, m.mapped.Load())
	other := alloc(2 * size) // freed first, and not asked for again
	other.release()
	for _, b := range all {
		b.data[0] = 1
		b.release()
	}
	require.EqualValues(t, spareBytes, m.mapped.Load(), "the rest is given back")
	require.Zero(t, m.used())

	for range spareBytes / size {
		b := alloc(size - 1)
		require.EqualValues(t, 1, b.data[0], "it is one that was freed")
		all = append(all, b)
	}
	require.EqualValues(t, spareBytes, m.mapped.Load())
	require.EqualValues(t, spareBytes, m.used())
	b := alloc(size)
	require.Zero(t, b.data[0])
	require.EqualValues(t, spareBytes+size, m.mapped.Load())
	b.release()
	for _, b := range all[len(all)-spareBytes/size:] {
		b.release()
	}
	huge := alloc(spareBytes + 1)
	huge.release()
	require.EqualValues(t, spareBytes, m.mapped.Load(), "what is larger is never kept")

	m.releaseSpare(false)
	require.Zero(t, m.mapped.Load())
	alloc(size).release()
	require.EqualValues(t, size, m.mapped.Load())
	m.releaseSpare(true)
	alloc(size).release()
	require.Zero(t, m.mapped.Load())
}

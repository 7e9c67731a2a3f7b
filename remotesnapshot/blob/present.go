package blob

// Present says whether a range needs no request: all its bytes are here, as far
// as the blob reaches. It never blocks.
func (b *Blob) Present(off, size int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := span{off, off + size}
	if b.mu.sizeKnown {
		s.hi = min(s.hi, b.mu.size)
	}
	return b.mu.present.contains(s)
}

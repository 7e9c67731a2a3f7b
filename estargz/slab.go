package estargz

import (
	"bytes"
	"hash/maphash"
)

// slab is a growing array that never moves what it holds, so that growing costs
// no copy and no second array.
type slab[T any] struct {
	pages [][]T
	n     uint32
}

const (
	slabBits = 10
	slabPage = 1 << slabBits
)

// add appends v and returns its index.
func (s *slab[T]) add(v T) uint32 {
	if s.n&(slabPage-1) == 0 {
		s.pages = append(s.pages, make([]T, slabPage))
	}
	i := s.n
	s.pages[i>>slabBits][i&(slabPage-1)] = v
	s.n++
	return i
}

// at returns the address of element i, which stays the same.
func (s *slab[T]) at(i uint32) *T { return &s.pages[i>>slabBits][i&(slabPage-1)] }

// strRef is a string of an interner: the offset is the one in the string table
// of the compact file.
type strRef struct{ off, len uint32 }

// interner keeps each string once. Strings lie in pages that none of them
// crosses, so that pages never move; the string table of the compact file has
// the same pages, and a few unused bytes at their ends.
type interner struct {
	seed  maphash.Seed
	pages [][]byte
	slots []strRef // open addressing; len 0 is free
	n     int
}

const (
	strPageBits = 16
	strPage     = 1 << strPageBits // no string is longer
)

func newInterner() *interner {
	return &interner{seed: maphash.MakeSeed(), slots: make([]strRef, 1<<10)}
}

func (t *interner) get(r strRef) []byte {
	if r.len == 0 {
		return nil
	}
	return t.pages[r.off>>strPageBits][r.off&(strPage-1):][:r.len]
}

// slot returns the index of s in slots, or of the free slot where it belongs.
func (t *interner) slot(s []byte) int {
	mask := uint64(len(t.slots) - 1)
	for i := maphash.Bytes(t.seed, s) & mask; ; i = (i + 1) & mask {
		if r := t.slots[i]; r.len == 0 || (int(r.len) == len(s) && bytes.Equal(t.get(r), s)) {
			return int(i)
		}
	}
}

// find returns the string s if it is there.
func (t *interner) find(s []byte) (strRef, bool) {
	if len(s) == 0 {
		return strRef{}, true
	}
	r := t.slots[t.slot(s)]
	return r, r.len != 0
}

// add returns the string s, and keeps a copy if it is new.
func (t *interner) add(s []byte) (strRef, error) {
	if len(s) == 0 {
		return strRef{}, nil
	}
	i := t.slot(s)
	if t.slots[i].len != 0 {
		return t.slots[i], nil
	}
	if len(s) > strPage {
		return strRef{}, limitf("string of %d bytes", len(s))
	}
	last := len(t.pages) - 1
	if last < 0 || len(t.pages[last])+len(s) > strPage {
		if len(t.pages) == 1<<(32-strPageBits) {
			return strRef{}, limitf("string table of 4 GiB")
		}
		t.pages = append(t.pages, make([]byte, 0, strPage))
		last++
	}
	r := strRef{off: uint32(last)<<strPageBits | uint32(len(t.pages[last])), len: uint32(len(s))}
	t.pages[last] = append(t.pages[last], s...)
	t.slots[i] = r
	if t.n++; t.n*4 > len(t.slots)*3 {
		t.rehash()
	}
	return r, nil
}

func (t *interner) rehash() {
	old := t.slots
	t.slots = make([]strRef, 2*len(old))
	for _, r := range old {
		if r.len != 0 {
			t.slots[t.slot(t.get(r))] = r
		}
	}
}

// size is that of the string table, in bytes.
func (t *interner) size() uint64 {
	if len(t.pages) == 0 {
		return 0
	}
	last := len(t.pages) - 1
	return uint64(last)<<strPageBits + uint64(len(t.pages[last]))
}

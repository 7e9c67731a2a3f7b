package fuse

import (
	"slices"
	"sort"
)

// rootIno is the inode number of a mount's root; layers have those from firstIno
// up to lastIno. They stay below 2^32 for 32-bit programs and for overlayfs's
// xino, which wants the high bits for itself.
const (
	rootIno  = 1
	firstIno = 16
	lastIno  = 0xffff_fffe // 0xffffffff is what READDIR says of an unknown number
)

// inoSpace hands out ranges of inode numbers that do not overlap. Numbers are
// taken upwards and used again only after the whole space was walked through, so
// that what the kernel remembers of a removed layer is long gone by then. It is
// guarded by its mount's lock.
type inoSpace struct {
	live []inoRange // sorted
	next uint64     // where the search begins
}

type inoRange struct{ start, end uint64 } // [start, end)

// take reserves n numbers and returns the first; ok is false when no gap is wide
// enough.
func (s *inoSpace) take(n uint64) (start uint64, ok bool) {
	if s.next < firstIno {
		s.next = firstIno
	}
	start, ok = s.fit(s.next, n)
	if !ok {
		start, ok = s.fit(firstIno, n)
	}
	if !ok {
		return 0, false
	}
	i := s.search(start)
	s.live = slices.Insert(s.live, i, inoRange{start, start + n})
	s.next = start + n
	return start, true
}

// give frees the range that begins at start.
func (s *inoSpace) give(start uint64) {
	i := s.search(start)
	if i < len(s.live) && s.live[i].start == start {
		s.live = slices.Delete(s.live, i, i+1)
	}
}

// fit finds the first gap of n numbers at or above from.
func (s *inoSpace) fit(from, n uint64) (uint64, bool) {
	for _, r := range s.live {
		if r.end <= from {
			continue
		}
		if from+n <= r.start {
			break
		}
		from = r.end
	}
	return from, from+n <= lastIno+1
}

func (s *inoSpace) search(start uint64) int {
	return sort.Search(len(s.live), func(i int) bool { return s.live[i].start >= start })
}

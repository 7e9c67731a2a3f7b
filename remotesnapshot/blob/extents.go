package blob

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// extents returns the parts of f that hold data, so that spans which the hint
// lists but a crash kept from the disk are fetched again rather than read as
// zeros. File systems without SEEK_DATA answer with the whole length.
func extents(f *os.File) (ranges, error) {
	var out ranges
	fi, err := f.Stat()
	if err != nil {
		return out, err
	}
	fd, size := int(f.Fd()), fi.Size()
	for off := int64(0); off < size; {
		lo, err := unix.Seek(fd, off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // a hole up to the end
			return out, nil
		}
		if err != nil {
			return ranges{spans: []span{{0, size}}, total: size}, nil
		}
		hi, err := unix.Seek(fd, lo, unix.SEEK_HOLE)
		if err != nil || hi <= lo {
			hi = size
		}
		out.add(span{lo, min(hi, size)})
		off = hi
	}
	return out, nil
}

// intersect returns the bytes that are in both sets.
func (r *ranges) intersect(o ranges) ranges {
	var out ranges
	i, j := 0, 0
	for i < len(r.spans) && j < len(o.spans) {
		out.add(r.spans[i].intersect(o.spans[j]))
		if r.spans[i].hi < o.spans[j].hi {
			i++
		} else {
			j++
		}
	}
	return out
}

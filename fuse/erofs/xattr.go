package erofs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lazykit/lazykit/estargz"
)

// xattrHeader is what lies before the attributes of an inode: a filter, which is not
// used, and the number of shared ones, of which there are none.
const xattrHeader = 12

// Prefixes of names that have a number.
var prefixes = []struct {
	name  string
	index byte
	whole bool // nothing follows
}{
	{"user.", 1, false},
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// splitName is a name as EROFS keeps it.
func splitName(name []byte) (index byte, rest []byte, ok bool) {
	for _, p := range prefixes {
		if rest, found := bytes.CutPrefix(name, []byte(p.name)); found && p.whole == (len(rest) == 0) {
			return p.index, rest, len(rest) <= math.MaxUint8
		}
	}
	return 0, nil, false
}

// eachXattr calls f with each attribute that an inode has.
func (b *build) eachXattr(i uint32, in *estargz.Inode, f func(index byte, name, value []byte)) error {
	if !in.Xattrs && !in.Opaque {
		return nil
	}
	var bad error
	one := func(name, value []byte) bool {
		index, rest, ok := splitName(name)
		if !ok || len(value) > math.MaxUint16 {
			bad = fmt.Errorf("%w: attribute %.100q of %d bytes", ErrUnsupported, name, len(value))
			return false
		}
		f(index, rest, value)
		return true
	}
	if in.Opaque && !one([]byte(b.opts.Opaque), []byte("y")) {
		return bad
	}
	if in.Xattrs {
		if err := b.toc.Xattrs(i, one); err != nil {
			return err
		}
	}
	return bad
}

// xattrSize is how many bytes an inode's attributes take, 0 without any.
func (b *build) xattrSize(i uint32, in *estargz.Inode) (int, error) {
	size := 0
	err := b.eachXattr(i, in, func(_ byte, name, value []byte) {
		size += int(roundUp(int64(4+len(name)+len(value)), 4))
	})
	switch {
	case err != nil || size == 0:
		return 0, err
	case size/4+1 > math.MaxUint16:
		return 0, fmt.Errorf("%w: %d bytes of attributes", ErrUnsupported, size)
	}
	return xattrHeader + size, nil
}

// xattrs writes an inode's attributes.
func (b *build) xattrs(i uint32, in *estargz.Inode, s *section) error {
	begun := false
	return b.eachXattr(i, in, func(index byte, name, value []byte) {
		if !begun {
			begun = true
			s.write(zeros[:xattrHeader])
		}
		var head [4]byte
		head[0], head[1] = byte(len(name)), index
		binary.LittleEndian.PutUint16(head[2:], uint16(len(value)))
		s.write(head[:])
		s.write(name)
		s.write(value)
		s.pad(roundUp(s.pos, 4))
	})
}

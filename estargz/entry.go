package estargz

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"time"
)

// entryType is the "type" of an entry.
type entryType uint8

const (
	typeNone entryType = iota
	typeDir
	typeReg
	typeSymlink
	typeHardlink
	typeChar
	typeBlock
	typeFifo
	typeChunk
)

var entryTypes = map[string]entryType{
	"dir": typeDir, "reg": typeReg, "symlink": typeSymlink, "hardlink": typeHardlink,
	"char": typeChar, "block": typeBlock, "fifo": typeFifo, "chunk": typeChunk,
}

// sum is a sha256 digest, when there is one.
type sum struct {
	set bool
	b   [32]byte
}

// entry is one element of a TOC's "entries", decoded. One is reused for all.
type entry struct {
	typ            entryType
	name, linkName []byte
	size           int64
	mode           int64
	uid, gid       int64
	major, minor   int64
	mtime          int64
	mtimeNsec      uint32

	offset, inner, end     int64
	chunkOffset, chunkSize int64
	digest, chunkDigest    sum
	zeros                  bool

	xattrs []xattr
	values []byte // backs xattrs

	// The last time and digest that were read, and their texts: they mostly come again.
	stamp     []byte
	stampTime time.Time
	sumText   []byte
	sumLast   sum
}

// xattr is an extended attribute; offsets into entry.values.
type xattr struct{ name, value, end int }

func (e *entry) xattrName(x xattr) []byte  { return e.values[x.name:x.value] }
func (e *entry) xattrValue(x xattr) []byte { return e.values[x.value:x.end] }

func (e *entry) reset() {
	*e = entry{
		name: e.name[:0], linkName: e.linkName[:0], xattrs: e.xattrs[:0], values: e.values[:0],
		stamp: e.stamp, stampTime: e.stampTime, sumText: e.sumText, sumLast: e.sumLast,
	}
}

// readTOC reads a TOC's document and calls add with each entry, in order. The
// entry is valid during the call; add's errors name it.
func readTOC(j *jsonReader, add func(*entry) error) error {
	var e entry
	err := j.object(func(key []byte) error {
		switch string(key) {
		case "version":
			v, err := j.integer()
			if err == nil && v > 1 {
				err = j.errorf("TOC of version %d", v)
			}
			return err
		case "entries":
			return j.array(func() error {
				if err := e.read(j); err != nil {
					return entryError(e.name, err)
				}
				return add(&e)
			})
		}
		return j.skip()
	})
	if err != nil {
		return err
	}
	return j.done()
}

// read decodes one entry. Where a key occurs twice, its last value counts.
func (e *entry) read(j *jsonReader) error {
	e.reset()
	err := j.object(func(key []byte) error { return e.readMember(j, key) })
	if err == nil && e.typ == typeNone {
		err = j.errorf("entry without a type")
	}
	return err
}

func (e *entry) readMember(j *jsonReader, key []byte) (err error) {
	switch string(key) {
	case "name":
		e.name, err = readBytes(j, e.name)
	case "linkName":
		e.linkName, err = readBytes(j, e.linkName)
	case "type":
		e.typ, err = readType(j)
	case "modtime":
		err = e.readTime(j)
	case "digest":
		e.digest, err = e.readSum(j)
	case "chunkDigest":
		e.chunkDigest, err = e.readSum(j)
	case "chunkType":
		e.zeros, err = readChunkType(j)
	case "xattrs":
		err = e.readXattrs(j)
	default:
		n := e.number(key)
		if n == nil {
			return j.skip()
		}
		*n, err = j.integer()
	}
	return err
}

// number returns the field that holds the number called key, nil for none.
func (e *entry) number(key []byte) *int64 {
	switch string(key) {
	case "size":
		return &e.size
	case "mode":
		return &e.mode
	case "uid":
		return &e.uid
	case "gid":
		return &e.gid
	case "devMajor":
		return &e.major
	case "devMinor":
		return &e.minor
	case "offset":
		return &e.offset
	case "innerOffset":
		return &e.inner
	case "endOffset":
		return &e.end
	case "chunkOffset":
		return &e.chunkOffset
	case "chunkSize":
		return &e.chunkSize
	}
	return nil
}

func readBytes(j *jsonReader, dst []byte) ([]byte, error) {
	s, err := j.stringOrNull()
	return append(dst[:0], s...), err
}

func readType(j *jsonReader) (entryType, error) {
	s, err := j.stringOrNull()
	if err != nil {
		return typeNone, err
	}
	t, ok := entryTypes[string(s)]
	if !ok {
		return typeNone, j.errorf("entry of unknown type %.32q", s)
	}
	return t, nil
}

// readTime reads RFC 3339. What can't be read, or not be set by containerd's
// extraction (which knows 1970 to 2262), is the epoch, as it is there.
func (e *entry) readTime(j *jsonReader) error {
	s, err := j.stringOrNull()
	if err != nil {
		return err
	}
	e.mtime, e.mtimeNsec = 0, 0
	if len(s) == 0 {
		return nil
	}
	if !bytes.Equal(s, e.stamp) {
		e.stamp, e.stampTime = append(e.stamp[:0], s...), time.Unix(0, 0)
		var t time.Time
		if t.UnmarshalText(s) == nil {
			e.stampTime = t
		}
	}
	if t := e.stampTime; t.Unix() >= 0 && !t.After(maxTime) {
		e.mtime, e.mtimeNsec = t.Unix(), uint32(t.Nanosecond())
	}
	return nil
}

var maxTime = time.Unix(0, 1<<63-1)

// readSum reads "sha256:" and 64 hexadecimal digits; an empty one is none.
func (e *entry) readSum(j *jsonReader) (sum, error) {
	s, err := j.stringOrNull()
	if err != nil || len(s) == 0 {
		return sum{}, err
	}
	if e.sumLast.set && bytes.Equal(s, e.sumText) {
		return e.sumLast, nil
	}
	out, err := parseSum(j, s)
	if err == nil {
		e.sumText, e.sumLast = append(e.sumText[:0], s...), out
	}
	return out, err
}

func parseSum(j *jsonReader, s []byte) (out sum, err error) {
	digits, ok := bytes.CutPrefix(s, []byte("sha256:"))
	if !ok {
		return out, j.errorf("digest %.80q: only sha256 is supported", s)
	}
	if len(digits) != 2*len(out.b) {
		return out, j.errorf("digest %.80q has %d digits", s, len(digits))
	}
	if _, err := hex.Decode(out.b[:], digits); err != nil {
		return out, j.errorf("digest %.80q: %w", s, err)
	}
	out.set = true
	return out, nil
}

func readChunkType(j *jsonReader) (zeros bool, err error) {
	s, err := j.stringOrNull()
	if err != nil {
		return false, err
	}
	switch string(s) {
	case "":
		return false, nil
	case "zeros":
		return true, nil
	}
	return false, j.errorf("unknown chunk type %.32q", s)
}

// readXattrs reads an object of base64 values. Those that are not to be
// served are left out here, so that nothing behind this point can serve them.
func (e *entry) readXattrs(j *jsonReader) error {
	e.xattrs, e.values = e.xattrs[:0], e.values[:0]
	return j.object(func(key []byte) error {
		x := xattr{name: len(e.values)}
		e.values = append(e.values, key...)
		x.value = len(e.values)
		v, err := j.stringOrNull()
		if err != nil {
			return err
		}
		if e.values, err = base64.StdEncoding.AppendDecode(e.values, v); err != nil {
			return fmt.Errorf("xattr %.64q: %w", e.values[x.name:x.value], err)
		}
		x.end = len(e.values)
		if err := checkXattr(e.xattrName(x), x.end-x.value); err != nil {
			return err
		}
		if len(e.values) > 2*jsonMaxString {
			return limitf("xattrs of more than %d bytes", 2*jsonMaxString)
		}
		if isHiddenXattr(e.xattrName(x)) {
			e.values = e.values[:x.name]
			return nil
		}
		e.xattrs = append(e.xattrs, x)
		return nil
	})
}

func checkXattr(name []byte, size int) error {
	switch {
	case len(name) == 0 || bytes.IndexByte(name, 0) >= 0:
		return fmt.Errorf("xattr name %.64q", name)
	case len(name) > maxXattrName:
		return limitf("xattr name %.64q... of %d bytes", name, len(name))
	case size > maxXattr:
		return limitf("xattr %.64q of %d bytes", name, size)
	}
	return nil
}

// isHiddenXattr says whether an attribute is never served. Overlayfs takes
// trusted.overlay.* and user.overlay.* for its own: opaque, redirect and metacopy
// from a stranger's layer would let it reach files of other layers. The rest of
// trusted.* belongs to the machine's administrator, and extraction leaves it out.
func isHiddenXattr(name []byte) bool {
	return bytes.HasPrefix(name, []byte("trusted.")) || bytes.HasPrefix(name, []byte("user.overlay."))
}

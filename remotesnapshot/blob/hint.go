package blob

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"os"
	"path/filepath"
)

// The hint file of a blob, all numbers unsigned:
//
//	8 bytes  magic "LKRANGE1" (the last byte is the version)
//	varint   flags: bit 0: the blob was verified whole; bit 1: of such a one follows
//	         when its file was modified last, which makes later writes known
//	varint   size of the blob
//	varint   with bit 1: modification time of the file, Unix nanoseconds
//	varint   number of spans
//	each     varint distance from the end of the span before, varint length
//	4 bytes  CRC-32C of all of the above, big endian
const (
	hintMagic    = "LKRANGE1"
	hintVerified = 1 << 0
	hintModified = 1 << 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errHint says that a hint file can't be used; the blob starts empty then.
var errHint = errors.New("damaged list of ranges")

// hint is what is kept of a blob beside its bytes.
type hint struct {
	size     int64
	verified bool
	modified int64 // of the file, when verified; 0: not known
	present  ranges
}

func (h hint) marshal() []byte {
	b := make([]byte, 0, 32+4*len(h.present.spans))
	b = append(b, hintMagic...)
	var flags uint64
	if h.verified {
		flags |= hintVerified
	}
	if h.verified && h.modified > 0 {
		flags |= hintModified
	}
	b = binary.AppendUvarint(b, flags)
	b = binary.AppendUvarint(b, uint64(h.size))
	if flags&hintModified != 0 {
		b = binary.AppendUvarint(b, uint64(h.modified))
	}
	b = binary.AppendUvarint(b, uint64(len(h.present.spans)))
	end := int64(0)
	for _, s := range h.present.spans {
		b = binary.AppendUvarint(b, uint64(s.lo-end))
		b = binary.AppendUvarint(b, uint64(s.len()))
		end = s.hi
	}
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// parseHint reads what marshal wrote. It accepts nothing that marshal would not
// write: spans are in order, apart from each other, and inside the blob.
func parseHint(b []byte) (hint, error) {
	if len(b) < len(hintMagic)+4 || !bytes.HasPrefix(b, []byte(hintMagic)) {
		return hint{}, fmt.Errorf("%w: no magic", errHint)
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return hint{}, fmt.Errorf("%w: checksum differs", errHint)
	}
	d := hintDecoder{b: body[len(hintMagic):]}
	flags, size := d.next(), d.next()
	modified := int64(0)
	if flags&hintModified != 0 {
		modified = d.next()
		d.bad = d.bad || modified == 0
	}
	n := d.next()
	if d.bad || flags > hintVerified|hintModified || flags == hintModified || n > int64(len(d.b)) {
		return hint{}, fmt.Errorf("%w: header", errHint)
	}
	h := hint{size: size, verified: flags&hintVerified != 0, modified: modified}
	end := int64(0)
	for i := range n {
		gap, length := d.next(), d.next()
		if d.bad || length == 0 || (i > 0 && gap == 0) || gap > size-end || length > size-end-gap {
			return hint{}, fmt.Errorf("%w: span %d", errHint, i)
		}
		s := span{end + gap, end + gap + length}
		h.present.spans = append(h.present.spans, s)
		h.present.total += length
		end = s.hi
	}
	if len(d.b) != 0 {
		return hint{}, fmt.Errorf("%w: %d bytes left over", errHint, len(d.b))
	}
	if h.verified && h.present.total != h.size {
		return hint{}, fmt.Errorf("%w: verified but not whole", errHint)
	}
	return h, nil
}

type hintDecoder struct {
	b   []byte
	bad bool
}

func (d *hintDecoder) next() int64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || v > math.MaxInt64 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return int64(v)
}

// writeHint replaces the file at path in one step, so that a reader finds either
// the old or the new list. It is not synced unless the caller asks: a hint that is lost costs
// a fetch, not correctness.
func writeHint(path string, h hint, sync bool) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(h.marshal())
	if err == nil && sync {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// readHint reads the file at path; errHint says that it is damaged.
func readHint(path string) (hint, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return hint{}, err
	}
	return parseHint(b)
}

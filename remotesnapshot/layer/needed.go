package layer

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/lazykit/lazykit/estargz"
)

// A program or a library says in its first bytes what it needs: the loader that
// opens it, and, in its dynamic section, the names of libraries. The loader opens
// all of them, and theirs, before the program's first instruction. The headers
// are foreign bytes: what is read of them is bounded, and nothing is believed.

// Bounds of what is read of a program.
const (
	maxSegments = 64      // program headers
	maxDynamic  = 1 << 10 // entries of the dynamic section
	maxNeeded   = 64      // libraries
	maxName     = 256     // length of a name
)

const (
	elfHeader     = 64
	elfSegment    = 56
	elfDynEntry   = 16
	segLoad       = 1
	segDynamic    = 2
	segInterp     = 3
	flagWritable  = 2
	dynNeeded     = 1
	dynStrings    = 5
	dynRunPathOld = 15
	dynRunPath    = 29
)

// program is what the headers of a program or a library say.
type program struct {
	machine uint16
	interp  string   // path of the loader; "": a library, or linked statically
	needed  []string // names of libraries
	runPath string   // directories separated by colons
	dynamic span     // of the file: where names of libraries are found
	early   []span   // of the file: what the loader reads, which is not all
}

// isProgram says whether data begins like a program for a 64-bit machine whose
// numbers begin with the lowest byte; others are left alone.
func isProgram(data []byte) bool {
	return bytes.HasPrefix(data, []byte("\x7fELF\x02\x01"))
}

// mapping is a part of a program, as its header lists them.
type mapping struct {
	kind, flags  uint32
	off, address uint64
	size         uint64 // in the file
}

// readAtFunc fills dst from byte off of a file.
type readAtFunc func(dst []byte, off int64) error

// readProgram reads the headers of a program. It reads no dynamic section.
func readProgram(read readAtFunc) (p program, segments []mapping, ok bool) {
	var h [elfHeader]byte
	if read(h[:], 0) != nil || !isProgram(h[:]) {
		return p, nil, false
	}
	le := binary.LittleEndian
	p.machine = le.Uint16(h[18:])
	at, n := le.Uint64(h[32:]), int(le.Uint16(h[56:]))
	if le.Uint16(h[54:]) != elfSegment || n == 0 || n > maxSegments || at > 1<<20 {
		return p, nil, false
	}
	table := make([]byte, n*elfSegment)
	if read(table, int64(at)) != nil {
		return p, nil, false
	}
	for ; len(table) > 0; table = table[elfSegment:] {
		s := mapping{
			kind: le.Uint32(table), flags: le.Uint32(table[4:]),
			off: le.Uint64(table[8:]), address: le.Uint64(table[16:]), size: le.Uint64(table[32:]),
		}
		if s.off > 1<<40 || s.size > 1<<40 {
			return p, nil, false
		}
		segments = append(segments, s)
		r := span{int64(s.off), int64(s.off + s.size)}
		switch {
		case s.kind == segInterp:
			p.interp = readName(read, r.lo, min(maxName, r.hi-r.lo))
		case s.kind == segDynamic:
			p.dynamic = r
		case s.kind == segLoad && (s.off == 0 || s.flags&flagWritable != 0):
			p.early = append(p.early, r)
		}
	}
	return p, segments, true
}

// readNeeded adds what the dynamic section of a program says.
func readNeeded(p *program, segments []mapping, read readAtFunc) {
	n := min((p.dynamic.hi-p.dynamic.lo)/elfDynEntry, maxDynamic)
	if n <= 0 {
		return
	}
	table := make([]byte, n*elfDynEntry)
	if read(table, p.dynamic.lo) != nil {
		return
	}
	var strings int64
	var needed []uint64
	runPath := uint64(0)
	for ; len(table) > 0; table = table[elfDynEntry:] {
		tag, value := binary.LittleEndian.Uint64(table), binary.LittleEndian.Uint64(table[8:])
		switch {
		case tag == 0:
			table = table[:elfDynEntry]
		case tag == dynNeeded && len(needed) < maxNeeded:
			needed = append(needed, value)
		case tag == dynRunPath || tag == dynRunPathOld:
			runPath = value
		case tag == dynStrings:
			strings = fileOffset(segments, value)
		}
	}
	if strings <= 0 {
		return
	}
	name := func(at uint64) string {
		if at > 1<<30 {
			return ""
		}
		return readName(read, strings+int64(at), maxName)
	}
	for _, at := range needed {
		if s := name(at); s != "" {
			p.needed = append(p.needed, s)
		}
	}
	if runPath != 0 {
		p.runPath = name(runPath)
	}
}

// fileOffset is where the byte at an address of memory comes from; 0: from nowhere.
func fileOffset(segments []mapping, address uint64) int64 {
	for _, s := range segments {
		if s.kind == segLoad && address >= s.address && address-s.address < s.size {
			return int64(s.off + address - s.address)
		}
	}
	return 0
}

// readName reads up to a zero byte, at most n bytes; "" when there is none.
func readName(read readAtFunc, off, n int64) string {
	if n <= 0 {
		return ""
	}
	b := make([]byte, n)
	err := read(b, off)
	for err != nil && errors.Is(err, estargz.ErrNotExist) && len(b) > 1 {
		b = b[:len(b)/2] // the end of the file is near
		err = read(b, off)
	}
	if err != nil {
		return ""
	}
	end := bytes.IndexByte(b, 0)
	if end <= 0 {
		return ""
	}
	return string(b[:end])
}

// Package inflate decompresses gzip members (RFC 1952) that lie in memory as a
// whole into memory of a known size.
//
// That is what a lazy layer does with every chunk it serves. Readers of streams keep
// a window of what they gave away, from which all output is copied once more, and
// ask for their input byte by byte; here the output is its own window, and bits are
// taken from 64 at a time.
package inflate

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
)

// ErrCorrupt is wrapped by the errors of bytes that are not gzip.
var ErrCorrupt = errors.New("inflate: corrupt data")

// ErrShort says that the data ended before the output was full.
var ErrShort = errors.New("inflate: data ends early")

// Decoder decompresses. The zero value is ready; it keeps tables of some 20 KiB
// for its next use. Not safe for concurrent use.
type Decoder struct {
	litlen  table
	dist    table
	precode table
	lens    [maxLitlen + maxDist]uint8

	// The place in the input and the output, between the steps of Gzip.
	in   []byte
	pos  int
	buf  uint64 // bits that were taken from in, the next one lowest
	n    uint   // how many of them count
	base int    // start of the current member in the output: nothing before is its own
}

// Gzip decompresses the gzip members in src, one behind the other, until dst is
// full. What follows in src is not looked at, and neither are checksums: they are
// for callers who have no digest. n is how many bytes were decompressed, less than
// len(dst) with an error only; what is behind them in dst is undefined then.
func (d *Decoder) Gzip(dst, src []byte) (n int, err error) {
	d.in, d.pos, d.base = src, 0, 0
	defer func() { d.in = nil }()
	for member := 0; n < len(dst); member++ {
		if member > 0 {
			d.pos -= int(d.n / 8) // whole bytes that were taken too many
			if len(d.in)-d.pos <= trailer {
				return n, ErrShort
			}
			d.pos += trailer
		}
		if err := d.header(); err != nil {
			return n, err
		}
		d.buf, d.n, d.base = 0, 0, n
		for final := false; !final && n < len(dst); {
			if n, final, err = d.block(dst, n); err != nil {
				return n, err
			}
		}
	}
	return n, nil
}

const trailer = 8 // CRC-32 and size, behind each member

func corrupt(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrCorrupt, fmt.Sprintf(format, args...))
}

// header goes behind a member's header.
func (d *Decoder) header() error {
	const size = 10
	h := d.in[d.pos:] // not beyond the end: see trailer
	if len(h) < size {
		return ErrShort
	}
	if h[0] != 0x1f || h[1] != 0x8b || h[2] != 8 {
		return corrupt("no gzip header at %d", d.pos)
	}
	flags := h[3]
	const hasHeaderCRC, hasExtra, hasName, hasComment = 1 << 1, 1 << 2, 1 << 3, 1 << 4
	h = h[size:]
	if flags&hasExtra != 0 {
		if len(h) < 2 || len(h)-2 < int(binary.LittleEndian.Uint16(h)) {
			return ErrShort
		}
		h = h[2+int(binary.LittleEndian.Uint16(h)):]
	}
	for _, f := range [...]byte{hasName, hasComment} {
		if flags&f == 0 {
			continue
		}
		end := 0
		for end < len(h) && h[end] != 0 {
			end++
		}
		if end == len(h) {
			return ErrShort
		}
		h = h[end+1:]
	}
	if flags&hasHeaderCRC != 0 {
		if len(h) < 2 {
			return ErrShort
		}
		h = h[2:]
	}
	d.pos = len(d.in) - len(h)
	return nil
}

// need makes sure that n bits, at most 32, are in buf.
func (d *Decoder) need(n uint) error {
	for d.n < n {
		if d.pos >= len(d.in) {
			return ErrShort
		}
		d.buf |= uint64(d.in[d.pos]) << d.n
		d.pos++
		d.n += 8
	}
	return nil
}

// take returns the next n bits, at most 32.
func (d *Decoder) take(n uint) (uint32, error) {
	if err := d.need(n); err != nil {
		return 0, err
	}
	v := uint32(d.buf & (1<<n - 1))
	d.buf >>= n
	d.n -= n
	return v, nil
}

// block decompresses one block to dst[op:], as far as there is room.
func (d *Decoder) block(dst []byte, op int) (int, bool, error) {
	h, err := d.take(3)
	if err != nil {
		return op, false, err
	}
	final := h&1 != 0
	switch h >> 1 {
	case 0:
		op, err = d.stored(dst, op)
	case 1:
		if err = d.fixedTables(); err == nil {
			op, err = d.coded(dst, op)
		}
	case 2:
		if err = d.dynamicTables(); err == nil {
			op, err = d.coded(dst, op)
		}
	default:
		err = corrupt("block type 3")
	}
	return op, final, err
}

// stored copies a block that is not compressed.
func (d *Decoder) stored(dst []byte, op int) (int, error) {
	d.buf >>= d.n & 7
	d.n &^= 7
	v, err := d.take(32)
	if err != nil {
		return op, err
	}
	n := int(v & 0xffff)
	if n != int(^v>>16) {
		return op, corrupt("stored block of %d bytes, or %d", n, ^v>>16)
	}
	d.pos -= int(d.n / 8)
	d.buf, d.n = 0, 0
	copied := copy(dst[op:], d.in[d.pos:min(len(d.in), d.pos+n)])
	op += copied
	d.pos += copied
	if copied < n && op < len(dst) {
		return op, ErrShort
	}
	return op, nil
}

// Alphabets of RFC 1951, 3.2.5 and 3.2.7.
const (
	maxLitlen  = 288
	maxDist    = 32
	maxPrecode = 19
	endOfBlock = 256
)

var (
	lengthBase  = [...]uint16{3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258}
	lengthExtra = [...]uint8{0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0}
	distBase    = [...]uint16{1, 2, 3, 4, 5, 7, 9, 13, 17, 25, 33, 49, 65, 97, 129, 193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577}
	distExtra   = [...]uint8{0, 0, 0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13}
	precodeTurn = [maxPrecode]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}
)

// What a symbol means, as it is found in a table:
//
//	bits 0-5    bits of code and extra bits together
//	bits 8-12   bits of the code alone; in a link, of the second table's index
//	bits 16-30  literal, length, distance, symbol, or start of a second table
//	bit 13      literal
//	bit 14      link to a second table
//	bit 15      end of block, or no symbol at all: whatever is not for the fast path
const (
	isLiteral = 1 << 13
	isLink    = 1 << 14
	isOther   = 1 << 15
	unused    = isOther | 1<<31
)

func litlenMeaning(sym int) uint32 {
	switch {
	case sym < endOfBlock:
		return uint32(sym)<<16 | isLiteral
	case sym == endOfBlock:
		return isOther
	case sym-257 < len(lengthBase):
		return uint32(lengthBase[sym-257])<<16 | uint32(lengthExtra[sym-257])
	}
	return unused
}

func distMeaning(sym int) uint32 {
	if sym < len(distBase) {
		return uint32(distBase[sym])<<16 | uint32(distExtra[sym])
	}
	return unused
}

var litlenMeanings, distMeanings, precodeMeanings = func() (l [maxLitlen]uint32, d [maxDist]uint32, p [maxPrecode]uint32) {
	for i := range l {
		l[i] = litlenMeaning(i)
	}
	for i := range d {
		d[i] = distMeaning(i)
	}
	for i := range p {
		p[i] = uint32(i) << 16
	}
	return l, d, p
}()

// tableBits is how many bits of the input index a first table.
const (
	tableBits = 11
	maxBits   = 15
)

// table finds symbols by the next bits of the input. Codes longer than tableBits are
// in second tables behind the first one.
type table struct {
	first  [1 << tableBits]uint32
	second []uint32
}

// build makes the table of a canonical Huffman code (RFC 1951, 3.2.2) with these
// lengths. A code may be incomplete only if it has one symbol or none, as zlib has
// it; bits that are no code are unused.
func (t *table) build(lens []uint8, meanings []uint32) error {
	var count [maxBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	symbols := len(lens) - count[0]
	left := 1 << maxBits
	for l := 1; l <= maxBits; l++ {
		left -= count[l] << (maxBits - l)
		if left < 0 {
			return corrupt("a code has too many symbols of %d bits", l)
		}
	}
	if left > 0 && (symbols > 1 || symbols == 1 && count[1] != 1) {
		return corrupt("a code is incomplete")
	}
	if left > 0 {
		for i := range t.first {
			t.first[i] = unused
		}
	}
	t.second = t.second[:0]
	var next [maxBits + 2]int
	for l := 1; l <= maxBits; l++ {
		next[l+1] = (next[l] + count[l]) << 1
	}
	var longest [1 << tableBits]uint8
	long := false
	for l := tableBits + 1; l <= maxBits; l++ {
		long = long || count[l] > 0
	}
	if long { // how many bits each second table has
		code := next
		for _, l := range lens {
			if l == 0 {
				continue
			}
			c := code[l]
			code[l]++
			if l > tableBits {
				i := reverse(c, l) & (1<<tableBits - 1)
				longest[i] = max(longest[i], l-tableBits)
			}
		}
		for i, width := range longest {
			if width == 0 {
				continue
			}
			t.first[i] = isLink | uint32(width)<<8 | uint32(len(t.second))<<16
			for range 1 << width {
				t.second = append(t.second, unused)
			}
		}
	}
	for sym, l := range lens {
		if l == 0 {
			continue
		}
		c := reverse(next[l], l)
		next[l]++
		m := meanings[sym]
		m += uint32(l) | uint32(l)<<8 // extra bits are in the lowest place already
		if l <= tableBits {
			for i := c; i < 1<<tableBits; i += 1 << l {
				t.first[i] = m
			}
			continue
		}
		i := c & (1<<tableBits - 1)
		width := longest[i]
		start := int(t.first[i] >> 16)
		for j := c >> tableBits; j < 1<<width; j += 1 << (l - tableBits) {
			t.second[start+j] = m
		}
	}
	return nil
}

// reverse is a code of n bits as it comes in the input, its first bit lowest.
func reverse(code int, n uint8) int { return int(bits.Reverse16(uint16(code)) >> (16 - n)) }

// find returns the symbol that v begins with.
func (t *table) find(v uint64) uint32 {
	e := t.first[v&(1<<tableBits-1)]
	if e&isLink != 0 {
		e = t.second[e>>16+uint32(v>>tableBits)&(1<<(e>>8&31)-1)]
	}
	return e
}

// fixedTables makes the codes of RFC 1951, 3.2.6.
func (d *Decoder) fixedTables() error {
	lens := d.lens[:maxLitlen]
	for i := range lens {
		switch {
		case i < 144:
			lens[i] = 8
		case i < 256:
			lens[i] = 9
		case i < 280:
			lens[i] = 7
		default:
			lens[i] = 8
		}
	}
	if err := d.litlen.build(lens, litlenMeanings[:]); err != nil {
		return err
	}
	lens = d.lens[:maxDist]
	for i := range lens {
		lens[i] = 5
	}
	return d.dist.build(lens, distMeanings[:])
}

// dynamicTables reads the codes of a block (RFC 1951, 3.2.7).
func (d *Decoder) dynamicTables() error {
	h, err := d.take(14)
	if err != nil {
		return err
	}
	litlens, dists, pres := int(h&31)+257, int(h>>5&31)+1, int(h>>10)+4
	if litlens > 286 || dists > 30 {
		return corrupt("codes of %d and %d symbols", litlens, dists)
	}
	var pre [maxPrecode]uint8
	for _, i := range precodeTurn[:pres] {
		l, err := d.take(3)
		if err != nil {
			return err
		}
		pre[i] = uint8(l)
	}
	if err := d.precode.build(pre[:], precodeMeanings[:]); err != nil {
		return err
	}
	lens := d.lens[:litlens+dists]
	for i := 0; i < len(lens); {
		sym, err := d.symbol(&d.precode)
		if err != nil {
			return err
		}
		if sym&isOther != 0 {
			return corrupt("bits that are no code")
		}
		var l uint8
		var more, least uint
		switch v := sym >> 16; v {
		case 16:
			if i == 0 {
				return corrupt("nothing to repeat")
			}
			l, more, least = lens[i-1], 2, 3
		case 17:
			more, least = 3, 3
		case 18:
			more, least = 7, 11
		default:
			lens[i] = uint8(v)
			i++
			continue
		}
		n, err := d.take(more)
		if err != nil {
			return err
		}
		end := i + int(n) + int(least)
		if end > len(lens) {
			return corrupt("too many code lengths")
		}
		for ; i < end; i++ {
			lens[i] = l
		}
	}
	if err := d.litlen.build(lens[:litlens], litlenMeanings[:]); err != nil {
		return err
	}
	return d.dist.build(lens[litlens:], distMeanings[:])
}

// symbol takes the next symbol of a code. Extra bits are left.
func (d *Decoder) symbol(t *table) (uint32, error) {
	for d.n < maxBits && d.pos < len(d.in) { // the last code may be all that is left
		d.buf |= uint64(d.in[d.pos]) << d.n
		d.pos++
		d.n += 8
	}
	e := t.find(d.buf)
	l := uint(e >> 8 & 31)
	if e&unused == unused {
		l = 1
	}
	if l > d.n {
		return 0, ErrShort
	}
	d.buf >>= l
	d.n -= l
	return e, nil
}

// extra takes a symbol's extra bits and returns its whole value.
func (d *Decoder) extra(e uint32) (int, error) {
	v, err := d.take(uint(e&63 - e>>8&31))
	return int(e>>16) + int(v), err
}

// coded decompresses a block that is coded by the tables.
func (d *Decoder) coded(dst []byte, op int) (_ int, err error) {
	for {
		var done bool
		if op, done, err = d.fast(dst, op); done || err != nil {
			return op, err
		}
		// Near the end of the input or the output.
		e, err := d.symbol(&d.litlen)
		switch {
		case err != nil:
			return op, err
		case e&isLiteral != 0:
			dst[op] = byte(e >> 16)
			op++
		case e&unused == unused:
			return op, corrupt("bits that are no code")
		case e&isOther != 0:
			return op, nil
		default:
			if op, err = d.match(dst, op, e); err != nil {
				return op, err
			}
		}
		if op == len(dst) {
			return op, nil
		}
	}
}

// match copies what a length symbol and what follows it say.
func (d *Decoder) match(dst []byte, op int, e uint32) (int, error) {
	length, err := d.extra(e)
	if err != nil {
		return op, err
	}
	if e, err = d.symbol(&d.dist); err != nil {
		return op, err
	}
	if e&isOther != 0 {
		return op, corrupt("bits that are no code")
	}
	dist, err := d.extra(e)
	if err != nil {
		return op, err
	}
	if dist > op-d.base {
		return op, corrupt("a distance of %d at %d", dist, op-d.base)
	}
	for end := min(op+length, len(dst)); op < end; op++ {
		dst[op] = dst[op-dist]
	}
	return op, nil
}

// What the fast path needs in front of it: eight bytes of input at a time, three
// times in a turn, and room for three literals and the longest match, rounded up.
const (
	inMargin  = 24
	outMargin = 3 + 258 + 8
)

// fast decompresses until it comes near the end of the input or the output. done
// says that the block has ended.
//
// The next symbol is looked up before the match of this one is copied, so that a
// processor does both at once.
func (d *Decoder) fast(dst []byte, op int) (_ int, done bool, err error) {
	in, pos, buf, n := d.in, d.pos, d.buf, d.n
	litlen, dists := &d.litlen.first, &d.dist.first
	inEnd, outEnd := len(in)-inMargin, len(dst)-outMargin
	const mask = 1<<tableBits - 1
	if pos > inEnd || op > outEnd {
		return op, false, nil
	}
	// As many whole bytes as fit; what lies above n is what comes next anyway.
	buf |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
	pos += int(63-n) >> 3
	n |= 56
	e := litlen[buf&mask]
	for pos <= inEnd && op <= outEnd {
		if e&isLiteral != 0 {
			buf >>= e & 63
			n -= uint(e & 63)
			dst[op] = byte(e >> 16)
			op++
			e = litlen[buf&mask]
			if e&isLiteral != 0 {
				buf >>= e & 63
				n -= uint(e & 63)
				dst[op] = byte(e >> 16)
				op++
				e = litlen[buf&mask]
			}
			more := e&isLiteral != 0
			if more {
				buf >>= e & 63
				n -= uint(e & 63)
				dst[op] = byte(e >> 16)
				op++
			}
			buf |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
			pos += int(63-n) >> 3
			n |= 56
			if more {
				e = litlen[buf&mask]
				continue
			}
		}
		if e&(isLink|isOther) != 0 {
			if e&isLink != 0 {
				e = d.litlen.second[e>>16+uint32(buf>>tableBits)&(1<<(e>>8&31)-1)]
			}
			if e&unused == unused {
				err = corrupt("bits that are no code")
				break
			}
			if e&(isLiteral|isOther) != 0 {
				buf >>= e & 63
				n -= uint(e & 63)
				if e&isOther != 0 {
					done = true
					break
				}
				dst[op] = byte(e >> 16)
				op++
				buf |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
				pos += int(63-n) >> 3
				n |= 56
				e = litlen[buf&mask]
				continue
			}
		}
		// A match: at most 15+5 and 15+13 bits, of 56.
		length := int(e>>16) + int((buf&(1<<(e&63)-1))>>(e>>8&31))
		buf >>= e & 63
		n -= uint(e & 63)
		e = dists[buf&mask]
		if e&(isLink|isOther) != 0 {
			if e&isLink != 0 {
				e = d.dist.second[e>>16+uint32(buf>>tableBits)&(1<<(e>>8&31)-1)]
			}
			if e&isOther != 0 {
				err = corrupt("bits that are no code")
				break
			}
		}
		dist := int(e>>16) + int((buf&(1<<(e&63)-1))>>(e>>8&31))
		buf >>= e & 63
		n -= uint(e & 63)
		if dist > op-d.base {
			err = corrupt("a distance of %d at %d", dist, op-d.base)
			break
		}
		buf |= binary.LittleEndian.Uint64(in[pos:]) << (n & 63)
		pos += int(63-n) >> 3
		n |= 56
		e = litlen[buf&mask]

		end, from := op+length, op-dist
		switch {
		case dist >= 8:
			if length > 32 && dist >= length {
				copy(dst[op:end], dst[from:])
				break
			}
			for {
				binary.LittleEndian.PutUint64(dst[op:], binary.LittleEndian.Uint64(dst[from:]))
				if op += 8; op >= end {
					break
				}
				from += 8
			}
		case dist == 1:
			v := uint64(dst[from]) * 0x0101010101010101
			for ; op < end; op += 8 {
				binary.LittleEndian.PutUint64(dst[op:], v)
			}
		default:
			// Repeat until what is repeated is eight bytes or more.
			apart := dist
			for apart < 8 {
				apart += dist
			}
			for first := min(end, op+apart); op < first; op++ {
				dst[op] = dst[op-dist]
			}
			for ; op < end; op += 8 {
				binary.LittleEndian.PutUint64(dst[op:], binary.LittleEndian.Uint64(dst[op-apart:]))
			}
		}
		op = end
	}
	d.pos, d.buf, d.n = pos, buf, n
	return op, done, err
}

package estargz

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/lazykit/lazykit/estargz/inflate"
)

// Decode decompresses member m from its compressed bytes (the whole range of
// Member) and calls emit with each chunk in it, verified against its digest, in
// the order of Inner, until emit returns false. Chunks with index in [first, last]
// are emitted, others only skipped over. data is valid during the call only.
// Errors wrap ErrCorrupt when the bytes are at fault and name the chunk.
//
// place, unless nil, may give the memory that a chunk of size bytes is decompressed
// into, which spares a copy; nil for none. It must stay until Decode returns, and
// is what emit gets. Its contents mean nothing when emit is not called for it.
//
// A chunk without a digest (legacy stargz) is emitted as it is: the blob's own
// digest has vouched for it.
//
// Decode needs memory for one chunk and the decompressor's window (for gzip the
// member up to its last chunk, 8 MiB at most; a zstd frame says, at most 128 MiB),
// reuses both, and may run in any number of goroutines.
func (t *TOC) Decode(m uint32, compressed []byte, first, last uint32,
	place func(chunk uint32, size int64) []byte, emit func(chunk uint32, data []byte) bool) error {
	r, mFirst, mLast, err := t.member(m)
	if err != nil {
		return err
	}
	if int64(len(compressed)) != r.Size {
		return fmt.Errorf("decode member %d: %d bytes given of %d", m, len(compressed), r.Size)
	}
	first, last = max(first, mFirst), min(last, mLast)
	if first > last {
		return nil
	}
	d := decoders.Get().(*decoder)
	defer d.release()
	if err := d.choose(t, m, first, last, r.Size); err != nil {
		return err
	}
	if len(d.chosen) == 0 {
		return nil
	}
	if err := d.reset(t.format, compressed); err != nil {
		return corruptf("decode member %d at offset %d: %w", m, r.Offset, err)
	}
	for _, c := range d.chosen {
		var dst []byte
		if place != nil {
			dst = place(c.index, c.size)
		}
		data, err := d.next(c, dst)
		if err != nil {
			return corruptf("decode member %d at offset %d: chunk %d: %w", m, r.Offset, c.index, err)
		}
		if !emit(c.index, data) {
			return nil
		}
	}
	return nil
}

// chosen is a chunk that is wanted of a member.
type chosen struct {
	index       uint32
	inner, size int64
	summed      bool
	sum         [sha256.Size]byte
}

// decoder is what Decode reuses. The last chunk's bytes are kept, for the chunk after
// it may be the same one in another file.
type decoder struct {
	whole  inflate.Decoder
	src    bytes.Reader
	gz     *gzip.Reader
	zst    *zstd.Decoder
	stream io.Reader
	pos    int64 // decompressed bytes read

	// A gzip member of no great size is decompressed at once: into the place of its
	// only chunk, or to member, which has all up to an error.
	gzipped []byte // compressed; nil: read stream
	member  []byte
	err     error

	all    []byte // memory of member
	buf    []byte // for chunks that have no other place
	chunk  []byte // the last one
	chosen []chosen
}

var decoders = sync.Pool{New: func() any { return new(decoder) }}

const (
	maxWhole   = 8 << 20 // decompressed bytes of a member: more of them are read as a stream
	keptBuffer = 8 << 20 // larger ones are left to the garbage collector
	keptWindow = 8 << 20 // so are decoders of frames with a larger window
	maxWindow  = 128 << 20
	keptChosen = 64 << 10
)

// release gives the decoder back, without the bytes it was given.
func (d *decoder) release() {
	d.src.Reset(nil)
	d.stream, d.chunk, d.gzipped, d.member, d.err = nil, nil, nil, nil, nil
	if cap(d.all) > keptBuffer {
		d.all = nil
	}
	if cap(d.buf) > keptBuffer {
		d.buf = nil
	}
	if cap(d.chosen) > keptChosen {
		d.chosen = nil
	}
	decoders.Put(d)
}

// choose finds the chunks in [first, last] that lie in member m, of size
// compressed bytes, by place. What a member can't hold is refused here, before
// memory is taken for it.
func (d *decoder) choose(t *TOC, m, first, last uint32, size int64) error {
	ratio := t.format.maxRatio()
	d.chosen = d.chosen[:0]
	inOrder := true
	for c := uint64(first); c <= uint64(last); c++ {
		r, err := t.chunk(uint32(c))
		if err != nil {
			return err
		}
		if r.member() != m || r.flags()&chunkZeros != 0 {
			continue
		}
		ch := chosen{index: uint32(c), inner: int64(r.inner()), size: int64(r.size()), summed: r.flags()&chunkSummed != 0}
		if (ch.inner+ch.size)/ratio > size {
			return corruptf("chunk %d: member %d of %d bytes can't hold [%d, +%d)", c, m, size, ch.inner, ch.size)
		}
		copy(ch.sum[:], r.sum())
		if n := len(d.chosen); n > 0 && d.chosen[n-1].inner > ch.inner {
			inOrder = false
		}
		d.chosen = append(d.chosen, ch)
	}
	if !inOrder {
		slices.SortStableFunc(d.chosen, func(x, y chosen) int {
			return int(max(-1, min(1, x.inner-y.inner)))
		})
	}
	return nil
}

// reset starts the decompressor at the beginning of a member.
func (d *decoder) reset(f Format, compressed []byte) (err error) {
	d.src.Reset(compressed)
	d.pos, d.chunk = 0, nil
	if f == FormatZstdChunked {
		d.stream, err = d.zstd(compressed)
		return err
	}
	if end := d.end(); end <= maxWhole {
		d.gzipped = compressed
		if only := d.chosen[0]; len(d.chosen) > 1 || only.inner > 0 {
			d.all = slices.Grow(d.all[:0], int(end))[:end]
			var n int
			n, d.err = d.whole.Gzip(d.all, compressed)
			d.member = d.all[:n]
		}
		return nil
	}
	if d.gz == nil {
		d.gz = new(gzip.Reader)
	}
	d.stream = d.gz
	return d.gz.Reset(&d.src)
}

// end is where the last of the chosen chunks ends.
func (d *decoder) end() (end int64) {
	for _, c := range d.chosen {
		end = max(end, c.inner+c.size)
	}
	return end
}

// zstd returns a reader of the frames in compressed, which d.src reads.
func (d *decoder) zstd(compressed []byte) (io.Reader, error) {
	var h zstd.Header
	if err := h.Decode(compressed); err != nil {
		return nil, err
	}
	if max(h.WindowSize, frameWindow(h)) > keptWindow {
		z, err := newZstd()
		if err != nil {
			return nil, err
		}
		return z, z.Reset(&d.src)
	}
	if d.zst == nil {
		var err error
		if d.zst, err = newZstd(); err != nil {
			return nil, err
		}
	}
	return d.zst, d.zst.Reset(&d.src)
}

// frameWindow is the window of a frame that is one segment: its contents.
func frameWindow(h zstd.Header) uint64 {
	if h.SingleSegment {
		return h.FrameContentSize
	}
	return 0
}

// newZstd returns a decoder that starts no goroutine.
func newZstd() (*zstd.Decoder, error) {
	return zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true),
		zstd.WithDecoderMaxWindow(maxWindow))
}

// next returns the bytes of a chunk, verified; in dst, if that is not nil.
func (d *decoder) next(c chosen, dst []byte) ([]byte, error) {
	if err := d.read(c, dst); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("at %d, +%d: %w", c.inner, c.size, err)
	}
	if c.summed {
		if got := sha256.Sum256(d.chunk); got != c.sum {
			return nil, fmt.Errorf("digest is sha256:%x, the TOC says sha256:%x", got, c.sum)
		}
	}
	return d.chunk, nil
}

// read makes the bytes of a chunk the last ones.
func (d *decoder) read(c chosen, dst []byte) error {
	if size := int64(len(d.chunk)); size > 0 && size == c.size && d.pos-size == c.inner {
		if dst != nil { // the same bytes again
			copy(dst, d.chunk)
			d.chunk = dst
		}
		return nil
	}
	if c.inner < d.pos {
		return errors.New("overlaps the chunk before")
	}
	if dst == nil && d.member == nil {
		d.buf = slices.Grow(d.buf[:0], int(c.size))[:c.size]
		dst = d.buf
	}
	data, err := d.take(c, dst)
	if err != nil {
		d.chunk = nil
		return err
	}
	d.chunk, d.pos = data, c.inner+c.size
	return nil
}

// take decompresses a chunk that comes next. It returns dst, unless that is nil.
func (d *decoder) take(c chosen, dst []byte) ([]byte, error) {
	switch end := c.inner + c.size; {
	case d.gzipped == nil:
		if _, err := io.CopyN(io.Discard, d.stream, c.inner-d.pos); err != nil {
			return nil, err
		}
		_, err := io.ReadFull(d.stream, dst)
		return dst, err
	case len(d.chosen) == 1 && c.inner == 0:
		_, err := d.whole.Gzip(dst, d.gzipped)
		return dst, err
	case end > int64(len(d.member)):
		return nil, d.err
	case dst == nil:
		return d.member[c.inner:end], nil
	default:
		copy(dst, d.member[c.inner:end])
		return dst, nil
	}
}

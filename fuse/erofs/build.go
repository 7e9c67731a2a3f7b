package erofs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// ErrUnsupported is for a layer that EROFS can't show as it is.
var ErrUnsupported = errors.New("can't be an EROFS image")

// Options of Build.
type Options struct {
	Dir    string // where the file without a name is made; a local file system that is not stacked
	Opaque string // name of the attribute of opaque directories, with its value "y"
}

const (
	// BlockSize is that of images: files begin at multiples of it.
	BlockSize = 4096
	blockBits = 12

	superOffset = 1024
	superMagic  = 0xe0f5e1e2
	deviceSlot  = 9 // of 128 bytes: behind the superblock
	slotSize    = 128
	// Features: files in chunks, and extra devices.
	chunkedFile, deviceTable = 0x4, 0x8

	slot      = 32 // bytes of a nid
	inodeSize = 64
	inodeArea = BlockSize // where inodes begin
	rootNid   = inodeArea / slot

	// Data layouts of inodes, with the bit for the extended form.
	extended, flatPlain, flatInline, chunkBased = 1, 0 << 1, 2 << 1, 4 << 1

	// A file's place is said in chunks, by 8 bytes each with the number of their device.
	// stat counts a file's blocks in whole chunks, so a file has about this many.
	chunksOfFile = 16
	indexSize    = 8
	hasIndexes   = 0x20
	// dataDevice is the number of the extra device.
	dataDevice = 1

	direntSize = 12
	// largestTail is the size up to which the end of a directory lies behind its inode.
	// A larger one would waste as much of a block before it as in one of its own.
	largestTail = BlockSize / 2

	noStart = math.MaxUint32
	pairLen = 8
)

// build is an image in the making.
type build struct {
	toc  *estargz.TOC
	opts Options
	ctx  context.Context

	nids   []uint32 // by inode
	starts []uint32 // by inode: its block on the data device, noStart without
	order  []uint64 // first chunk << 32 | inode of each file that has bytes, sorted

	inodeEnd  int64  // of the inode area, whole blocks
	plain     int64  // next free byte for plain blocks
	end       int64  // of the metadata, as the kernel sees them
	dataBlock uint32 // number of blocks there
	dir       dirBlock
}

// Build writes toc's image. Errors wrap ErrUnsupported, estargz.ErrCorrupt, are those of
// ctx, or the disk's.
func Build(ctx context.Context, toc *estargz.TOC, opts Options) (_ *Image, err error) {
	b := &build{toc: toc, opts: opts, ctx: ctx, nids: make([]uint32, toc.Len()), starts: make([]uint32, toc.Len())}
	if err := b.placeFiles(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	if err := b.placeInodes(); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	f, err := nameless(opts.Dir)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err := b.write(f); err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	m, err := open(f, b)
	if err != nil {
		return nil, fmt.Errorf("image: %w", err)
	}
	return m, nil
}

// nameless makes a file in dir that goes with its last user.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "make a file without a name in", Path: dir, Err: err}
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// placeFiles gives each file that has bytes its place on the data device.
func (b *build) placeFiles() error {
	var in estargz.Inode
	for i := range b.toc.Len() {
		b.starts[i] = noStart
		if err := b.toc.Inode(i, &in); err != nil {
			return err
		}
		if in.Mode&unix.S_IFMT != unix.S_IFREG || in.Size == 0 {
			continue
		}
		first, _, err := b.toc.FileChunks(i)
		if err != nil {
			return err
		}
		b.order = append(b.order, uint64(first)<<32|uint64(i))
	}
	slices.Sort(b.order)
	next := uint64(0)
	for _, o := range b.order {
		i := uint32(o)
		if err := b.toc.Inode(i, &in); err != nil {
			return err
		}
		b.starts[i] = uint32(next)
		next += (uint64(in.Size) + BlockSize - 1) >> blockBits
		if next > math.MaxUint32-1 {
			return fmt.Errorf("%w: more than 16 TiB of files", ErrUnsupported)
		}
	}
	b.dataBlock = uint32(next)
	return b.ctx.Err()
}

// shape is what an inode takes in the inode area.
type shape struct {
	xattrs int   // bytes behind the inode
	chunks int   // bytes behind them, for a file
	size   int64 // i_size of a directory or a symlink
	tail   int   // bytes of it that may lie behind the xattrs
}

func (b *build) shape(i uint32, in *estargz.Inode) (s shape, err error) {
	if s.xattrs, err = b.xattrSize(i, in); err != nil {
		return s, err
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		n, _ := chunksOf(in.Size)
		s.chunks = n * indexSize
	case unix.S_IFLNK:
		target, err := b.toc.Symlink(i)
		if err != nil {
			return s, err
		}
		s.size, s.tail = int64(len(target)), len(target)
	case unix.S_IFDIR:
		if s.size, err = b.directory(i, in, nil); err != nil {
			return s, err
		}
		if tail := int(s.size % BlockSize); tail <= largestTail {
			s.tail = tail
		}
	}
	return s, nil
}

// chunksOf returns how many chunks a file of a size has, and the base 2 logarithm of
// their size in blocks.
func chunksOf(size int64) (n, bits int) {
	for bits = 0; size > chunksOfFile<<(blockBits+bits) && bits < 31-blockBits; bits++ {
	}
	return int((size + 1<<(blockBits+bits) - 1) >> (blockBits + bits)), bits
}

// position returns where an inode is put that may begin at pos, and whether its tail
// lies behind it. Neither an inode nor a tail crosses the end of a block.
func (s shape) position(pos int64) (at int64, inline bool) {
	if BlockSize-pos%BlockSize < inodeSize {
		pos = roundUp(pos, BlockSize)
	}
	if s.tail == 0 {
		return pos, false
	}
	behind := inodeSize + int64(s.xattrs)
	fits := func(pos int64) bool { return (pos+behind)%BlockSize+int64(s.tail) <= BlockSize }
	if fits(pos) {
		return pos, true
	}
	if next := roundUp(pos, BlockSize); fits(next) {
		return next, true
	}
	return pos, false
}

// end of an inode at a position.
func (s shape) end(at int64, inline bool) int64 {
	at += inodeSize + int64(s.xattrs)
	if s.chunks > 0 {
		at = roundUp(at, indexSize) + int64(s.chunks)
	}
	if inline {
		at += int64(s.tail)
	}
	return roundUp(at, slot)
}

// blocks is how many bytes of plain blocks the inode needs.
func (s shape) blocks(inline bool) int64 {
	if inline {
		return s.size - int64(s.tail)
	}
	return roundUp(s.size, BlockSize)
}

func roundUp(n, to int64) int64 { return (n + to - 1) / to * to }

// placeInodes gives each inode its place in the inode area.
func (b *build) placeInodes() error {
	var in estargz.Inode
	pos, blocks := int64(inodeArea), int64(0)
	for i := range b.toc.Len() {
		if i%4096 == 0 && b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		if err := b.toc.Inode(i, &in); err != nil {
			return err
		}
		s, err := b.shape(i, &in)
		if err != nil {
			return err
		}
		at, inline := s.position(pos)
		b.nids[i] = uint32(at / slot)
		pos = s.end(at, inline)
		blocks += s.blocks(inline)
		if pos > math.MaxUint32 || blocks > math.MaxUint32*8 {
			return fmt.Errorf("%w: too much metadata", ErrUnsupported)
		}
	}
	b.inodeEnd = roundUp(pos, BlockSize)
	b.plain, b.end = b.inodeEnd, b.inodeEnd+blocks
	return nil
}

// write writes everything.
func (b *build) write(f *os.File) error {
	inodes := &section{w: bufio.NewWriterSize(io.NewOffsetWriter(f, 0), 1<<18)}
	blocks := &section{w: bufio.NewWriterSize(io.NewOffsetWriter(f, b.inodeEnd), 1<<18), pos: b.inodeEnd}
	inodes.write(b.super())
	var in estargz.Inode
	for i := range b.toc.Len() {
		if i%4096 == 0 && b.ctx.Err() != nil {
			return context.Cause(b.ctx)
		}
		if err := b.toc.Inode(i, &in); err != nil {
			return err
		}
		if err := b.inode(i, &in, inodes, blocks); err != nil {
			return err
		}
	}
	inodes.pad(b.inodeEnd)
	blocks.pad(b.end)
	b.tables(blocks)
	return errors.Join(inodes.flush(), blocks.flush())
}

// section is a part of the file that is written from its beginning to its end.
type section struct {
	w   *bufio.Writer // keeps the first error
	pos int64
}

var zeros [BlockSize]byte

// write goes on after an error, which flush returns: everything has its place.
func (s *section) write(p []byte) {
	_, _ = s.w.Write(p)
	s.pos += int64(len(p))
}

// pad writes zeros up to a position.
func (s *section) pad(to int64) {
	for s.pos < to {
		s.write(zeros[:min(to-s.pos, BlockSize)])
	}
}

func (s *section) flush() error { return s.w.Flush() }

// super is the first block.
func (b *build) super() []byte {
	block := make([]byte, inodeArea)
	le := binary.LittleEndian
	sb := block[superOffset:]
	le.PutUint32(sb, superMagic)
	sb[12] = blockBits
	le.PutUint16(sb[14:], rootNid)
	le.PutUint64(sb[16:], uint64(b.toc.Len()))
	le.PutUint32(sb[36:], uint32(b.end>>blockBits))
	// meta_blkaddr and xattr_blkaddr stay 0: a nid counts from the beginning of the file.
	if b.dataBlock > 0 {
		le.PutUint32(sb[80:], chunkedFile|deviceTable)
		le.PutUint16(sb[86:], 1)
		le.PutUint16(sb[88:], deviceSlot)
		dev := block[deviceSlot*slotSize:]
		copy(dev, "data")
		le.PutUint32(dev[64:], b.dataBlock)
	}
	return block
}

// inode writes one inode with what lies behind it, and its blocks.
func (b *build) inode(i uint32, in *estargz.Inode, inodes, blocks *section) error {
	s, err := b.shape(i, in)
	if err != nil {
		return err
	}
	at, inline := s.position(inodes.pos)
	if at != int64(b.nids[i])*slot {
		return fmt.Errorf("inode %d is at %d and was to be at %d: %w", i, at, int64(b.nids[i])*slot, estargz.ErrCorrupt)
	}
	inodes.pad(at)
	format, size, u := uint16(extended|flatPlain), s.size, uint32(0)
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if size = in.Size; size > 0 {
			_, bits := chunksOf(size)
			format, u = extended|chunkBased, uint32(hasIndexes|bits)
		}
	case unix.S_IFDIR, unix.S_IFLNK:
		u = uint32(blocks.pos >> blockBits)
		if inline {
			format = extended | flatInline
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		u = in.Rdev
	}
	count := 0
	if s.xattrs > 0 {
		count = (s.xattrs-xattrHeader)/4 + 1
	}
	le := binary.LittleEndian
	var head [inodeSize]byte
	le.PutUint16(head[0:], format)
	le.PutUint16(head[2:], uint16(count))
	le.PutUint16(head[4:], uint16(in.Mode))
	le.PutUint64(head[8:], uint64(size))
	le.PutUint32(head[16:], u)
	le.PutUint32(head[20:], i+1)
	le.PutUint32(head[24:], in.UID)
	le.PutUint32(head[28:], in.GID)
	le.PutUint64(head[32:], uint64(in.Mtime))
	le.PutUint32(head[40:], in.MtimeNsec)
	le.PutUint32(head[44:], max(in.Nlink, 1))
	inodes.write(head[:])
	if err := b.xattrs(i, in, inodes); err != nil {
		return err
	}
	switch in.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		b.chunks(i, in.Size, inodes)
	case unix.S_IFLNK:
		target, err := b.toc.Symlink(i)
		if err != nil {
			return err
		}
		if inline {
			inodes.write(target)
		} else {
			blocks.write(target)
		}
	case unix.S_IFDIR:
		whole := s.size / BlockSize * BlockSize
		_, err := b.directory(i, in, func(block []byte, pos int64) {
			if inline && pos >= whole {
				inodes.write(block)
			} else {
				blocks.write(block)
			}
		})
		if err != nil {
			return err
		}
	}
	blocks.pad(roundUp(blocks.pos, BlockSize))
	inodes.pad(roundUp(inodes.pos, slot))
	return nil
}

// chunks writes where the chunks of a file lie.
func (b *build) chunks(i uint32, size int64, s *section) {
	n, bits := chunksOf(size)
	if n > 0 {
		s.pad(roundUp(s.pos, indexSize))
	}
	for c := range n {
		var index [indexSize]byte
		binary.LittleEndian.PutUint16(index[2:], dataDevice)
		binary.LittleEndian.PutUint32(index[4:], b.starts[i]+uint32(c)<<bits)
		s.write(index[:])
	}
}

// directory makes the blocks of a directory, of which all but the last are whole, and
// returns how many bytes they are. emit, which may be nil, does not keep the block.
func (b *build) directory(i uint32, in *estargz.Inode, emit func(block []byte, pos int64)) (int64, error) {
	parent, err := b.toc.Parent(i)
	if err != nil {
		return 0, err
	}
	d := &b.dir
	d.begin(emit)
	dot, dotdot := false, false
	for n := range in.Entries {
		name, child, err := b.toc.Entry(i, n)
		if err != nil {
			return 0, err
		}
		// Names are in order, and these two are among them.
		if !dot && bytes.Compare(name, dotName) > 0 {
			dot = true
			d.add(dotName, b.nids[i], typeDir)
		}
		if !dotdot && bytes.Compare(name, dotdotName) > 0 {
			dotdot = true
			d.add(dotdotName, b.nids[parent], typeDir)
		}
		var c estargz.Inode
		if err := b.toc.Inode(child, &c); err != nil {
			return 0, err
		}
		if len(name) > 255 {
			return 0, fmt.Errorf("%w: a name of %d bytes", ErrUnsupported, len(name))
		}
		d.add(name, b.nids[child], typeOf(c.Mode))
	}
	if !dot {
		d.add(dotName, b.nids[i], typeDir)
	}
	if !dotdot {
		d.add(dotdotName, b.nids[parent], typeDir)
	}
	return d.end(), nil
}

const typeDir = 2

var dotName, dotdotName = []byte("."), []byte("..")

// typeOf is the file type of a mode, as directory entries have it.
func typeOf(mode uint32) byte {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return 1
	case unix.S_IFDIR:
		return typeDir
	case unix.S_IFCHR:
		return 3
	case unix.S_IFBLK:
		return 4
	case unix.S_IFIFO:
		return 5
	case unix.S_IFSOCK:
		return 6
	case unix.S_IFLNK:
		return 7
	}
	return 0
}

// dirBlock collects entries for one block of a directory: their records first, then
// their names.
type dirBlock struct {
	emit    func(block []byte, pos int64)
	pos     int64
	n, used int
	records [BlockSize]byte
	names   [BlockSize]byte
	nameLen int
}

func (d *dirBlock) begin(emit func(block []byte, pos int64)) {
	d.emit, d.pos, d.n, d.used, d.nameLen = emit, 0, 0, 0, 0
}

func (d *dirBlock) add(name []byte, nid uint32, kind byte) {
	if d.used+direntSize+len(name) > BlockSize {
		d.flush(BlockSize)
	}
	r := d.records[d.n*direntSize:]
	binary.LittleEndian.PutUint64(r, uint64(nid))
	binary.LittleEndian.PutUint16(r[8:], uint16(d.nameLen)) // from where names begin, so far
	r[10], r[11] = kind, 0
	d.nameLen += copy(d.names[d.nameLen:], name)
	d.n++
	d.used += direntSize + len(name)
}

// flush ends a block, which is filled up to size.
func (d *dirBlock) flush(size int) {
	if d.emit != nil {
		heads := d.n * direntSize
		for i := range d.n {
			r := d.records[i*direntSize+8:]
			binary.LittleEndian.PutUint16(r, binary.LittleEndian.Uint16(r)+uint16(heads))
		}
		copy(d.records[heads:], d.names[:d.nameLen])
		clear(d.records[d.used:size])
		d.emit(d.records[:size], d.pos)
	}
	d.pos += int64(size)
	d.n, d.used, d.nameLen = 0, 0, 0
}

func (d *dirBlock) end() int64 {
	d.flush(d.used)
	d.emit = nil
	return d.pos
}

// tables writes what Image looks up.
func (b *build) tables(s *section) {
	var pair [pairLen]byte
	for _, o := range b.order {
		i := uint32(o)
		binary.LittleEndian.PutUint32(pair[:], b.starts[i])
		binary.LittleEndian.PutUint32(pair[4:], i)
		s.write(pair[:])
	}
	for _, start := range b.starts {
		binary.LittleEndian.PutUint32(pair[:], start)
		s.write(pair[:4])
	}
}

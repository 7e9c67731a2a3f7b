package fuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/fuse/erofs"
)

// A layer may also be shown by the kernel's EROFS: the tree is an image on the disk
// (package erofs), and only the bytes of files are ours, all in one file of the mount
// Root/d. So a walk sends no message at all, and what a scan will read can be put into
// the kernel's page cache a megabyte at a time, whichever files it belongs to, since the
// kernel always knows that one file.
//
// The page cache keeps such bytes twice, once for the image's files and once for the
// file that they lie in; the second are not used again and go first.

// ErrNoImages is for a kernel that can't show layers as EROFS images from a file.
var ErrNoImages = errors.New("no EROFS images here")

// noReadAhead, in bytes, is less than a page: the kernel asks for one page of Root/d at
// a time. Its read-ahead would see one large file, of which reading small ones in order
// is reading on, and ask for neighbours that nobody wants. What else there is of a file in
// memory is put into the page cache before the page is handed over (storeAround), so
// that a file is one READ and one store, and nothing depends on guesses of the kernel.
const noReadAhead = 1

// images is what shows layers as EROFS.
type images struct {
	root  string    // mount points are below it
	first sync.Once // try
	err   atomic.Pointer[error]
}

// sweepBelow detaches what an earlier process left below dir, and makes it.
func sweepBelow(dir string) (int, error) {
	// The kernel lists mounts by their real paths.
	real, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if errors.Is(err, os.ErrNotExist) {
		return 0, os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return 0, err
	}
	left, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(real, filepath.Base(dir))))
	if err != nil {
		return 0, fmt.Errorf("list mounts: %w", err)
	}
	n := 0
	for _, m := range left {
		gone, err := detach(m.Mountpoint)
		if n += gone; err != nil {
			return n, err
		}
		os.Remove(m.Mountpoint) // or else it is used again
	}
	tries, _ := filepath.Glob(filepath.Join(dir, tryPrefix+"*"))
	for _, t := range tries {
		os.RemoveAll(t)
	}
	return n, os.MkdirAll(dir, 0o700)
}

// AddImage shows a layer as the image that was made of its TOC. The error wraps
// ErrNoImages where the kernel does not do that, or Options.Images is not set, or pages are
// larger than an image's blocks, of which a READ would want several files: then
// there is Add. The directory answers exactly for extended attributes. It keeps a hold
// on img until it is removed; the same content and image may be added more than once.
func (s *Server) AddImage(c Content, img *erofs.Image) (*Dir, error) {
	if s.data == nil {
		return nil, ErrNoImages
	}
	if err := s.images.refused(); err != nil {
		return nil, err
	}
	toc, err := c.Acquire()
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, err)
	}
	defer c.Release()
	if !img.Hold() {
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, errClosed)
	}
	d, err := s.addDir(&Dir{m: s.data, image: img}, c)
	if err != nil {
		img.Release()
		return nil, err
	}
	if _, err = d.settle(toc); err == nil {
		err = s.show(d)
	}
	if err != nil {
		d.Remove()
		return nil, fmt.Errorf("layer %s: %w", c.Status().Digest, err)
	}
	return d, nil
}

// Images says whether AddImage may work.
func (s *Server) Images() bool { return s.data != nil && s.images.refused() == nil }

func (i *images) refused() error {
	if err := i.err.Load(); err != nil {
		return *err
	}
	return nil
}

// show mounts a layer's image.
func (s *Server) show(d *Dir) error {
	at := filepath.Join(s.images.root, d.name())
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	option := ""
	if d.image.DataSize() > 0 {
		option = "device=" + filepath.Join(d.m.path, d.name())
	}
	err := unix.Mount(d.image.Path(), at, "erofs", unix.MS_RDONLY, option)
	if err == nil {
		d.shown.Store(&at)
	} else {
		os.Remove(at)
		err = fmt.Errorf("mount image: %w", err)
	}
	if d.ctx.Err() != nil { // Close may not have seen it
		d.hide()
		return context.Cause(d.ctx)
	}
	// Once images work they do: a later mount may fail for want of memory, say, which
	// concerns its layer alone.
	s.images.first.Do(func() { s.images.try(s.data, at, err) })
	return errors.Join(s.images.refused(), err)
}

// try finds out from the first image, and the error of its mount, whether there will be any.
func (i *images) try(m *mount, at string, err error) {
	if err == nil {
		err = nest(at, i.root)
	}
	if err == nil {
		return
	}
	err = fmt.Errorf("%w: %w", ErrNoImages, err)
	m.log.WithError(err).Info("layers are served by FUSE alone")
	i.err.Store(&err)
}

// tryPrefix begins the name of nest's directory, which sweepBelow removes when this process
// was killed meanwhile.
const tryPrefix = "try"

// nest tries whether a build step could mount an overlay on its own root. Some kernels
// count an image in a file as one level of stacked file systems, and take no third.
func nest(image, tmp string) error {
	dir, err := os.MkdirTemp(tmp, tryPrefix)
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	below := image
	for _, name := range []string{"1", "2"} {
		at, empty := filepath.Join(dir, name), filepath.Join(dir, "empty"+name)
		if err := errors.Join(os.Mkdir(at, 0o700), os.Mkdir(empty, 0o700)); err != nil {
			return err
		}
		if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+empty+":"+below); err != nil {
			return fmt.Errorf("an overlay on an overlay on it: %w", err)
		}
		defer detach(at)
		below = at
	}
	return nil
}

// hide takes the image's mount away.
func (d *Dir) hide() {
	shown := d.shown.Load()
	if shown == nil {
		return
	}
	if _, err := detach(*shown); err != nil {
		d.m.log.WithError(err).Error("image stays mounted")
	}
	os.Remove(*shown)
}

// dataAttr is what stat says of the file that has a layer's bytes.
func (d *Dir) dataAttr(out *gofuse.Attr) {
	size := uint64(d.image.DataSize())
	*out = gofuse.Attr{
		Ino: d.ownInos, Mode: unix.S_IFREG | 0o400, Nlink: 1,
		Size: size, Blocks: size / 512, Blksize: blockSize,
	}
}

// readData answers a READ of that file, which may touch several files of the layer.
func (d *Dir) readData(r *request, index uint32, buf []byte, off uint64) (int, error) {
	if index != estargz.Root {
		return 0, errNoNode
	}
	h, err := d.acquire(r)
	if err != nil {
		return 0, err
	}
	defer h.content.Release()
	if !d.image.Hold() {
		return 0, errRemoved
	}
	defer d.image.Release()
	size := uint64(d.image.DataSize())
	if off >= size {
		return 0, nil
	}
	want := int(min(uint64(len(buf)), size-off))
	for n := 0; n < want; {
		m, err := d.readFile(r, h, buf[n:want], int64(off)+int64(n))
		if err != nil {
			return 0, err
		}
		n += m
	}
	return want, nil
}

// readFile fills buf from the one file that lies at off, and with zeros behind its end
// up to where the next one begins.
func (d *Dir) readFile(r *request, h hold, buf []byte, off int64) (int, error) {
	index, start, next, ok := d.image.File(off)
	if !ok {
		return 0, fmt.Errorf("no file at %d of %d bytes: %w", off, d.image.DataSize(), estargz.ErrCorrupt)
	}
	buf = buf[:min(int64(len(buf)), next-off)]
	var in estargz.Inode
	if err := h.inode(index, &in); err != nil {
		return 0, err
	}
	own := int(min(max(in.Size-(off-start), 0), int64(len(buf))))
	if own > 0 {
		if err := d.fill(r, h, index, buf[:own], off-start); err != nil {
			return 0, fmt.Errorf("inode %d: %w", index, err)
		}
		d.storeAround(h.content, index, off-start+int64(own)-1, in.Size)
	}
	clear(buf[own:])
	return len(buf), nil
}

// storeNow is how much is put into the page cache before a READ is answered: what EROFS
// reads ahead of a file. The rest of a large chunk follows behind the reader's back.
const storeNow = 128 << 10

// storeAround puts the chunk that holds byte off of a file, the last one of a READ, into
// the page cache: what follows the READ before it returns, and the rest of it once.
//
// Two READs can wait for each other's pages here only in the order of the file: each
// stores behind its own, so that the last one waits for nobody. What lies before a READ
// is stored by a goroutine that no READ waits for.
func (d *Dir) storeAround(c Content, index uint32, off, size int64) {
	w, ok := c.(Whole)
	if !ok || size <= blockSize {
		return
	}
	p, ok := w.Whole(index, off, blockSize+1, 0)
	if !ok {
		return
	}
	end := p.Off + int64(len(p.Data))
	lo := min((off/blockSize+1)*blockSize, end)
	hi := min(lo+storeNow, end)
	start, ok := d.image.Start(index)
	if !ok {
		p.Release()
		return
	}
	d.storeData(start, p.part(lo, hi), size)
	if p.Again || hi == end && lo-p.Off <= blockSize {
		p.Release()
		return
	}
	done := func() {
		p.Release()
		d.m.storing.Add(-1)
	}
	if d.m.storing.Add(1) > storeAtOnce || !d.m.owned.start(func() {
		defer done()
		d.storeData(start, p.part(hi, end), size)
		d.storeData(start, p.part(p.Off, lo), size)
	}) {
		done()
	}
}

// part is what of p lies between two offsets of its file. The caller releases p.
func (p Piece) part(lo, hi int64) Piece { return Piece{Off: lo, Data: p.Data[lo-p.Off : hi-p.Off]} }

// storeData puts whole blocks of a file of size bytes, which begins at start, into the
// page cache of the file that has the layer's bytes, and what p has of its last block.
func (d *Dir) storeData(start int64, p Piece, size int64) {
	node := nodeID(d.number, estargz.Root)
	data, off := wholePages(p.Data, p.Off, size, false)
	if len(data) > 0 && !d.notifyStore(node, start+off, data) {
		return
	}
	end := p.Off + int64(len(p.Data))
	tail := end % blockSize
	if end != size || tail == 0 || end-tail < p.Off {
		return
	}
	block := make([]byte, blockSize)
	copy(block, p.Data[int64(len(p.Data))-tail:])
	d.notifyStore(node, start+end-tail, block)
}

// Part is a part of a file that is in memory and verified.
type Part struct {
	Inode uint32
	Off   int64
	Data  []byte
}

// storeMost is the most that one message to the kernel has of StoreAhead.
const storeMost = 1 << 20

// StoreAhead puts parts of files of a layer that is shown as an image into the page
// cache before anybody asks for them, neighbours together. It keeps nothing of parts, and
// may wait for READs under way of the same parts. False: the kernel did not take it all.
func (d *Dir) StoreAhead(parts []Part) bool {
	if d.image == nil || !d.image.Hold() {
		return false
	}
	defer d.image.Release()
	c := d.content.Load()
	if c == nil {
		return false
	}
	toc, err := c.Acquire()
	if err != nil {
		return false
	}
	defer c.Release()
	buf := runBuffers.Get().(*[]byte)
	defer runBuffers.Put(buf)
	run := dataRun{d: d, off: -1, data: (*buf)[:0]}
	for _, p := range parts {
		var in estargz.Inode
		start, ok := d.image.Start(p.Inode)
		if !ok || toc.Inode(p.Inode, &in) != nil {
			continue
		}
		if !run.add(start+p.Off, p.Data, p.Off+int64(len(p.Data)) == in.Size) {
			return false
		}
	}
	return run.flush()
}

// runBuffers are for dataRun: as much as a message has, and the end of a file's block.
var runBuffers = sync.Pool{New: func() any {
	b := make([]byte, 0, storeMost+blockSize)
	return &b
}}

// dataRun collects bytes that follow one another on the data device.
type dataRun struct {
	d    *Dir
	off  int64
	data []byte
}

// storeDirect is the least that is stored without being collected.
const storeDirect = 128 << 10

// add appends bytes at off; with the end of a file its last block is filled up.
func (r *dataRun) add(off int64, data []byte, end bool) bool {
	if off != r.off+int64(len(r.data)) || len(r.data)+min(len(data), storeDirect) > storeMost {
		if !r.flush() {
			return false
		}
		skip := (blockSize - off%blockSize) % blockSize // the block's beginning is another chunk's
		if skip >= int64(len(data)) {
			r.off = -1
			return true
		}
		r.off, data = off+skip, data[skip:]
	}
	if len(data) >= storeDirect {
		fill := min((blockSize-len(r.data)%blockSize)%blockSize, len(data))
		r.data = append(r.data, data[:fill]...)
		data = data[fill:]
		next := r.off + int64(len(r.data))
		if !r.flush() {
			return false
		}
		r.off = next
		for len(data) >= blockSize {
			n := min(len(data)/blockSize*blockSize, storeMost)
			if !r.d.notifyStore(nodeID(r.d.number, estargz.Root), r.off, data[:n]) {
				return false
			}
			r.off, data = r.off+int64(n), data[n:]
		}
	}
	r.data = append(r.data, data...)
	if end {
		r.data = append(r.data, make([]byte, (blockSize-len(r.data)%blockSize)%blockSize)...)
	}
	return true
}

// flush stores whole blocks.
func (r *dataRun) flush() bool {
	whole := len(r.data) / blockSize * blockSize
	ok := whole == 0 || r.d.notifyStore(nodeID(r.d.number, estargz.Root), r.off, r.data[:whole])
	r.data = r.data[:0]
	return ok
}

package estargz

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Compile checks the entries and writes the compact form (see Open) to a new
// file at path: temporary file, then rename, so that path is either as it was or
// whole; nothing is synced, as the file's checksum finds what a crash may leave.
// See the package comment for what it costs.
//
// Nothing is written unless the TOC is the one whose digest the manifest carries: of the JSON
// for the gzip formats, and for zstd:chunked of the compressed TOC or, where
// only eStargz' annotation is there, of the JSON (both bind every byte that
// is read here). Otherwise the error wraps ErrMismatch. Every chunk must have a digest.
//
// Errors of the TOC's contents wrap ErrCorrupt and name the entry; others are
// those of ctx and of the file system.
func (u *Unverified) Compile(ctx context.Context, want digest.Digest, path string) error {
	if err := want.Validate(); err != nil {
		return corruptf("TOC digest %q: %w", string(want), err)
	}
	if want.Algorithm() != digest.SHA256 {
		return corruptf("TOC digest %s: digest algorithm %s is not supported", want, want.Algorithm())
	}
	known := u.toc.vouchedBy(want)
	b, got, err := build(ctx, &u.toc, false)
	if err != nil {
		return u.toc.blame(ctx, want, known, err)
	}
	if !known && got != want {
		return mismatchf("TOC has digest %s, the manifest says %s", got, want)
	}
	return b.compile(ctx, path)
}

// blame finds out whose fault an error of a TOC's contents is: these bytes', which are not those
// that the manifest names, or the manifest's.
func (s *source) blame(ctx context.Context, want digest.Digest, known bool, cause error) error {
	if known {
		return cause
	}
	got, err := s.jsonDigest(ctx)
	switch {
	case ctx.Err() != nil: // it is not known, then
		return fmt.Errorf("read TOC: %w", context.Cause(ctx))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrMismatch, err)
	case got != want:
		return mismatchf("TOC has digest %s, the manifest says %s", got, want)
	}
	return cause
}

// CompileByBlob is Compile for a blob that was fetched whole and whose digest the
// caller has verified (legacy stargz, or no TOC digest in the manifest). The
// chunks of such a TOC may lack digests: nothing but the blob's own bytes
// may be served through it. An external TOC is not a part of the blob, and refused.
func (u *Unverified) CompileByBlob(ctx context.Context, path string) error {
	if u.toc.loc.Format == FormatEStargzExtern {
		return corruptf("external TOC: the blob's digest does not vouch for it")
	}
	b, _, err := build(ctx, &u.toc, true)
	if err != nil {
		return err
	}
	return b.compile(ctx, path)
}

func (b *builder) compile(ctx context.Context, path string) error {
	t, err := b.number()
	if err != nil {
		return b.toc.readError(ctx, err)
	}
	return t.writeFile(path)
}

func (t *tables) writeFile(path string) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("compile TOC: %w", err)
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(f.Name())
			err = fmt.Errorf("compile TOC: %w", err)
		}
	}()
	if err := t.write(f); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

// write writes the tables behind a hole for the header, then the header.
func (t *tables) write(f *os.File) error {
	if _, err := f.Seek(headerSize, io.SeekStart); err != nil {
		return err
	}
	sum := crc32.New(castagnoli)
	w := &recordWriter{w: io.MultiWriter(f, sum), buf: make([]byte, 0, recordBuffer+strPage)}
	t.writeInodes(w)
	t.writeChunks(w)
	t.writeMembers(w)
	t.writeNames(w)
	for _, page := range t.strs.pages[:max(0, len(t.strs.pages)-1)] {
		w.bytes(page[:strPage]) // full but for a few bytes
	}
	if n := len(t.strs.pages); n > 0 {
		w.bytes(t.strs.pages[n-1])
	}
	if err := w.flush(); err != nil {
		return err
	}
	hdr := t.header.encode()
	t.header.checksum = crc32.Update(sum.Sum32(), castagnoli, hdr[:headerSums])
	binary.LittleEndian.PutUint32(hdr[headerSums:], t.header.checksum)
	_, err := f.WriteAt(hdr, 0)
	return err
}

func (t *tables) writeInodes(w *recordWriter) {
	for i := range t.order.n {
		p := t.inodes.at(*t.order.at(i))
		a := p.a
		if p.mode&unix.S_IFMT == unix.S_IFREG {
			a = p.chunk
		}
		w.u32(p.mode, p.uid, p.gid, p.nlink, p.rdev, p.mtimeNsec)
		w.u64(uint64(p.mtime), uint64(p.size))
		w.u32(a, p.b, p.xattr, p.xattrs, p.flags&inodeOpaque, p.parent)
	}
}

func (t *tables) writeChunks(w *recordWriter) {
	t.reachable(func(p *protoInode) error {
		for i := range p.b {
			c := t.files.chunks.at(p.a + i)
			flags := uint32(0)
			if c.zeros {
				flags |= chunkZeros
			}
			if c.summed {
				flags |= chunkSummed
			}
			w.u64(uint64(c.fileOffset), uint64(c.size), uint64(c.inner))
			w.u32(c.member, flags)
			w.bytes(c.sum[:])
		}
		return nil
	})
}

func (t *tables) writeMembers(w *recordWriter) {
	for _, m := range t.members {
		w.u64(uint64(m.offset), uint64(m.end-m.offset))
		w.u32(m.first, m.last, m.file)
	}
}

func (t *tables) writeNames(w *recordWriter) {
	for i := range t.dirents.n {
		d := t.dirents.at(i)
		w.u32(d.name.off, d.name.len, d.inode)
	}
	for i := range t.xattrs.n {
		x := t.xattrs.at(i)
		w.u32(x.name.off, x.name.len, x.value.off, x.value.len)
	}
}

// encode returns the header's bytes; the checksum is 0.
func (h *header) encode() []byte {
	b := append(make([]byte, 0, headerSize), fileMagic...)
	le := binary.LittleEndian
	b = le.AppendUint32(b, fileVersion)
	b = append(b, byte(h.format), h.flags, 0, 0)
	for _, v := range []int64{h.blobSize, h.prefetch, h.fileBytes} {
		b = le.AppendUint64(b, uint64(v))
	}
	for _, v := range []uint32{h.files, h.inodes, h.chunks, h.members, h.dirents, h.xattrs} {
		b = le.AppendUint32(b, v)
	}
	b = le.AppendUint64(b, h.strings)
	b = le.AppendUint64(b, h.fileSize)
	return b[:headerSize]
}

// recordWriter writes little-endian numbers; its first error stays.
type recordWriter struct {
	w   io.Writer
	buf []byte
	err error
}

const recordBuffer = 64 << 10

func (w *recordWriter) u32(vs ...uint32) {
	for _, v := range vs {
		w.buf = binary.LittleEndian.AppendUint32(w.buf, v)
	}
	w.spill()
}

func (w *recordWriter) u64(vs ...uint64) {
	for _, v := range vs {
		w.buf = binary.LittleEndian.AppendUint64(w.buf, v)
	}
	w.spill()
}

func (w *recordWriter) bytes(b []byte) {
	w.buf = append(w.buf, b...)
	w.spill()
}

// spill writes what was gathered, when it is enough.
func (w *recordWriter) spill() {
	if len(w.buf) >= recordBuffer {
		w.flush()
	}
}

func (w *recordWriter) flush() error {
	if w.err == nil {
		_, w.err = w.w.Write(w.buf)
	}
	w.buf = w.buf[:0]
	return w.err
}

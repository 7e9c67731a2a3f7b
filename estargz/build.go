package estargz

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// builder makes a tree and a chunk table of a TOC's entries, which it is given
// in order.
type builder struct {
	*tree
	toc    *source
	byBlob bool
	files  *files

	count    int64 // entries so far
	prefetch int64
	path     [][]byte

	xattrs slab[xattrRef]
	lists  map[string]uint32 // an inode's attributes, serialised -> the first of them
	links  slab[link]        // hard links whose target was not there yet
}

func newBuilder(toc *source, byBlob bool) *builder {
	return &builder{
		tree:   newTree(),
		toc:    toc,
		byBlob: byBlob,
		files:  newFiles(toc, byBlob),
		lists:  map[string]uint32{},
	}
}

// build reads the whole TOC, and finds the digest of its document.
func build(ctx context.Context, toc *source, byBlob bool) (*builder, digest.Digest, error) {
	r, err := toc.open(ctx)
	if err != nil {
		return nil, "", err
	}
	defer r.Close()
	h := sha256.New()
	p := newPump(r, h)
	b, err := buildFrom(ctx, p, toc, byBlob)
	p.stop()
	if err != nil {
		return nil, "", err
	}
	return b, digest.NewDigest(digest.SHA256, h), nil // done has seen the end
}

// buildFrom reads a TOC's document from r.
func buildFrom(ctx context.Context, r io.Reader, toc *source, byBlob bool) (*builder, error) {
	b := newBuilder(toc, byBlob)
	if err := readTOC(newJSONReader(r), b.add); err != nil {
		return nil, toc.readError(ctx, err)
	}
	if err := b.files.end(); err != nil {
		return nil, toc.readError(ctx, err)
	}
	if err := b.makeLinks(); err != nil {
		return nil, toc.readError(ctx, err)
	}
	return b, nil
}

// add takes the next entry.
func (b *builder) add(e *entry) error {
	if b.count++; b.count > b.toc.lim.Entries {
		return limitf("more than %d entries", b.toc.lim.Entries)
	}
	if e.typ != typeChunk {
		if err := b.files.end(); err != nil {
			return err // it is about the entry before
		}
	}
	if err := b.addEntry(e); err != nil {
		return entryError(e.name, err)
	}
	return nil
}

func (b *builder) addEntry(e *entry) (err error) {
	if e.typ == typeChunk {
		return b.files.chunk(e)
	}
	if b.path, err = splitPath(b.path[:0], e.name); err != nil {
		return err
	}
	kind, base, err := classify(b.path)
	if err != nil {
		return err
	}
	switch kind {
	case nameRoot:
		if e.typ == typeDir {
			return b.setAttrs(Root, e)
		}
		if e.typ == typeHardlink || e.typ == typeSymlink {
			return errors.New("link in place of the root")
		}
		return b.skipFile(e)
	case namePrefetch:
		if e.typ == typeReg {
			b.prefetch = e.offset
		}
		return b.skipFile(e)
	case nameDropped:
		return b.skipFile(e)
	}
	dir, err := b.parents(b.path[:len(b.path)-1])
	if err != nil {
		return err
	}
	switch kind {
	case nameOpaque:
		b.inodes.at(dir).flags |= inodeOpaque
		return b.skipFile(e)
	case nameWhiteout:
		if err := b.addWhiteout(dir, base, e); err != nil {
			return err
		}
		return b.skipFile(e)
	}
	return b.addReal(dir, base, e)
}

// skipFile checks the chunks of an entry that is not a part of the tree: they
// mark where members of others end.
func (b *builder) skipFile(e *entry) error {
	if e.typ != typeReg {
		return nil
	}
	return b.files.begin(e, nil)
}

func (b *builder) addWhiteout(dir uint32, name []byte, e *entry) error {
	uid, gid, err := owner(e)
	if err != nil {
		return err
	}
	i := b.inodes.add(protoInode{
		mode: unix.S_IFCHR, uid: uid, gid: gid, mtime: e.mtime, mtimeNsec: e.mtimeNsec, flags: inodeWhiteout,
	})
	_, err = b.put(dir, name, i)
	return err
}

func (b *builder) addReal(dir uint32, name []byte, e *entry) error {
	var p protoInode
	switch e.typ {
	case typeHardlink:
		return b.addLink(dir, name, e)
	case typeDir:
		p.mode, p.parent, p.b = unix.S_IFDIR, dir, b.inodes.at(dir).b+1
		if p.b > maxDepth {
			return limitf("directories nested deeper than %d", maxDepth)
		}
	case typeReg:
		p.mode = unix.S_IFREG
	case typeSymlink:
		target, err := b.symlink(e.linkName)
		if err != nil {
			return err
		}
		p.mode, p.a, p.b, p.size = unix.S_IFLNK, target.off, target.len, int64(target.len)
	case typeChar, typeBlock:
		rdev, err := device(e.major, e.minor)
		if err != nil {
			return err
		}
		p.rdev, p.mode = rdev, unix.S_IFCHR
		if e.typ == typeBlock {
			p.mode = unix.S_IFBLK
		}
	case typeFifo:
		p.mode = unix.S_IFIFO
	}
	i, err := b.put(dir, name, b.inodes.add(p))
	if err != nil {
		return err
	}
	if err := b.setAttrs(i, e); err != nil {
		return err
	}
	if e.typ == typeReg {
		return b.files.begin(e, b.inodes.at(i))
	}
	return nil
}

// setAttrs gives an inode the attributes of an entry, and adds the entry's
// extended attributes to the ones it has.
func (b *builder) setAttrs(i uint32, e *entry) error {
	uid, gid, err := owner(e)
	if err != nil {
		return err
	}
	p := b.inodes.at(i)
	p.uid, p.gid, p.mtime, p.mtimeNsec = uid, gid, e.mtime, e.mtimeNsec
	perm := uint32(e.mode) & 0o7777
	if p.mode&unix.S_IFMT == unix.S_IFLNK {
		perm = 0o777
	}
	p.mode = p.mode&unix.S_IFMT | perm
	if len(e.xattrs) > 0 {
		return b.setXattrs(p, e)
	}
	return nil
}

func owner(e *entry) (uid, gid uint32, err error) {
	for _, id := range []int64{e.uid, e.gid} {
		if id < 0 || id >= math.MaxUint32 {
			return 0, 0, fmt.Errorf("owner %d:%d", e.uid, e.gid)
		}
	}
	return uint32(e.uid), uint32(e.gid), nil
}

// device encodes a device number as the kernel's new_encode_dev does, which is
// what FUSE carries: 12 bits of major, 20 of minor.
func device(major, minor int64) (uint32, error) {
	if major < 0 || major >= 1<<12 || minor < 0 || minor >= 1<<20 {
		return 0, fmt.Errorf("device %d:%d", major, minor)
	}
	return uint32(minor&0xff | major<<8 | (minor&^0xff)<<12), nil
}

func (b *builder) symlink(target []byte) (strRef, error) {
	switch {
	case len(target) == 0:
		return strRef{}, errors.New("symlink without a target")
	case len(target) > maxSymlink:
		return strRef{}, limitf("symlink to %d bytes", len(target))
	case bytes.IndexByte(target, 0) >= 0:
		return strRef{}, errors.New("symlink to a NUL byte")
	}
	return b.strs.add(target)
}

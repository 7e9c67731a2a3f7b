package estargz

import (
	"bytes"
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// xattrRef is an extended attribute of an inode: offsets into the string table.
type xattrRef struct{ name, value strRef }

// sharedLists is how many different sets of attributes are remembered to be
// shared: images have a handful; a hostile one shall not have a map of millions.
const sharedLists = 4096

// setXattrs makes the attributes of p those it has with those of e, which win.
func (b *builder) setXattrs(p *protoInode, e *entry) error {
	list := make([]xattrRef, 0, int(p.xattrs)+len(e.xattrs))
	for i := range p.xattrs {
		list = append(list, *b.xattrs.at(p.xattr + i))
	}
	kind := p.mode & unix.S_IFMT
	for _, x := range e.xattrs {
		name := e.xattrName(x)
		if bytes.HasPrefix(name, []byte("user.")) && kind != unix.S_IFREG && kind != unix.S_IFDIR {
			continue
		}
		ref, err := b.xattrRef(name, e.xattrValue(x))
		if err != nil {
			return err
		}
		if i := slices.IndexFunc(list, func(o xattrRef) bool { return o.name == ref.name }); i >= 0 {
			list[i] = ref
		} else {
			list = append(list, ref)
		}
	}
	slices.SortFunc(list, func(x, y xattrRef) int {
		return bytes.Compare(b.strs.get(x.name), b.strs.get(y.name))
	})
	return b.keepXattrs(p, list)
}

func (b *builder) xattrRef(name, value []byte) (x xattrRef, err error) {
	if x.name, err = b.strs.add(name); err != nil {
		return x, err
	}
	x.value, err = b.strs.add(value)
	return x, err
}

// keepXattrs stores a list, once for all inodes that have the same.
func (b *builder) keepXattrs(p *protoInode, list []xattrRef) error {
	size := 0
	key := make([]byte, 0, 16*len(list))
	for _, x := range list {
		size += int(x.name.len) + 1
		for _, v := range []uint32{x.name.off, x.name.len, x.value.off, x.value.len} {
			key = binary.LittleEndian.AppendUint32(key, v)
		}
	}
	if size > maxXattrList {
		return limitf("names of xattrs are %d bytes", size)
	}
	first, ok := b.lists[string(key)]
	if !ok {
		if int64(b.xattrs.n)+int64(len(list)) > 4*b.toc.lim.Entries {
			return limitf("more than %d xattrs", 4*b.toc.lim.Entries)
		}
		first = b.xattrs.n
		for _, x := range list {
			b.xattrs.add(x)
		}
		if len(b.lists) < sharedLists {
			b.lists[string(key)] = first
		}
	}
	p.xattr, p.xattrs = first, uint32(len(list))
	return nil
}

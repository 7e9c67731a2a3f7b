package estargz

import (
	"bytes"
	"fmt"
	"slices"
	"sort"

	"golang.org/x/sys/unix"
)

// tables is what the compact file is written from: a builder's tree and chunks
// with their final numbers.
type tables struct {
	*builder
	header  header
	order   slab[uint32] // final inode number -> inode of the tree
	dirents slab[dirent]
	members []member
}

// dirent is a directory entry; inode is the final number.
type dirent struct {
	name  strRef
	inode uint32
}

// member is a compressed part of the blob and the chunks in it.
type member struct {
	offset, end int64
	first, last uint32 // chunks, final numbers
	file        uint32 // of the first chunk, final number
	reach       int64  // decompressed bytes that the chunks so far need
	prev        int64  // where the last of them begins
}

// number gives the inodes that can be reached their numbers, breadth first, so
// that the children of a directory lie together; then the chunks and members
// that their files need. It uses up the builder, giving back what it no longer
// needs on the way.
func (b *builder) number() (*tables, error) {
	t := &tables{builder: b}
	t.table, t.strs.slots = nil, nil // nothing is looked up any more
	t.assign(Root)
	var names []uint32
	for i := uint32(0); i < t.order.n; i++ {
		dir := t.inodes.at(*t.order.at(i))
		if dir.mode&unix.S_IFMT == unix.S_IFDIR {
			names = t.numberDir(dir, i, names[:0])
		}
	}
	t.nodes = slab[node]{}
	if err := t.numberChunks(); err != nil {
		return nil, err
	}
	t.fillHeader()
	return t, nil
}

// assign gives inode i of the tree the next number.
func (t *tables) assign(i uint32) uint32 {
	n := t.order.add(i)
	t.inodes.at(i).final = n + 1
	return n
}

// numberDir numbers a directory's children, in the order of names, and makes
// its entries. names is scratch.
func (t *tables) numberDir(dir *protoInode, number uint32, names []uint32) []uint32 {
	for n := dir.a; n != 0; n = t.nodes.at(n - 1).next {
		names = append(names, n-1)
	}
	slices.SortFunc(names, func(x, y uint32) int {
		return bytes.Compare(t.strs.get(t.nodes.at(x).name), t.strs.get(t.nodes.at(y).name))
	})
	dir.a, dir.b = t.dirents.n, uint32(len(names))
	dir.nlink = 2
	for _, n := range names {
		node := t.nodes.at(n)
		child := t.inodes.at(node.inode)
		if child.final == 0 {
			t.assign(node.inode)
			child.parent = number
		}
		if child.mode&unix.S_IFMT == unix.S_IFDIR {
			dir.nlink++
		} else {
			child.nlink++
		}
		t.dirents.add(dirent{node.name, child.final - 1})
	}
	return names
}

// reachable calls f with each file that is in the tree and has chunks, in the
// order of its chunks.
func (t *tables) reachable(f func(p *protoInode) error) error {
	for i := range t.inodes.n {
		p := t.inodes.at(i)
		if p.final != 0 && p.mode&unix.S_IFMT == unix.S_IFREG && p.b > 0 {
			if err := f(p); err != nil {
				return err
			}
		}
	}
	return nil
}

// numberChunks moves each file's chunks to their final numbers and finds the
// members that they need.
func (t *tables) numberChunks() error {
	bounds := t.sortedBounds()
	members := make([]member, len(bounds))
	chunk, disorder := uint32(0), false
	digests := true
	err := t.reachable(func(p *protoInode) error {
		for i := range p.b {
			c := t.files.chunks.at(p.a + i)
			if c.zeros {
				continue
			}
			digests = digests && c.summed
			at, _ := slices.BinarySearch(bounds, c.offset)
			c.member = uint32(at)
			m := &members[at]
			if m.end == 0 {
				m.offset, m.end, m.first, m.file = c.offset, t.files.dataEnd, chunk+i, p.final-1
				if at+1 < len(bounds) {
					m.end = bounds[at+1]
				}
			}
			// A chunk may be in two files, but not lie across another.
			if c.inner < m.reach && (c.inner != m.prev || c.inner+c.size != m.reach) {
				disorder = true
			}
			m.last, m.prev, m.reach = chunk+i, c.inner, max(m.reach, c.inner+c.size)
		}
		p.chunk = chunk
		chunk += p.b
		return nil
	})
	if err != nil {
		return err
	}
	t.header.chunks = chunk
	if digests {
		t.header.flags |= headerDigests
	}
	if disorder {
		if err := t.checkOverlap(); err != nil {
			return err
		}
	}
	return t.keepMembers(members)
}

// sortedBounds returns the offsets at which members begin or end, once each.
func (t *tables) sortedBounds() []int64 {
	f := t.files
	bounds := make([]int64, 0, f.bounds.n)
	for i := range f.bounds.n {
		bounds = append(bounds, *f.bounds.at(i))
	}
	f.bounds = slab[int64]{}
	if !f.sorted {
		slices.Sort(bounds)
	}
	return slices.Compact(bounds)
}

// checkOverlap looks at all chunks by place, where the TOC is not in the order
// of the blob. Chunks of one member may be the same, never partly.
func (t *tables) checkOverlap() error {
	var all []*protoChunk
	t.reachable(func(p *protoInode) error {
		for i := range p.b {
			if c := t.files.chunks.at(p.a + i); !c.zeros {
				all = append(all, c)
			}
		}
		return nil
	})
	sort.Slice(all, func(i, j int) bool {
		x, y := all[i], all[j]
		if x.member != y.member {
			return x.member < y.member
		}
		if x.inner != y.inner {
			return x.inner < y.inner
		}
		return x.size < y.size
	})
	for i := 1; i < len(all); i++ {
		x, y := all[i-1], all[i]
		if x.member == y.member && x.inner+x.size > y.inner && (x.inner != y.inner || x.size != y.size) {
			return fmt.Errorf("chunks overlap in the member at offset %d: [%d, +%d) and [%d, +%d)",
				x.offset, x.inner, x.size, y.inner, y.size)
		}
	}
	return nil
}

// keepMembers numbers the members that chunks need, and checks that each is
// large enough for what it is said to hold.
func (t *tables) keepMembers(members []member) error {
	final := make([]uint32, len(members))
	t.members = members[:0] // in place
	ratio := t.toc.loc.Format.maxRatio()
	for i := range members {
		m := members[i]
		if m.end == 0 {
			continue
		}
		switch size := m.end - m.offset; {
		case m.reach/ratio > size:
			return fmt.Errorf("member of %d bytes at offset %d can't hold %d", size, m.offset, m.reach)
		case size > t.toc.lim.MemberBytes:
			return limitf("member of %d bytes at offset %d, at most %d are read", size, m.offset, t.toc.lim.MemberBytes)
		}
		final[i] = uint32(len(t.members))
		t.members = append(t.members, m)
	}
	return t.reachable(func(p *protoInode) error {
		for i := range p.b {
			if c := t.files.chunks.at(p.a + i); c.zeros {
				c.member = noMember
			} else {
				c.member = final[c.member]
			}
		}
		return nil
	})
}

func (t *tables) fillHeader() {
	h := &t.header
	h.format, h.blobSize = t.toc.loc.Format, t.toc.blobSize
	if t.prefetch > 0 && t.prefetch <= t.files.dataEnd {
		h.prefetch = t.prefetch
	}
	for i := range t.order.n {
		p := t.inodes.at(*t.order.at(i))
		if p.xattrs > 0 || p.flags&inodeOpaque != 0 {
			h.flags |= headerXattrs
		}
		if p.mode&unix.S_IFMT == unix.S_IFREG {
			h.files++
			h.fileBytes += min(p.size, maxFileSize-h.fileBytes) // saturates
		}
	}
	h.inodes, h.members, h.dirents, h.xattrs = t.order.n, uint32(len(t.members)), t.dirents.n, t.xattrs.n
	h.strings = t.strs.size()
	h.fileSize = h.size()
}

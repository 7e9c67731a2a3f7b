package fuse

import (
	"fmt"
	"sync"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// A READ brings 128 KiB of a file at most, and a chunk, which can be decompressed as a
// whole only, has up to 4 MiB. A program that reads here and there in many large files,
// a linker say, comes back to a chunk long after it was pushed out of memory: go build
// had the same chunks decompressed three times over. So what a READ did not ask for of a
// large chunk is put into the kernel's page cache too (NOTIFY_STORE), where there is more
// room, and is not asked for again.

const (
	// storeLeast is the size of the smallest chunk that is stored; of smaller ones a READ
	// or two bring everything.
	storeLeast = 2 * maxRead
	// storeAtOnce bounds the goroutines that store, each of which holds a chunk.
	storeAtOnce = 2
)

// Piece is a part of a file that is in memory and verified.
type Piece struct {
	Off     int64
	Data    []byte // not changed until Release
	Again   bool   // Whole has returned it before, since it got there
	Release func() // called once
}

// Whole is what a Content may also be: one that knows of a READ that all around it is
// in memory as well.
type Whole interface {
	// Whole returns the chunk of a regular file that holds byte off, when it has at
	// least least bytes and is in memory, once each time that it gets there; false
	// otherwise. Within margin of where a neighbour begins whose bytes are not on this
	// machine it leaves bytes out. It never blocks. Called between Acquire and Release,
	// which does not end the piece.
	Whole(inode uint32, off, least, margin int64) (Piece, bool)
}

// storeRest puts the rest of the chunk that holds byte off of a file, of which something
// was read, into the kernel's page cache, behind the caller's back.
//
// The kernel waits for pages that a READ under way is to fill. The margin keeps it from
// waiting for the network so: a READ of any stored page is answered from memory.
func (d *Dir) storeRest(c Content, index uint32, off, size int64) {
	w, ok := c.(Whole)
	if !ok || size < storeLeast {
		return
	}
	if d.m.storing.Add(1) > storeAtOnce {
		d.m.storing.Add(-1)
		return // the next READ of it tries again
	}
	p, ok := w.Whole(index, off, storeLeast, maxRead)
	if !ok {
		d.m.storing.Add(-1)
		return
	}
	end := func() {
		p.Release()
		d.m.storing.Add(-1)
	}
	if p.Again {
		end()
		return
	}
	if !d.m.owned.start(func() { defer end(); d.store(index, p, size) }) {
		end()
	}
}

// store puts whole pages of a file of size bytes into the kernel's cache.
func (d *Dir) store(index uint32, p Piece, size int64) {
	data, off := wholePages(p.Data, p.Off, size, clearsTails())
	d.notifyStore(nodeID(d.number, index), off, data)
}

// notifyStore puts data into the kernel's cache, unless the layer has gone.
func (d *Dir) notifyStore(node uint64, off int64, data []byte) bool {
	if len(data) == 0 || d.ctx.Err() != nil || d.m.closing.Load() {
		return false
	}
	// The kernel may have forgotten the file meanwhile, or be out of memory: then it
	// asks again.
	if d.m.server.InodeNotifyStoreCache(node, off, data) != gofuse.OK {
		return false
	}
	d.m.counts[opStore].Add(1)
	return true
}

// wholePages is what of data, at offset off, fills pages; tails says that the last page
// of the file may be filled in part.
func wholePages(data []byte, off, size int64, tails bool) ([]byte, int64) {
	page := int64(unix.Getpagesize())
	lo, hi := (off+page-1)/page*page, off+int64(len(data))
	if hi != size || !tails {
		hi = hi / page * page
	}
	if hi <= lo {
		return nil, 0
	}
	return data[lo-off : hi-off], lo
}

// clearsTails says whether the kernel clears what lies behind the end of a stored file
// in its last page, which programs that map the file would see. Linux does since
// 6.11 (3c0da3d163eb, "fuse: Initialize beyond-EOF page contents before setting
// uptodate"); stable versions of older ones that have the fix don't all say so.
var clearsTails = sync.OnceValue(func() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	return isSince(unix.ByteSliceToString(u.Release[:]), 6, 11)
})

// isSince says whether a kernel's release is of a version or a later one.
func isSince(release string, major, minor int) bool {
	var a, b int
	if n, _ := fmt.Sscanf(release, "%d.%d", &a, &b); n < 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

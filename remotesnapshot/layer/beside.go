package layer

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// What will be read next, and is in memory, can be handed out before it is asked for:
// what a scan comes to, and what a profile says.
const (
	// besideFiles is how many members are looked at for a file that was read,
	// besideSize the size of the largest file that is handed out, and besideBytes that
	// of all of them: a reader that takes long for them should not look idle.
	besideFiles = 32
	besideSize  = 128 << 10
	besideBytes = 512 << 10
	// besidePause without a read of a scan ends that.
	besidePause = 100 * time.Millisecond
)

// Walked says whether a scan, or a step with a profile, is under way. It costs nothing.
func (l *Layer) Walked() bool {
	return l.replaying.Load() != nil || time.Now().UnixNano()-l.scanned.Load() < int64(besidePause)
}

// Beside calls give with files that will be read next, now that inode was: behind it in
// the order of the blob, in its directory, of one chunk each. Of a scan those are all,
// as long as their chunks are in memory and give takes them; of a profile those that
// it names. They count as read. Call it between Acquire and Release.
func (l *Layer) Beside(inode uint32, give func(inode uint32, data []byte) (taken bool)) {
	dir, err := l.toc.Parent(inode)
	if err != nil {
		return
	}
	c, n, err := l.toc.FileChunks(inode)
	var last estargz.Chunk
	if err != nil || n == 0 || l.toc.Chunk(c+n-1, &last) != nil {
		return
	}
	scan, u := l.walks.goesOn(last.Member), l.replaying.Load()
	if !scan && u == nil {
		return
	}
	room := int64(besideBytes)
	for m := last.Member + 1; m <= last.Member+besideFiles && room > 0 && l.ctx.Err() == nil; m++ {
		file, err := l.toc.MemberFile(m)
		if err != nil {
			return
		}
		if d, err := l.toc.Parent(file); err != nil || d != dir {
			return
		}
		if !scan && !u.expects(m) {
			continue
		}
		size, taken := l.giveFile(file, give)
		if size >= 0 && !taken || scan && size < 0 {
			return
		}
		room -= max(size, 0)
	}
}

// expects says whether a member was decompressed because of the profile, and is not
// read yet.
func (u *unpacking) expects(member uint32) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	_, ok := u.waiting[member]
	return ok
}

// giveFile hands out one file, if it can be and its contents are in memory; else the
// size is negative.
func (l *Layer) giveFile(file uint32, give func(uint32, []byte) bool) (size int64, taken bool) {
	var node estargz.Inode
	var chunk estargz.Chunk
	c, n, err := l.toc.FileChunks(file)
	if err != nil || n != 1 || l.toc.Inode(file, &node) != nil || l.toc.Chunk(c, &chunk) != nil ||
		node.Mode&unix.S_IFMT != unix.S_IFREG || node.Size > besideSize || chunk.Size != node.Size || chunk.Zeros ||
		l.recorders.hasFailed(chunk.Member) { // only a read can take that back
		return -1, false
	}
	b := l.pool.cache.get(chunkKey{l.id, c})
	if b == nil {
		return -1, false
	}
	defer b.release()
	if int64(len(b.data)) != node.Size {
		return -1, false
	}
	if !give(file, b.data) {
		return node.Size, false
	}
	l.watch(file, 0)
	l.recorders.note(chunk.Member)
	if u := l.replaying.Load(); u != nil {
		u.read(chunk.Member)
	}
	if l.wishes.takeDecoded(chunk.Member) {
		l.used(chunk.Member)
	}
	return node.Size, true
}

// goesOn says whether a complete scan has come to member m last.
func (w *walks) goesOn(m uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i := range w.mu.list {
		if x := &w.mu.list[i]; x.id > 0 && x.scan && x.last == m {
			return x.complete()
		}
	}
	return false
}

package layer

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
)

// ErrReadTimeout ends reads that waited for longer than Options.ReadTimeout.
var ErrReadTimeout = errors.New("bytes did not arrive in time")

// ReadAt fills dst from byte off of regular file inode, up to the end of the
// file: n < len(dst) with a nil error only there. It blocks until the bytes are
// there and verified, ctx ends, the deadline passes, the layer closes, or reading
// them has failed for good. Bytes of dst beyond n are undefined after an error.
// Call it between Acquire and Release.
func (l *Layer) ReadAt(ctx context.Context, inode uint32, dst []byte, off int64) (n int, err error) {
	end := l.stats.begin()
	defer func() { end(err) }()

	var node estargz.Inode
	if err := l.toc.Inode(inode, &node); err != nil {
		return 0, fmt.Errorf("layer %s: %w", l.blob.Digest(), err)
	}
	if node.Mode&unix.S_IFMT != unix.S_IFREG || off < 0 {
		return 0, fmt.Errorf("layer %s: inode %d, offset %d: %w", l.blob.Digest(), inode, off, unix.EINVAL)
	}
	if off >= node.Size || len(dst) == 0 {
		return 0, nil
	}
	dst = dst[:min(int64(len(dst)), node.Size-off)]
	l.watch(inode, off)
	if n, err = l.readChunks(ctx, inode, dst, off); err == nil {
		l.readAhead(inode, off, n, node.Size)
	}
	return n, err
}

// readChunks fills all of dst from chunk after chunk.
func (l *Layer) readChunks(ctx context.Context, inode uint32, dst []byte, off int64) (n int, err error) {
	c, err := l.toc.FindChunk(inode, off)
	if err != nil {
		return 0, fmt.Errorf("layer %s: %w", l.blob.Digest(), err)
	}
	for ; n < len(dst); c++ {
		var chunk estargz.Chunk
		if err := l.toc.Chunk(c, &chunk); err != nil {
			return n, fmt.Errorf("layer %s: %w", l.blob.Digest(), err)
		}
		skip := off + int64(n) - chunk.FileOffset
		if skip < 0 || skip >= chunk.Size {
			return n, fmt.Errorf("layer %s: inode %d: chunk %d does not hold byte %d: %w",
				l.blob.Digest(), inode, c, off+int64(n), estargz.ErrCorrupt)
		}
		part := dst[n:min(int64(len(dst)), int64(n)+chunk.Size-skip)]
		if err := l.readChunk(ctx, c, &chunk, part, skip, len(dst)-n); err != nil {
			return n, err
		}
		n += len(part)
	}
	return n, nil
}

// readChunk fills part from byte skip of chunk c. ahead is how many bytes the
// read wants from here on, those of later chunks included.
func (l *Layer) readChunk(ctx context.Context, c uint32, chunk *estargz.Chunk, part []byte, skip int64, ahead int) error {
	if chunk.Zeros {
		clear(part)
		return nil
	}
	l.recorders.note(chunk.Member)
	if u := l.replaying.Load(); u != nil {
		u.read(chunk.Member)
	}
	err := l.readBytes(ctx, c, chunk, part, skip, ahead)
	if ctx.Err() == nil { // a caller that left has met no error
		l.recorders.outcome(chunk.Member, err)
	}
	return err
}

// readBytes is readChunk for chunks that are stored.
func (l *Layer) readBytes(ctx context.Context, c uint32, chunk *estargz.Chunk, part []byte, skip int64, ahead int) error {
	if b := l.pool.cache.get(chunkKey{l.id, c}); b != nil {
		defer b.release()
		if int64(len(b.data)) != chunk.Size {
			return fmt.Errorf("layer %s: chunk %d has %d bytes instead of %d: %w", l.blob.Digest(), c, len(b.data), chunk.Size, estargz.ErrCorrupt)
		}
		copy(part, b.data[skip:])
		if l.wishes.takeDecoded(chunk.Member) {
			l.used(chunk.Member)
		}
		return nil
	}
	n := need{chunk: c, size: chunk.Size, member: chunk.Member, upTo: l.lastMember(c, chunk, skip+int64(ahead))}
	copied := -1
	err := l.load(ctx, n, func(data []byte) { copied = copy(part, data[min(skip, int64(len(data))):]) })
	if err == nil && copied != len(part) {
		err = fmt.Errorf("layer %s: chunk %d is too short: %w", l.blob.Digest(), c, estargz.ErrCorrupt)
	}
	return err
}

// lastMember returns the member of the last chunk that a read needs which wants
// n bytes from the beginning of chunk c, as far as members only grow.
func (l *Layer) lastMember(c uint32, chunk *estargz.Chunk, n int64) uint32 {
	last := chunk.Member
	var next estargz.Chunk
	for n -= chunk.Size; n > 0; n -= next.Size {
		c++
		if l.toc.Chunk(c, &next) != nil || next.Size <= 0 {
			break
		}
		if !next.Zeros && next.Member > last {
			last = next.Member
		}
	}
	return last
}

func withTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if d < 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, d, ErrReadTimeout)
}

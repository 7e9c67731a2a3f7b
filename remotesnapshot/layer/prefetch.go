package layer

import (
	"context"
	"time"
)

// aheadStep is how much the background asks for at once: enough to keep a
// connection busy, small enough to get out of the way soon.
const aheadStep = 4 << 20

// Prefetch starts, at its first call, the work that runs while the layer is in
// use: it fetches the beginning of the blob up to the landmark (or PrefetchSize
// bytes), then, with BackgroundFetch, all of it in the pauses between reads. It
// returns at once; Close ends the work.
func (l *Layer) Prefetch() {
	l.prefetchOnce.Do(func() {
		end := l.prefetchEnd()
		if end == 0 && !l.pool.opts.BackgroundFetch || l.blob.Local() {
			return
		}
		l.start(func() {
			if l.prefetch(l.ctx, end) == nil && l.pool.opts.BackgroundFetch {
				l.background(l.ctx)
			}
		})
	})
}

// prefetchEnd is the offset of the blob up to which it is fetched ahead.
func (l *Layer) prefetchEnd() int64 {
	end := l.toc.PrefetchEnd()
	if end == 0 {
		end = l.pool.opts.PrefetchSize
	}
	return min(end, l.toc.BlobSize())
}

func (l *Layer) prefetch(ctx context.Context, end int64) error {
	for off := int64(0); off < end; off += aheadStep {
		size := min(aheadStep, end-off)
		if l.blob.Present(off, size) {
			continue
		}
		if err := l.blob.Fetch(ctx, Prefetch, off, size); err != nil {
			return err
		}
		l.stats.prefetched.Add(size)
	}
	return nil
}

// background makes the layer local. What fails is tried again after a pause that
// grows up to a minute: nobody waits for it.
func (l *Layer) background(ctx context.Context) {
	pause := l.pool.opts.IdleTime
	for off := int64(0); off < l.toc.BlobSize(); {
		if !l.awaitIdle(ctx) {
			return
		}
		size := min(aheadStep, l.toc.BlobSize()-off)
		if !l.blob.Present(off, size) {
			if err := l.blob.Fetch(ctx, Background, off, size); err != nil {
				if !sleep(ctx, pause) {
					return
				}
				pause = min(2*pause, time.Minute)
				continue
			}
			l.stats.prefetched.Add(size)
		}
		off, pause = off+size, l.pool.opts.IdleTime
	}
	l.stats.fail(l.blob.Complete(ctx, Background))
}

// awaitIdle waits for a pause between reads. False when ctx ends first.
func (l *Layer) awaitIdle(ctx context.Context) bool {
	for !l.stats.idle(l.pool.opts.IdleTime) {
		if !sleep(ctx, l.pool.opts.IdleTime/2) {
			return false
		}
	}
	return ctx.Err() == nil
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

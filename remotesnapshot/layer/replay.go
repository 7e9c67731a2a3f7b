package layer

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"
)

// knownMisses is how often a reader may wait for what no replay brings before names
// are looked for again: the profile is not right any more.
const knownMisses = 8

// Replay fetches ranges behind the caller's back, all at once and the first ones
// first: somebody knows that they will be read. It stops when ctx or the layer
// ends. What fails is left to the reads that need it. Until ctx ends nothing is
// fetched because a file names it, unless reads show that something was left out.
//
// Of the ranges in order, what was absent is decompressed as it comes: that will be
// read in about this order, and a step that waits for the network leaves processors
// to it.
func (l *Layer) Replay(ctx context.Context, ranges, order []Range) {
	if _, err := l.Acquire(); err != nil {
		return // closed meanwhile
	}
	defer l.Release()
	var coming []uint32
	l.guarded(func() { coming = l.absentMembers(order) })
	ranges = slices.DeleteFunc(slices.Clone(ranges), func(r Range) bool {
		return r.Off < 0 || r.Size <= 0 || r.Off >= l.toc.BlobSize() || l.blob.Present(r.Off, r.Size)
	})
	if len(ranges) == 0 {
		return
	}
	l.known.Store(knownMisses)
	context.AfterFunc(ctx, func() { l.known.Store(0) })
	var size int64
	var done []func()
	for _, r := range ranges {
		size += r.Size
		done = append(done, l.windows.start(span{r.Off, r.Off + r.Size}))
	}
	land := func() {
		for _, d := range done {
			d()
		}
	}
	started := l.start(func() {
		defer land()
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(l.ctx, cancel)()
		if l.blob.FetchAll(ctx, Prefetch, ranges) == nil {
			l.stats.prefetched.Add(size)
		}
	})
	if !started {
		land()
		return
	}
	l.unpackReplay(ctx, coming)
}

// replayAhead bounds the bytes that are decompressed and that nobody has read yet; the
// cache has 32 MiB.
const replayAhead = 12 << 20

// replayLook is how many members of a replay are looked at for one that is present.
const replayLook = 512

// replayPoll is how often they are looked at, while none is.
const replayPoll = 3 * time.Millisecond

// unpacking is the part of a replay that decompresses.
type unpacking struct {
	mu      sync.Mutex
	rest    []uint32         // members that are still to come, in the order of need
	waiting map[uint32]int64 // bytes of those that nobody has read yet
	bytes   int64            // sum of them
	moved   time.Time        // when one was taken or read last
}

// absentMembers lists members in the order of ranges, those that need a request.
func (l *Layer) absentMembers(ranges []Range) (list []uint32) {
	for _, r := range ranges {
		if r.Off < 0 || r.Size <= 0 {
			continue
		}
		n, err := l.toc.FindMember(r.Off)
		for ; err == nil && len(list) < maxRecorded; n++ {
			m, merr := l.toc.Member(n)
			if merr != nil || m.Offset >= r.Off+r.Size {
				break
			}
			if !l.blob.Present(m.Offset, m.Size) {
				list = append(list, n)
			}
		}
	}
	return list
}

// unpackReplay decompresses members as they come, until ctx or the layer ends. Of
// two replays at a time one does.
func (l *Layer) unpackReplay(ctx context.Context, members []uint32) {
	u := &unpacking{rest: members, waiting: make(map[uint32]int64), moved: time.Now()}
	if len(members) == 0 || !l.replaying.CompareAndSwap(nil, u) {
		return
	}
	started := l.start(func() {
		defer l.replaying.Store(nil)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(l.ctx, cancel)()
		var workers sync.WaitGroup
		for range runtime.GOMAXPROCS(0) {
			workers.Go(func() { l.unpackComing(ctx, u) })
		}
		workers.Wait()
	})
	if !started {
		l.replaying.Store(nil)
	}
}

func (l *Layer) unpackComing(ctx context.Context, u *unpacking) {
	tick := time.NewTicker(replayPoll)
	defer tick.Stop()
	for {
		n, ok, more := u.next(l)
		if !more {
			return
		}
		if ok {
			if done, _ := l.unpackMember(n); done {
				continue
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// next takes the first member that is present and that there is room for. more is
// false when none is left.
func (u *unpacking) next(l *Layer) (n uint32, ok, more bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.bytes > replayAhead && time.Since(u.moved) > cacheIdle {
		// They were forgotten meanwhile.
		clear(u.waiting)
		u.bytes = 0
	}
	if u.bytes > replayAhead {
		return 0, false, len(u.rest) > 0
	}
	for i, n := range u.rest[:min(len(u.rest), replayLook)] {
		m, err := l.toc.Member(n)
		if err == nil && !l.blob.Present(m.Offset, m.Size) {
			continue
		}
		u.dropLocked(i)
		_, size, _ := l.unpacked(n)
		u.waiting[n] = size
		u.bytes += size
		u.moved = time.Now()
		return n, true, true
	}
	return 0, false, len(u.rest) > 0
}

// read takes note of a read: what was read needs no room, and what was read before it
// was decompressed is not to be.
func (u *unpacking) read(member uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if size, ok := u.waiting[member]; ok {
		delete(u.waiting, member)
		u.bytes -= size
		u.moved = time.Now()
		return
	}
	if i := slices.Index(u.rest[:min(len(u.rest), replayLook)], member); i >= 0 {
		u.dropLocked(i)
	}
}

// dropLocked takes member i, one of the first, out of the rest.
func (u *unpacking) dropLocked(i int) {
	copy(u.rest[1:i+1], u.rest[:i])
	u.rest = u.rest[1:]
}

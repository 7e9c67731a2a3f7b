package fuse

import (
	"errors"
	"fmt"
	"maps"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"

	"github.com/containerd/log"
	gofuse "github.com/hanwen/go-fuse/v2/fuse"
)

// mount is one FUSE mount and the layers in it. It answers the kernel's requests
// (gofuse.RawFileSystem) from its files lookup.go, readdir.go, read.go, xattr.go
// and refuse.go; what none of them has is ENOSYS.
type mount struct {
	gofuse.RawFileSystem

	path   string
	plain  bool   // GETXATTR is answered ENOSYS
	opaque string // name of the attribute of opaque directories

	readAhead int // of the kernel, in bytes; 0: its default
	log       *log.Entry
	counts    counters
	owned     *tasks // the goroutines that outlive a call

	storing atomic.Int32 // goroutines that do, see storeRest

	server  *gofuse.Server
	device  uint32        // of the mount, as fusectl names its connection
	served  chan struct{} // closed when no request is under way and none will come
	closing atomic.Bool

	// layers is replaced as a whole, so that requests read it without a lock.
	layers atomic.Pointer[map[uint32]*Dir]
	mu     struct {
		sync.Mutex
		last uint32 // number of the newest layer
		inos inoSpace
	}
}

func newMount(path string, plain bool, opaque string, l *log.Entry, owned *tasks) *mount {
	m := &mount{
		RawFileSystem: gofuse.NewDefaultRawFileSystem(),
		path:          path,
		plain:         plain,
		opaque:        opaque,
		log:           l.WithField("mount", path),
		owned:         owned,
		served:        make(chan struct{}),
	}
	m.layers.Store(&map[uint32]*Dir{})
	return m
}

// dir is the directory of a layer number, nil for one that is not served.
func (m *mount) dir(layer uint32) *Dir { return (*m.layers.Load())[layer] }

// add gives d a number that no layer of this mount had before.
func (m *mount) add(d *Dir) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.mu.last == maxLayer {
		return errors.New("layer numbers are used up: the mount needs a restart")
	}
	own, ok := m.mu.inos.take(ownInoCount)
	if !ok {
		return errInosUsedUp
	}
	m.mu.last++
	d.number, d.ownInos = m.mu.last, own
	next := maps.Clone(*m.layers.Load())
	next[d.number] = d
	m.layers.Store(&next)
	return nil
}

var errInosUsedUp = errors.New("inode numbers are used up")

// settle reserves the inode numbers of a layer of count inodes, once.
func (m *mount) settle(d *Dir, count uint32) (*inodes, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if in := d.inodes.Load(); in != nil {
		return in, nil
	}
	if m.dir(d.number) != d {
		return nil, errRemoved
	}
	base, ok := m.mu.inos.take(max(uint64(count), 1))
	if !ok {
		return nil, fmt.Errorf("%w: %d more wanted", errInosUsedUp, count)
	}
	in := &inodes{base: base, count: count}
	d.inodes.Store(in)
	return in, nil
}

// remove takes d out of the table; false when it is not there.
func (m *mount) remove(d *Dir) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dir(d.number) != d {
		return false
	}
	next := maps.Clone(*m.layers.Load())
	delete(next, d.number)
	m.layers.Store(&next)
	m.mu.inos.give(d.ownInos)
	if in := d.inodes.Load(); in != nil {
		m.mu.inos.give(in.base)
	}
	return true
}

// named finds the layer with a directory name. gone says that it was removed.
func (m *mount) named(name string) (d *Dir, gone bool) {
	if len(name) == 0 || len(name) > 7 || name[0] == '0' {
		return nil, false
	}
	n, err := strconv.ParseUint(name, 36, 32)
	if err != nil || strconv.FormatUint(n, 36) != name {
		return nil, false // one spelling per layer: overlay would see two directories
	}
	if d = m.dir(uint32(n)); d != nil {
		return d, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return nil, n != 0 && uint32(n) <= m.mu.last
}

// begin is the first line of each request.
func (m *mount) begin(o op) {
	m.counts[o].Add(1)
	// A TOC's file that was cut behind our back is a fault in the mapping: a
	// panic of this request (see panicked) instead of the daemon's end. The
	// setting is per goroutine, and go-fuse owns these.
	debug.SetPanicOnFault(true)
}

// panicked answers a request that panicked.
func (m *mount) panicked(v any) gofuse.Status {
	err, ok := v.(error)
	if !ok {
		err = fmt.Errorf("%v", v)
	}
	m.log.WithError(err).WithField("stack", string(debug.Stack())).Error("request panicked")
	return gofuse.EIO
}

// String is what go-fuse calls the file system.
func (m *mount) String() string { return fsName }

// tasks owns goroutines: wait returns when all have ended, and none starts after.
type tasks struct {
	mu struct {
		sync.Mutex
		closed bool
	}
	wg sync.WaitGroup
}

// start runs f in a goroutine; false after wait has begun.
func (t *tasks) start(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.mu.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

func (t *tasks) wait() {
	t.mu.Lock()
	t.mu.closed = true
	t.mu.Unlock()
	t.wg.Wait()
}

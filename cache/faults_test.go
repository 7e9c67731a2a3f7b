package cache

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/db"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/remotesnapshot"
)

var errInjected = errors.New("injected fault")

// faults counts the calls that are made through the wrappers of this file, while it
// is armed, and makes something happen at one of them.
type faults struct {
	mu    sync.Mutex
	armed bool
	n     int                // calls so far
	nth   int                // the call at which it happens, counted from 1
	what  func(string) error // what happens: an error is the call's
	hit   string             // the call's name
	where string             // who made it
	log   []string

	ignore map[string]bool // calls that are not counted
	broken []string        // calls that fail each time

	gates map[string]chan struct{}
	at    chan string // gets what has reached a gate

	// each is called before every call, armed or not.
	each func(name string)
}

// fail makes the n-th call from now fail.
func (f *faults) fail(n int) {
	f.arm(n, func(name string) error { return fmt.Errorf("%s: %w", name, errInjected) })
}

// breakCalls makes all calls of these names fail, and of no others.
func (f *faults) breakCalls(names ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.broken = names
}

// cancel cancels at the n-th call, which goes on.
func (f *faults) cancel(n int, cancel func()) {
	f.arm(n, func(string) error { cancel(); return nil })
}

func (f *faults) arm(n int, what func(string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed, f.n, f.nth, f.what, f.hit, f.log = true, 0, n, what, "", nil
}

// disarm ends it and says which call was hit, "" for none.
func (f *faults) disarm() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.armed = false
	return f.hit
}

// calls are those that were made since arm.
func (f *faults) calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log
}

func (f *faults) hook(each func(name string)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.each = each
}

func (f *faults) call(name string) error {
	f.mu.Lock()
	each := f.each
	var what func(string) error
	if slices.Contains(f.broken, name) {
		what = func(string) error { return fmt.Errorf("%s: %w", name, errInjected) }
	}
	if f.armed && !f.ignore[name] {
		f.n++
		f.log = append(f.log, name)
		if f.n == f.nth {
			f.hit, f.where, what = name, callers(), f.what
		}
	}
	f.mu.Unlock()
	if each != nil {
		each(name)
	}
	if what != nil {
		return what(name)
	}
	return nil
}

// underLock says that a call is made while containerd's metadata database is
// locked, or a transaction is open.
func underLock(call string) bool {
	return strings.HasPrefix(call, "fs.") || call == "meta.commit"
}

// lateFaults stands below containerd's database, which rolls back what it has noted
// of a commit when it can't be written: the snapshotter has committed by then.
type lateFaults struct {
	*remotesnapshot.Snapshotter
	f *faults
}

func (s *lateFaults) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.Snapshotter.Commit(ctx, name, key, opts...); err != nil {
		return err
	}
	return s.f.call("fs.Committed")
}

type faultySnapshotter struct {
	snapshot.Snapshotter
	f *faults
}

func (s *faultySnapshotter) Mounts(ctx context.Context, key string) (snapshot.Mountable, error) {
	if err := s.f.call("sn.Mounts"); err != nil {
		return nil, err
	}
	m, err := s.Snapshotter.Mounts(ctx, key)
	return s.mountable(m), err
}

func (s *faultySnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) error {
	if err := s.f.call("sn.Prepare"); err != nil {
		return err
	}
	return s.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (s *faultySnapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) (snapshot.Mountable, error) {
	if err := s.f.call("sn.View"); err != nil {
		return nil, err
	}
	m, err := s.Snapshotter.View(ctx, key, parent, opts...)
	return s.mountable(m), err
}

func (s *faultySnapshotter) mountable(m snapshot.Mountable) snapshot.Mountable {
	if m == nil {
		return nil
	}
	return &faultyMountable{Mountable: m, f: s.f}
}

func (s *faultySnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := s.f.call("sn.Stat"); err != nil {
		return snapshots.Info{}, err
	}
	return s.Snapshotter.Stat(ctx, key)
}

func (s *faultySnapshotter) Update(ctx context.Context, info snapshots.Info, fieldpaths ...string) (snapshots.Info, error) {
	if err := s.f.call("sn.Update"); err != nil {
		return snapshots.Info{}, err
	}
	return s.Snapshotter.Update(ctx, info, fieldpaths...)
}

func (s *faultySnapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	if err := s.f.call("sn.Usage"); err != nil {
		return snapshots.Usage{}, err
	}
	return s.Snapshotter.Usage(ctx, key)
}

func (s *faultySnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.f.call("sn.Commit"); err != nil {
		return err
	}
	return s.Snapshotter.Commit(ctx, name, key, opts...)
}

func (s *faultySnapshotter) Remove(ctx context.Context, key string) error {
	if err := s.f.call("sn.Remove"); err != nil {
		return err
	}
	return s.Snapshotter.Remove(ctx, key)
}

// faultyMountable is what a snapshotter's mounts are made by.
type faultyMountable struct {
	snapshot.Mountable
	f *faults
}

func (m *faultyMountable) Mount() ([]mount.Mount, func() error, error) {
	if err := m.f.call("mountable.Mount"); err != nil {
		return nil, nil, err
	}
	return m.Mountable.Mount()
}

type faultyLeases struct {
	leases.Manager
	f *faults
}

func (l *faultyLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	if err := l.f.call("lease.Create"); err != nil {
		return leases.Lease{}, err
	}
	return l.Manager.Create(ctx, opts...)
}

func (l *faultyLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	if err := l.f.call("lease.Delete"); err != nil {
		return err
	}
	return l.Manager.Delete(ctx, lease, opts...)
}

func (l *faultyLeases) List(ctx context.Context, filters ...string) ([]leases.Lease, error) {
	if err := l.f.call("lease.List"); err != nil {
		return nil, err
	}
	return l.Manager.List(ctx, filters...)
}

func (l *faultyLeases) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.f.call("lease.AddResource"); err != nil {
		return err
	}
	return l.Manager.AddResource(ctx, lease, r)
}

func (l *faultyLeases) DeleteResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.f.call("lease.DeleteResource"); err != nil {
		return err
	}
	return l.Manager.DeleteResource(ctx, lease, r)
}

func (l *faultyLeases) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
	if err := l.f.call("lease.ListResources"); err != nil {
		return nil, err
	}
	return l.Manager.ListResources(ctx, lease)
}

type faultyContent struct {
	content.Store
	f *faults
}

func (c *faultyContent) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	if err := c.f.call("content.Info"); err != nil {
		return content.Info{}, err
	}
	return c.Store.Info(ctx, dgst)
}

func (c *faultyContent) Update(ctx context.Context, info content.Info, fieldpaths ...string) (content.Info, error) {
	if err := c.f.call("content.Update"); err != nil {
		return content.Info{}, err
	}
	return c.Store.Update(ctx, info, fieldpaths...)
}

func (c *faultyContent) Delete(ctx context.Context, dgst digest.Digest) error {
	if err := c.f.call("content.Delete"); err != nil {
		return err
	}
	return c.Store.Delete(ctx, dgst)
}

func (c *faultyContent) Abort(ctx context.Context, ref string) error {
	if err := c.f.call("content.Abort"); err != nil {
		return err
	}
	return c.Store.Abort(ctx, ref)
}

func (c *faultyContent) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if err := c.f.call("content.ReaderAt"); err != nil {
		return nil, err
	}
	ra, err := c.Store.ReaderAt(ctx, desc)
	if err != nil {
		return nil, err
	}
	return &faultyReader{ReaderAt: ra, f: c.f}, nil
}

func (c *faultyContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if err := c.f.call("content.Writer"); err != nil {
		return nil, err
	}
	w, err := c.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &faultyWriter{Writer: w, f: c.f}, nil
}

type faultyReader struct {
	content.ReaderAt
	f *faults
}

func (r *faultyReader) ReadAt(p []byte, off int64) (int, error) {
	if err := r.f.call("content.ReadAt"); err != nil {
		return 0, err
	}
	return r.ReaderAt.ReadAt(p, off)
}

type faultyWriter struct {
	content.Writer
	f *faults
}

func (w *faultyWriter) Write(p []byte) (int, error) {
	if err := w.f.call("content.Write"); err != nil {
		return 0, err
	}
	return w.Writer.Write(p)
}

func (w *faultyWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if err := w.f.call("content.Commit"); err != nil {
		return err
	}
	return w.Writer.Commit(ctx, size, expected, opts...)
}

// faultyDB fails as a database does: before a transaction, or when it is committed.
type faultyDB struct {
	db.DB
	f *faults
}

func (d *faultyDB) View(fn func(*bolt.Tx) error) error {
	name := "meta.View"
	if called("(*Store).Get") {
		name = "meta.Get"
	}
	if err := d.f.call(name); err != nil {
		return err
	}
	return d.DB.View(fn)
}

// gate makes a call wait until the returned function is called. What waits is
// sent to at.
func (f *faults) gate(call string) (open func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := make(chan struct{})
	if f.gates == nil {
		f.gates, f.at = map[string]chan struct{}{}, make(chan string, 100)
	}
	f.gates[call] = c
	return sync.OnceFunc(func() { close(c) })
}

func (f *faults) pass(ctx context.Context, call string) error {
	f.mu.Lock()
	c, at := f.gates[call], f.at
	f.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case at <- call:
	default:
	}
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// callers names the functions that lead to a call, the nearest first.
func callers() string {
	pc := make([]uintptr, 40)
	frames := runtime.CallersFrames(pc[:runtime.Callers(3, pc)])
	var list []string
	for {
		f, more := frames.Next()
		if !strings.HasSuffix(f.File, "_test.go") && !strings.HasPrefix(f.Function, "runtime.") && len(list) < 6 {
			list = append(list, f.Function[strings.LastIndexByte(f.Function, '/')+1:])
		}
		if !more {
			return strings.Join(list, " < ")
		}
	}
}

// called says that a function is among the callers.
func called(suffix string) bool {
	pc := make([]uintptr, 8)
	frames := runtime.CallersFrames(pc[:runtime.Callers(2, pc)])
	for {
		f, more := frames.Next()
		if strings.HasSuffix(f.Function, suffix) {
			return true
		}
		if !more {
			return false
		}
	}
}

func (d *faultyDB) Update(fn func(*bolt.Tx) error) error {
	if err := d.f.call("meta.Update"); err != nil {
		return err
	}
	return d.DB.Update(func(tx *bolt.Tx) error {
		if err := fn(tx); err != nil {
			return err
		}
		return d.f.call("meta.commit")
	})
}

type faultyApplier struct {
	diff.Applier
	f *faults
}

func (a *faultyApplier) Apply(ctx context.Context, desc ocispecs.Descriptor, mounts []mount.Mount, opts ...diff.ApplyOpt) (ocispecs.Descriptor, error) {
	if err := a.f.call("apply " + desc.Digest.String()); err != nil {
		return ocispecs.Descriptor{}, err
	}
	if err := a.f.pass(ctx, "apply "+desc.Digest.String()); err != nil {
		return ocispecs.Descriptor{}, err
	}
	return a.Applier.Apply(ctx, desc, mounts, opts...)
}

type faultyDiffer struct {
	diff.Comparer
	f *faults
}

func (d *faultyDiffer) Compare(ctx context.Context, lower, upper []mount.Mount, opts ...diff.Opt) (ocispecs.Descriptor, error) {
	if err := d.f.call("compare"); err != nil {
		return ocispecs.Descriptor{}, err
	}
	return d.Comparer.Compare(ctx, lower, upper, opts...)
}

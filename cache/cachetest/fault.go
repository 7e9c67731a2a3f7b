package cachetest

import (
	"context"
	"errors"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	digest "github.com/opencontainers/go-digest"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
)

// errFault is what a call that is made to fail returns.
var errFault = errors.New("injected fault")

// faults makes calls of what is below a manager fail.
type faults struct {
	mu    sync.Mutex
	rule  func(call string, n int) bool // true: fail
	quiet bool
	calls int
	first string // call that failed
}

// set says which calls fail, by name and number from 1; nil: none.
func (f *faults) set(rule func(call string, n int) bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rule, f.calls, f.first = rule, 0, ""
}

// pause has no call fail, and none counted, until it is ended.
func (f *faults) pause(quiet bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.quiet = quiet
}

// hit names the first call that has failed since set.
func (f *faults) hit() (call string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.first, f.first != ""
}

func (f *faults) check(call string) error {
	f.mu.Lock()
	if f.quiet || f.rule == nil {
		f.mu.Unlock()
		return nil
	}
	f.calls++
	rule, n := f.rule, f.calls
	f.mu.Unlock()
	if !rule(call, n) {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.first == "" {
		f.first = call
	}
	return errFault
}

type faultySnapshotter struct {
	snapshots.Snapshotter
	f *faults
}

func (s *faultySnapshotter) Stat(ctx context.Context, key string) (snapshots.Info, error) {
	if err := s.f.check("snapshotter.Stat"); err != nil {
		return snapshots.Info{}, err
	}
	return s.Snapshotter.Stat(ctx, key)
}

func (s *faultySnapshotter) Usage(ctx context.Context, key string) (snapshots.Usage, error) {
	if err := s.f.check("snapshotter.Usage"); err != nil {
		return snapshots.Usage{}, err
	}
	return s.Snapshotter.Usage(ctx, key)
}

func (s *faultySnapshotter) Mounts(ctx context.Context, key string) ([]mount.Mount, error) {
	if err := s.f.check("snapshotter.Mounts"); err != nil {
		return nil, err
	}
	return s.Snapshotter.Mounts(ctx, key)
}

func (s *faultySnapshotter) Prepare(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.f.check("snapshotter.Prepare"); err != nil {
		return nil, err
	}
	return s.Snapshotter.Prepare(ctx, key, parent, opts...)
}

func (s *faultySnapshotter) View(ctx context.Context, key, parent string, opts ...snapshots.Opt) ([]mount.Mount, error) {
	if err := s.f.check("snapshotter.View"); err != nil {
		return nil, err
	}
	return s.Snapshotter.View(ctx, key, parent, opts...)
}

func (s *faultySnapshotter) Commit(ctx context.Context, name, key string, opts ...snapshots.Opt) error {
	if err := s.f.check("snapshotter.Commit"); err != nil {
		return err
	}
	return s.Snapshotter.Commit(ctx, name, key, opts...)
}

type faultyContent struct {
	content.Store
	f *faults
}

func (c *faultyContent) Info(ctx context.Context, dgst digest.Digest) (content.Info, error) {
	if err := c.f.check("content.Info"); err != nil {
		return content.Info{}, err
	}
	return c.Store.Info(ctx, dgst)
}

func (c *faultyContent) Update(ctx context.Context, info content.Info, fields ...string) (content.Info, error) {
	if err := c.f.check("content.Update"); err != nil {
		return content.Info{}, err
	}
	return c.Store.Update(ctx, info, fields...)
}

func (c *faultyContent) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	if err := c.f.check("content.Writer"); err != nil {
		return nil, err
	}
	w, err := c.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return &faultyWriter{w, c.f}, nil
}

func (c *faultyContent) ReaderAt(ctx context.Context, desc ocispecs.Descriptor) (content.ReaderAt, error) {
	if err := c.f.check("content.ReaderAt"); err != nil {
		return nil, err
	}
	return c.Store.ReaderAt(ctx, desc)
}

type faultyWriter struct {
	content.Writer
	f *faults
}

func (w *faultyWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	if err := w.f.check("writer.Commit"); err != nil {
		return err
	}
	return w.Writer.Commit(ctx, size, expected, opts...)
}

type faultyLeases struct {
	leases.Manager
	f *faults
}

func (l *faultyLeases) Create(ctx context.Context, opts ...leases.Opt) (leases.Lease, error) {
	if err := l.f.check("leases.Create"); err != nil {
		return leases.Lease{}, err
	}
	return l.Manager.Create(ctx, opts...)
}

func (l *faultyLeases) Delete(ctx context.Context, lease leases.Lease, opts ...leases.DeleteOpt) error {
	if err := l.f.check("leases.Delete"); err != nil {
		return err
	}
	return l.Manager.Delete(ctx, lease, opts...)
}

func (l *faultyLeases) AddResource(ctx context.Context, lease leases.Lease, r leases.Resource) error {
	if err := l.f.check("leases.AddResource"); err != nil {
		return err
	}
	return l.Manager.AddResource(ctx, lease, r)
}

func (l *faultyLeases) ListResources(ctx context.Context, lease leases.Lease) ([]leases.Resource, error) {
	if err := l.f.check("leases.ListResources"); err != nil {
		return nil, err
	}
	return l.Manager.ListResources(ctx, lease)
}

package cache

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/leases"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/leaseutil"
	digest "github.com/opencontainers/go-digest"
)

// Leases keep snapshots and blobs from containerd's garbage collector. A record
// has one of its own id, flat: what its blob's labels refer to is not kept by it. A
// second one, not flat, keeps other compressions of the blob, which are linked by
// labels. A third one keeps the view that shows the record read-only.

const labelFlat = "containerd.io/gc.flat"

func variantsLease(id string) string { return id + "-variants" }
func viewLease(id string) string     { return id + "-view" }

func (m *Manager) snapshotResource(id string) leases.Resource {
	return leases.Resource{ID: id, Type: "snapshots/" + m.sn.Name()}
}

func blobResource(dgst digest.Digest) leases.Resource {
	return leases.Resource{ID: dgst.String(), Type: "content"}
}

func leaseResources(r ...leases.Resource) []leases.Resource { return r }

func leaseOpts(opts ...leases.Opt) []leases.Opt { return opts }

// flat is the option of a lease that does not follow references.
func flat(l *leases.Lease) error {
	if l.Labels == nil {
		l.Labels = map[string]string{}
	}
	l.Labels[labelFlat] = time.Now().UTC().Format(time.RFC3339Nano)
	return nil
}

// lease makes the lease of a new record over resources. undo takes it back, for
// the case that the record is not made in the end.
func (m *Manager) lease(ctx context.Context, id string, over ...leases.Resource) (undo func(), err error) {
	if _, err := m.leases.Create(ctx, leases.WithID(id), flat); err != nil {
		return nil, fmt.Errorf("lease of record %s: %w", id, err)
	}
	undo = func() { m.unlease(ctx, id) }
	if err := m.addToLease(ctx, id, over...); err != nil {
		undo()
		return nil, err
	}
	return undo, nil
}

// addToLease adds resources to a lease that is there.
func (m *Manager) addToLease(ctx context.Context, id string, over ...leases.Resource) error {
	for _, r := range over {
		if err := m.leases.AddResource(ctx, leases.Lease{ID: id}, r); err != nil && !cerrdefs.IsAlreadyExists(err) {
			return fmt.Errorf("lease %s: add %s: %w", id, r.ID, err)
		}
	}
	return nil
}

// ensureLease is addToLease for a lease that may not be there yet.
func (m *Manager) ensureLease(ctx context.Context, id string, opts []leases.Opt, over ...leases.Resource) error {
	_, err := m.leases.Create(ctx, append([]leases.Opt{leases.WithID(id)}, opts...)...)
	if err != nil && !cerrdefs.IsAlreadyExists(err) {
		return fmt.Errorf("lease %s: %w", id, err)
	}
	return m.addToLease(ctx, id, over...)
}

// endLease deletes a lease; one that is not there is no error.
func (m *Manager) endLease(ctx context.Context, id string) error {
	err := m.leases.Delete(context.WithoutCancel(ctx), leases.Lease{ID: id})
	if err != nil && !cerrdefs.IsNotFound(err) {
		return fmt.Errorf("delete lease %s: %w", id, err)
	}
	return nil
}

// unlease is endLease on the way out of an operation that has failed already. What
// fails is kept for the next prune.
func (m *Manager) unlease(ctx context.Context, id string) {
	if err := m.endLease(ctx, id); err != nil {
		bklog.G(ctx).WithError(err).Warn("cache: a lease stays until the next prune")
		m.mu.Lock()
		defer m.mu.Unlock()
		m.mu.stale = append(m.mu.stale, id)
	}
}

// endStale tries again to end leases of records that were not made in the end, and to
// clear what was written of those. The lease of a record that is there stays: it may be in
// use again.
func (m *Manager) endStale(ctx context.Context) {
	m.mu.Lock()
	list := m.mu.stale
	m.mu.stale = nil
	m.mu.Unlock()
	for _, id := range list {
		record := leaseOwner(id)
		if m.lookup(record) != nil {
			continue
		}
		if isRecordID(record) {
			if err := m.opts.Metadata.Clear(record); err != nil {
				bklog.G(ctx).WithError(err).Warnf("cache: record %s, which was not made, can't be cleared", record)
			}
		}
		m.unlease(ctx, id)
	}
}

// leaseOwner is the record that a lease of ours belongs to.
func leaseOwner(id string) string {
	for _, suffix := range []string{variantsLease(""), viewLease("")} {
		id = strings.TrimSuffix(id, suffix)
	}
	return id
}

// withLease gives ctx a temporary lease unless it has one. done ends it.
func (m *Manager) withLease(ctx context.Context) (_ context.Context, done func(), err error) {
	lctx, end, err := leaseutil.WithLease(ctx, m.leases, leaseutil.MakeTemporary)
	if err != nil {
		return ctx, nil, fmt.Errorf("temporary lease: %w", err)
	}
	return lctx, func() {
		if err := end(context.WithoutCancel(ctx)); err != nil && !cerrdefs.IsNotFound(err) {
			bklog.G(ctx).WithError(err).Warn("cache: a temporary lease stays until it expires")
		}
	}, nil
}

// keep adds what a caller is about to use to its own lease, if it has one: the
// record that has it may be pruned before the caller is done.
func (m *Manager) keep(ctx context.Context, over ...leases.Resource) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return m.addToLease(ctx, id, over...)
}

package cache

import (
	"context"
	"fmt"
	"slices"

	cerrdefs "github.com/containerd/errdefs"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/disk"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/lazykit/lazykit/cache/prune"
)

// measuring bounds how many records are measured side by side.
const measuring = 8

// DiskUsage implements bkcache.Controller.
func (m *Manager) DiskUsage(ctx context.Context, req client.DiskUsageInfo) ([]*client.UsageInfo, error) {
	shared, err := m.shared()
	if err != nil {
		return nil, err
	}
	v := m.view()
	list, err := prune.Usage(v, req, shared, m.now())
	if err != nil {
		return nil, err
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(measuring)
	notes := make([]string, len(list))
	owners := m.blobOwners()
	for i, u := range list {
		eg.Go(func() error {
			r := m.lookup(u.ID)
			if r == nil {
				u.Size = max(u.Size, 0)
				return nil
			}
			if !(u.Mutable && u.InUse) {
				n, err := m.ownSize(ctx, r, owners)
				if err != nil {
					return err
				}
				u.Size = n
			}
			notes[i] = m.lazyNote(ctx, r)
			return nil
		})
	}
	if err := eg.Wait(); err != nil {
		return nil, err
	}
	for i, u := range list {
		if notes[i] != "" {
			u.Description += " (" + notes[i] + ")"
		}
	}
	return list, nil
}

// lookup finds a record; nil when it has gone.
func (m *Manager) lookup(id string) *record {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.mu.records[id]
}

// lazyNote says how lazy a layer is, for people.
func (m *Manager) lazyNote(ctx context.Context, r *record) string {
	if !r.isLayer() || keyBlob.get(r.meta) == "" {
		return ""
	}
	blob := keyBlob.get(r.meta)
	m.mu.Lock()
	reason := m.mu.reasons[blob]
	m.mu.Unlock()
	if reason != "" {
		return "not lazy: " + reason
	}
	if m.lazy == nil {
		return ""
	}
	if list, err := m.sourcesOf(ctx, r); err != nil || len(list) == 0 {
		return ""
	}
	info := m.lazy.Info(blob)
	size := max(info.Size, r.blobSize())
	switch {
	case info.Local || size <= 0:
		return "lazy, all of it fetched"
	default:
		return fmt.Sprintf("lazy, %.1f of %.1f MB fetched", float64(info.Fetched)/1e6, float64(size)/1e6)
	}
}

// shared asks who else needs the data of records; nil when nobody can.
func (m *Manager) shared() (prune.SharedFunc, error) {
	if m.opts.Shared == nil {
		return nil, nil
	}
	c, err := m.opts.Shared()
	if err != nil {
		return nil, fmt.Errorf("find out what is shared: %w", err)
	}
	if c == nil {
		return nil, nil
	}
	return c.Exists, nil
}

// view describes all records.
func (m *Manager) view() prune.View {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.viewLocked()
}

func (m *Manager) viewLocked() prune.View {
	children := m.childRefsLocked()
	v := make(prune.View, 0, len(m.mu.records))
	for id, r := range m.mu.records {
		count, last := r.lastUsed()
		one := prune.Record{
			ID:          id,
			Parents:     r.parents.ids(),
			Users:       len(r.refs) - children[r],
			Mutable:     r.mutable,
			Type:        r.GetRecordType(),
			Size:        r.size(),
			CreatedAt:   r.GetCreatedAt(),
			LastUsedAt:  last,
			UsageCount:  count,
			Description: r.GetDescription(),
			Chain:       r.digests(),
		}
		if r.twin != nil {
			one.Twin = r.twin.ID()
		}
		v = append(v, one)
	}
	return v
}

// childRefsLocked counts the refs that records hold on their parents.
func (m *Manager) childRefsLocked() map[*record]int {
	n := map[*record]int{}
	for _, r := range m.mu.records {
		for _, p := range r.parents.all() {
			n[p.record]++
		}
	}
	return n
}

// Prune implements bkcache.Controller: it removes records by each policy in turn,
// then what nothing needs any more is collected. What is removed is sent to ch,
// which may be nil.
func (m *Manager) Prune(ctx context.Context, ch chan client.UsageInfo, policies ...client.PruneInfo) error {
	if err := m.prunes.lock(ctx); err != nil {
		return err
	}
	m.eraseDoomed(ctx)
	m.endStale(ctx)
	for _, info := range policies {
		if err := m.prune(ctx, ch, info); err != nil {
			m.prunes.unlock()
			return err
		}
	}
	m.prunes.unlock()
	if m.opts.GarbageCollect == nil {
		return nil
	}
	// containerd leaves a goroutine behind when a collection is cancelled.
	if _, err := m.opts.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	return nil
}

func (m *Manager) prune(ctx context.Context, ch chan client.UsageInfo, info client.PruneInfo) error {
	policy, err := prune.Parse(info)
	if err != nil {
		return err
	}
	var shared *sharedMemo
	if policy.NeedsShared() {
		f, err := m.shared()
		if err != nil {
			return err
		}
		shared = newSharedMemo(f)
	}
	run, err := m.beginPrune(ctx, policy, shared)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		batch, err := m.takeBatch(ctx, run, shared, policy.NeedsSpace())
		if err != nil || len(batch) == 0 {
			return err
		}
		for _, b := range batch {
			if err := m.eraseAll(ctx, b.doomed...); err != nil {
				bklog.G(ctx).WithError(err).Warnf("cache: record %s is erased later", b.info.ID)
			}
		}
		for _, b := range batch {
			if ch == nil {
				continue
			}
			select {
			case ch <- b.info:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
	}
	return context.Cause(ctx)
}

// beginPrune measures what the policy looks at.
func (m *Manager) beginPrune(ctx context.Context, policy *prune.Policy, shared *sharedMemo) (*prune.Run, error) {
	if !policy.NeedsSpace() {
		v := m.view()
		return policy.Begin(v, 0, shared.know(v)), nil
	}
	v := m.view()
	if err := m.fillSizes(ctx, v, everyRecord); err != nil {
		return nil, err
	}
	stat, err := disk.GetDiskStat(m.opts.Root)
	if err != nil {
		return nil, fmt.Errorf("free space of %s: %w", m.opts.Root, err)
	}
	return policy.Begin(v, stat.Free, shared.know(v)), nil
}

// sharedMemo remembers what is shared, so that nobody is asked under a lock. A nil
// memo knows that nothing is.
type sharedMemo struct {
	ask   prune.SharedFunc
	known map[string]bool
}

func newSharedMemo(ask prune.SharedFunc) *sharedMemo {
	if ask == nil {
		return nil
	}
	return &sharedMemo{ask: ask, known: map[string]bool{}}
}

// know asks about the records of a view that are not known, and returns what knows
// them. Records that came later count as shared, which keeps them until they are
// asked about.
func (s *sharedMemo) know(v prune.View) prune.SharedFunc {
	if s == nil {
		return nil
	}
	for _, r := range v {
		if _, ok := s.known[r.ID]; !ok {
			s.known[r.ID] = s.ask(r.ID, r.Chain)
		}
	}
	return func(id string, _ []digest.Digest) bool {
		shared, ok := s.known[id]
		return shared || !ok
	}
}

func everyRecord(string) bool { return true }

// fillSizes measures the records of a view that are wanted. Those of lazy layers are
// measured even if they have a size.
func (m *Manager) fillSizes(ctx context.Context, v prune.View, wanted func(id string) bool) error {
	owners := m.blobOwners()
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(measuring)
	for i := range v {
		r := m.lookup(v[i].ID)
		if r == nil || v[i].Mutable && v[i].Users > 0 || !wanted(v[i].ID) {
			continue
		}
		eg.Go(func() (err error) {
			v[i].Size, err = m.ownSize(ctx, r, owners)
			if cerrdefs.IsNotFound(err) || bkcache.IsNotFound(err) {
				v[i].Size, err = 0, nil
			}
			return err
		})
	}
	return eg.Wait()
}

// removal is a record that a prune has taken out of the table.
type removal struct {
	info   client.UsageInfo
	doomed []doomed
}

// takeBatch decides what goes next and takes it out of the table. It measures first,
// so that an error leaves all as it was: all records when space is limited, and
// otherwise those that are to go. What changed meanwhile is decided by a second look
// under the lock.
func (m *Manager) takeBatch(ctx context.Context, run *prune.Run, shared *sharedMemo, limited bool) ([]removal, error) {
	sized := m.view()
	shared.know(sized)
	wanted := everyRecord
	if !limited {
		next := run.Next(sized, m.now())
		wanted = func(id string) bool {
			return slices.ContainsFunc(next, func(u client.UsageInfo) bool { return u.ID == id })
		}
	}
	if err := m.fillSizes(ctx, sized, wanted); err != nil {
		return nil, err
	}
	sizes := make(map[string]int64, len(sized))
	for _, r := range sized {
		sizes[r.ID] = r.Size
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	v := m.viewLocked()
	for i := range v {
		if n, ok := sizes[v[i].ID]; ok {
			v[i].Size = n
		}
	}
	var batch []removal
	for _, info := range run.Next(v, m.now()) {
		r := m.mu.records[info.ID]
		b := removal{info: info}
		// The twin first: it has no data of its own, but it names the other one.
		if t := r.twin; t != nil {
			imm, mut := r, t
			if r.mutable {
				imm, mut = t, r
			}
			m.dropLocked(imm)
			m.dropLocked(mut)
			b.doomed = []doomed{{record: imm}, {record: mut, data: true}}
		} else {
			m.dropLocked(r)
			b.doomed = []doomed{{record: r, data: true}}
		}
		batch = append(batch, b)
	}
	return batch, nil
}

package prune

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	bkcache "github.com/moby/buildkit/cache"
	bkmetadata "github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/snapshot"
	containerdsnapshot "github.com/moby/buildkit/snapshot/containerd"
	"github.com/moby/buildkit/util/leaseutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// TestAsStock makes random records in BuildKit's own manager, describes them in a
// view, and compares what the two say of use and of what goes when.
func TestAsStock(t *testing.T) {
	for seed := range uint64(5) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := newStock(t, seed)
			for range 14 {
				s.build()
			}
			s.letGo(0.8)
			s.compareUsage()
			s.letGo(1)
			s.compareUsage()
			s.comparePrune()
		})
	}
}

// stock is a manager of BuildKit's and what we have of it.
type stock struct {
	*testing.T
	*rand.Rand
	ctx     context.Context
	manager bkcache.Manager
	refs    []bkcache.ImmutableRef // in hand
	all     []string               // IDs of the immutable records made
	twins   map[string]string      // of an immutable record, by ID
}

const stockNamespace = "test"

func newStock(t *testing.T, seed uint64) *stock {
	ctx := namespaces.WithNamespace(t.Context(), stockNamespace)
	dir := t.TempDir()
	snapshotter, err := native.NewSnapshotter(filepath.Join(dir, "snapshots"))
	require.NoError(t, err)
	content, err := local.NewStore(dir)
	require.NoError(t, err)
	db, err := bolt.Open(filepath.Join(dir, "containerd.db"), 0o600, &bolt.Options{NoSync: true})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, db.Close()) })
	mdb := metadata.NewDB(db, content, map[string]snapshots.Snapshotter{"native": snapshotter})
	require.NoError(t, mdb.Init(ctx))
	md, err := bkmetadata.NewStore(filepath.Join(dir, "metadata.db"))
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, md.Close()) })

	m, err := bkcache.NewManager(bkcache.ManagerOpt{
		Snapshotter: snapshot.FromContainerdSnapshotter("native",
			containerdsnapshot.NSSnapshotter(stockNamespace, mdb.Snapshotter("native")), nil),
		ContentStore:  containerdsnapshot.NewContentStore(mdb.ContentStore(), stockNamespace),
		LeaseManager:  leaseutil.WithNamespace(metadata.NewLeaseManager(mdb), stockNamespace),
		MetadataStore: md,
		Root:          dir,
		MountPoolRoot: filepath.Join(dir, "mounts"),
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return &stock{T: t, Rand: rand.New(rand.NewPCG(seed, 0)), ctx: ctx, manager: m, twins: map[string]string{}}
}

// build makes one record on others.
func (s *stock) build() {
	pick := func() bkcache.ImmutableRef {
		if len(s.refs) == 0 {
			return nil
		}
		return s.refs[s.IntN(len(s.refs))]
	}
	var ref bkcache.ImmutableRef
	var err error
	switch a, b := pick(), pick(); s.IntN(5) {
	case 0:
		if a == nil {
			return
		}
		ref, err = s.manager.Merge(s.ctx, []bkcache.ImmutableRef{a, b}, nil)
	case 1:
		if a == nil {
			return
		}
		ref, err = s.manager.Diff(s.ctx, a, b, nil)
	default:
		var mut bkcache.MutableRef
		mut, err = s.manager.New(s.ctx, a, nil)
		require.NoError(s, err)
		ref, err = mut.Commit(s.ctx)
		require.NoError(s, err)
		require.NoError(s, ref.SetCachePolicyRetain())
		s.twins[ref.ID()] = mut.ID()
		if s.IntN(2) == 0 {
			err = ref.Finalize(s.ctx)
		}
	}
	require.NoError(s, err)
	s.refs = append(s.refs, ref)
	s.all = append(s.all, ref.ID())
}

// letGo releases a share of the refs in hand, after some were used more often.
func (s *stock) letGo(share float64) {
	for range s.IntN(10) {
		ref, err := s.manager.Get(s.ctx, s.all[s.IntN(len(s.all))], nil)
		require.NoError(s, err)
		require.NoError(s, ref.Release(s.ctx))
	}
	s.Shuffle(len(s.refs), func(i, j int) { s.refs[i], s.refs[j] = s.refs[j], s.refs[i] })
	n := int(share * float64(len(s.refs)))
	for _, ref := range s.refs[:n] {
		require.NoError(s, ref.Release(s.ctx))
	}
	s.refs = s.refs[n:]
}

// usage asks BuildKit, once the mutable halves of finalized records have gone.
func (s *stock) usage() (infos []*client.UsageInfo) {
	require.EventuallyWithT(s, func(c *assert.CollectT) {
		var err error
		infos, err = s.manager.DiskUsage(s.ctx, client.DiskUsageInfo{})
		require.NoError(c, err)
		for imm, mut := range s.twins {
			listed := pick(infos, func(u *client.UsageInfo) bool { return u.ID == imm || u.ID == mut })
			require.Len(c, listed, 1)
		}
	}, 10*time.Second, 10*time.Millisecond)
	slices.SortFunc(infos, func(a, b *client.UsageInfo) int { return lastUse(a).Compare(lastUse(b)) })
	return infos
}

// view describes the records to us: from BuildKit's answer only what is stored,
// and from our own books who holds what.
func (s *stock) view(infos []*client.UsageInfo) (v View) {
	for _, u := range infos {
		r := Record{
			ID: u.ID, Parents: u.Parents, Mutable: u.Mutable, Size: u.Size, CreatedAt: u.CreatedAt,
			LastUsedAt: u.LastUsedAt, UsageCount: u.UsageCount, Description: u.Description, Type: u.RecordType,
		}
		for _, ref := range s.refs {
			if ref.ID() == r.ID {
				r.Users++
			}
		}
		v = append(v, r)
		for imm, mut := range s.twins {
			if mut == r.ID { // the immutable one is there too
				hidden := r
				hidden.ID, hidden.Mutable, hidden.Twin = imm, false, mut
				v = append(v, hidden)
			}
		}
	}
	return v
}

func (s *stock) compareUsage() {
	want := s.usage()
	got, err := Usage(s.view(want), client.DiskUsageInfo{}, nil, time.Now())
	require.NoError(s, err)
	for _, u := range want {
		u.Parents = append([]string(nil), u.Parents...)
	}
	require.ElementsMatch(s, want, got)
}

// comparePrune prunes until nothing is left, in small steps: BuildKit counts the
// removal of a child as a use of some parents, so that we must look again.
func (s *stock) comparePrune() {
	for {
		v := s.view(s.usage())
		limit := newGraph(v).used() // is reached, so one must go
		if limit == 0 {
			return
		}
		require.NotZero(s, s.compareStep(v, client.PruneInfo{MaxUsedSpace: limit}))
	}
}

// compareStep lets BuildKit prune, and looks whether the first record that went is
// of those that we find least useful (BuildKit has no rule for ties), and whether
// we would have stopped with the last one. Only empty records make it more than
// one. It returns how many went.
func (s *stock) compareStep(v View, info client.PruneInfo) (n int) {
	p, err := Parse(info)
	require.NoError(s, err)
	run := p.Begin(v, 0, nil)
	gone := make(chan client.UsageInfo, len(v))
	require.NoError(s, s.manager.Prune(s.ctx, gone, info))
	close(gone)
	for theirs := range gone {
		ours := run.Next(v, time.Now())
		require.Len(s, ours, 1)
		score := scores(run.candidates(newGraph(v), time.Now()))
		require.Contains(s, score, theirs.ID)
		if n == 0 {
			require.Equal(s, score[ours[0].ID], score[theirs.ID])
		}
		v = slices.DeleteFunc(v, func(r Record) bool { return r.ID == theirs.ID || r.Twin == theirs.ID })
		for imm, mut := range s.twins {
			if mut == theirs.ID || imm == theirs.ID {
				delete(s.twins, imm)
			}
		}
		n++
	}
	require.Empty(s, run.Next(v, time.Now()), "they have stopped")
	return n
}

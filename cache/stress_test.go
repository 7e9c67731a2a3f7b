package cache

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
)

var (
	stressSeed = flag.Uint64("stress.seed", 0, "seed of TestStress; 0: by the clock")
	stressTime = flag.Duration("stress.time", 3*time.Second, "how long TestStress runs")
)

// builder is one goroutine of TestStress. What it holds is its own.
type builder struct {
	w      *world
	rand   *rand.Rand
	images [][]*layer
	shared *ids
	done   map[string]int // what it has done, with success
	held   []bkcache.ImmutableRef
	muts   []bkcache.MutableRef
}

// ids of records that some builder has seen; most have gone again.
type ids struct {
	mu   sync.Mutex
	list []string
}

func (s *ids) add(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) > 100 {
		s.list = s.list[50:]
	}
	s.list = append(s.list, id)
}

func (s *ids) pick(r *rand.Rand) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.list) == 0 {
		return ""
	}
	return s.list[r.IntN(len(s.list))]
}

// expected says whether an error is one that operations on records which others
// use, remove and cancel may have.
func expected(err error) bool {
	var missing bkcache.NeedsRemoteProviderError
	return err == nil || bkcache.IsNotFound(err) || errors.Is(err, bkcache.ErrLocked) || errors.Is(err, errInvalid) ||
		errors.As(err, &missing) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

func (b *builder) keep(h bkcache.ImmutableRef) {
	b.shared.add(h.ID())
	b.held = append(b.held, h)
	if len(b.held) > 6 {
		b.drop(b.rand.IntN(len(b.held)))
	}
}

func (b *builder) drop(i int) {
	h := b.held[i]
	b.held = append(b.held[:i:i], b.held[i+1:]...)
	if err := h.Release(b.w.ctx()); err != nil {
		b.w.t.Errorf("release: %v", err)
	}
}

func (b *builder) some() bkcache.ImmutableRef {
	if len(b.held) == 0 {
		return nil
	}
	return b.held[b.rand.IntN(len(b.held))]
}

// act does one thing at random and returns its name.
func (b *builder) act(ctx context.Context) (what string, err error) {
	w, m := b.w, b.w.m
	switch b.rand.IntN(17) {
	case 0, 1:
		h, err := w.tryPull(ctx, b.images[b.rand.IntN(len(b.images))]...)
		if err == nil {
			b.keep(h)
		}
		return "pull", err
	case 2, 3:
		if len(b.muts) > 3 {
			return "", nil
		}
		var opts []bkcache.RefOption
		if b.rand.IntN(2) == 0 {
			opts = append(opts, bkcache.CachePolicyRetain)
		}
		mut, err := m.New(ctx, b.some(), group("s"), opts...)
		if err == nil {
			b.shared.add(mut.ID())
			b.muts = append(b.muts, mut)
		}
		return "new", err
	case 4, 5:
		if len(b.muts) == 0 {
			return "", nil
		}
		mut := b.muts[0]
		h, err := mut.Commit(ctx)
		if err == nil {
			b.muts = b.muts[1:]
			b.keep(h)
		}
		return "commit", err
	case 6:
		if len(b.muts) == 0 {
			return "", nil
		}
		mut := b.muts[0]
		b.muts = b.muts[1:]
		return "release a mutable record", mut.Release(ctx)
	case 7:
		if h := b.some(); h != nil {
			return "finalize", h.Finalize(ctx)
		}
	case 8, 9:
		if h := b.some(); h != nil {
			m, err := h.Mount(ctx, b.rand.IntN(2) == 0, group("s"))
			if err != nil {
				return "mount", err
			}
			_, release, err := m.Mount()
			if err == nil && release != nil {
				err = release()
			}
			return "mount", err
		}
	case 10:
		if len(b.held) > 0 {
			b.drop(b.rand.IntN(len(b.held)))
		}
	case 11:
		var opts []bkcache.RefOption
		if b.rand.IntN(2) == 0 {
			opts = append(opts, w.handlers(b.images[0]...))
		}
		h, err := m.Get(ctx, b.shared.pick(b.rand), nil, opts...)
		if err == nil {
			b.keep(h)
		}
		return "get", err
	case 12:
		mut, err := m.GetMutable(ctx, b.shared.pick(b.rand))
		if err == nil {
			b.muts = append(b.muts, mut)
		}
		return "get mutable", err
	case 13:
		h, err := m.Merge(ctx, []bkcache.ImmutableRef{b.some(), b.some(), b.some()}, nil)
		if err == nil && h != nil {
			b.keep(h)
		}
		return "merge", err
	case 14:
		lower, upper := b.some(), b.some()
		if lower == nil {
			return "", nil
		}
		h, err := m.Diff(ctx, lower, upper, nil)
		if err == nil {
			b.keep(h)
		}
		return "diff", err
	case 15:
		if h := b.some(); h != nil {
			_, err := h.GetRemotes(ctx, true, gzipRefs, b.rand.IntN(2) == 0, group("s"))
			return "remotes", err
		}
	case 16:
		switch b.rand.IntN(4) {
		case 0:
			_, err := m.DiskUsage(ctx, client.DiskUsageInfo{})
			return "disk usage", err
		case 1:
			return "prune all", m.Prune(ctx, nil, client.PruneInfo{All: true})
		case 2:
			return "prune", m.Prune(ctx, nil, client.PruneInfo{MaxUsedSpace: 1, Filter: []string{"type==regular"}})
		default:
			_, err := w.mdb.GarbageCollect(w.ctx())
			return "collect", err
		}
	}
	return "", nil
}

func (b *builder) run(ctx context.Context) {
	for ctx.Err() == nil {
		opctx, cancel := b.w.ctx(), func() {}
		if b.rand.IntN(10) == 0 {
			opctx, cancel = context.WithTimeout(b.w.ctx(), time.Duration(b.rand.IntN(3000))*time.Microsecond)
		}
		what, err := b.act(opctx)
		if !expected(err) {
			b.w.t.Errorf("%s: %v", what, err)
		}
		if err == nil {
			b.done[what]++
		}
		cancel()
	}
	for len(b.held) > 0 {
		b.drop(0)
	}
	for _, mut := range b.muts {
		if err := mut.Release(b.w.ctx()); err != nil {
			b.w.t.Errorf("release: %v", err)
		}
	}
}

// TestStress lets builders do everything at once, at random. In the end nothing is
// held, and everything can be pruned.
func TestStress(t *testing.T) {
	seed := *stressSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	defer func() {
		if t.Failed() {
			t.Logf("again with -stress.seed=%d", seed)
		}
	}()
	for _, lazy := range []bool{false, true} {
		t.Run(fmt.Sprintf("lazy %v", lazy), func(t *testing.T) {
			w := newWorld(t, lazy)
			base := w.layers("base", lazyLayer, plainLayer)
			images := [][]*layer{
				base,
				append(base[:2:2], w.layers("x", lazyLayer)...),
				append(base[:2:2], w.layers("y", layoutLayer, lazyLayer)...),
				w.layers("z", plainLayer, lazyLayer),
			}
			ctx, cancel := context.WithTimeout(w.ctx(), *stressTime)
			defer cancel()
			shared := &ids{}
			var wg sync.WaitGroup
			done := map[string]int{}
			var mu sync.Mutex
			for i := range uint64(8) {
				b := &builder{w: w, rand: rand.New(rand.NewPCG(seed, i)), images: images, shared: shared, done: map[string]int{}}
				wg.Go(func() {
					b.run(ctx)
					mu.Lock()
					defer mu.Unlock()
					for what, n := range b.done {
						done[what] += n
					}
				})
			}
			wg.Wait()
			t.Logf("done: %v", done)
			if len(done) < 14 {
				t.Errorf("hardly anything was done: %v", done)
			}
			w.quiet()
			if p := w.look(); p.doomed > 0 {
				t.Errorf("%d records could not be erased", p.doomed)
			} else {
				for id, n := range p.users {
					if n != 0 {
						t.Errorf("record %s (%s) has %d users", id, p.records[id], n)
					}
				}
				for id := range p.leases {
					if p.records[strings.TrimSuffix(strings.TrimSuffix(id, "-variants"), "-view")] == "" {
						t.Errorf("lease %s is nobody's: %v", id, p.leases[id])
					}
				}
			}
			w.pruneAll()
			w.checkEmpty()
		})
	}
}

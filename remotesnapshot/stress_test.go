package remotesnapshot

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
)

// TestStress lets many goroutines make, mount and remove snapshots of one small
// set of names for a while, with layers that become pending under them. Only
// errors that say that another one was faster may occur, and nothing leaks.
func TestStress(t *testing.T) {
	for name, opts := range map[string]Options{"sync": {}, "async": {AsyncRemove: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, opts)
			var layers []digest.Digest
			for i := range 4 {
				layers = append(layers, w.fs.layer(fmt.Sprint("layer", i), true))
			}
			ctx, stop := context.WithTimeout(t.Context(), time.Second/2)
			defer stop()
			var wg sync.WaitGroup
			for worker := range 8 {
				wg.Go(func() {
					r := rand.New(rand.NewPCG(uint64(worker), 1))
					for ctx.Err() == nil {
						// Not ctx: an operation that has begun is to end by itself.
						if err := stressStep(t.Context(), w, r, layers); err != nil && !expected(err) {
							t.Error(err)
							return
						}
					}
				})
			}
			wg.Wait()
			if opts.AsyncRemove {
				if err := w.Cleanup(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			w.checkNoLeak()
			w.stop()
			w.start(opts)
			w.sweep.done.Wait()
			w.checkNoLeak()
		})
	}
}

func expected(err error) bool {
	return cerrdefs.IsNotFound(err) || cerrdefs.IsAlreadyExists(err) ||
		cerrdefs.IsFailedPrecondition(err) || cerrdefs.IsInvalidArgument(err)
}

// stressStep does one random thing. Snapshot c<n> is on top of c<n-1>.
func stressStep(ctx context.Context, w *world, r *rand.Rand, layers []digest.Digest) error {
	n := r.IntN(4)
	name, parent := fmt.Sprint("c", n), ""
	if n > 0 {
		parent = fmt.Sprint("c", n-1)
	}
	key := fmt.Sprint("k", r.IntN(6))
	switch r.IntN(12) {
	case 0, 1, 2:
		_, err := w.Prepare(ctx, "tmp"+key, parent, snapshots.WithLabels(remoteLabels(name, layers[n])))
		return err
	case 3:
		_, err := w.Prepare(ctx, key, parent)
		return err
	case 4:
		return w.Commit(ctx, name, key)
	case 5:
		_, err := w.View(ctx, key, name)
		return err
	case 6, 7:
		_, err := w.Mounts(ctx, key)
		return err
	case 8:
		return w.Remove(ctx, key)
	case 9:
		return w.Remove(ctx, name)
	case 10:
		w.fs.edit(layers[n], func(l *fakeLayer) { l.resolved = l.resolved && l.holds > 0 })
		_, err := w.Usage(ctx, name)
		return err
	default:
		if r.IntN(2) == 0 {
			w.fs.edit(layers[n], func(l *fakeLayer) { l.resolved = true })
		}
		return w.Cleanup(ctx)
	}
}

package main

import (
	"context"
	"errors"
	"path/filepath"
	"reflect"
	"testing"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/solver/bboltcachestorage"
	bkworker "github.com/moby/buildkit/worker"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"
)

var errFull = errors.New("no space left on device")

// fullKeys is a database on a full disk.
type fullKeys struct{ solver.CacheKeyStorage }

func (fullKeys) AddResult(string, solver.CacheResult) error         { return errFull }
func (fullKeys) AddLink(string, solver.CacheInfoLink, string) error { return errFull }

// someWorker has an id.
type someWorker struct{ bkworker.Worker }

func (someWorker) ID() string { return "w" }

// fullRef is a reference whose metadata can't be written.
type fullRef struct{ bkcache.ImmutableRef }

func (fullRef) ID() string                    { return "r" }
func (fullRef) HasCachePolicyRetain() bool    { return false }
func (fullRef) SetCachePolicyRetain() error   { return errFull }
func (fullRef) Release(context.Context) error { return nil }

func TestResultThatCannotBeCachedIsUsedAllTheSame(t *testing.T) {
	for name, full := range map[string]bool{"with room": false, "full": true} {
		t.Run(name, func(t *testing.T) {
			db, err := bboltcachestorage.NewStore(filepath.Join(t.TempDir(), "cache.db"))
			require.NoError(t, err)
			defer db.Close()
			var store solver.CacheKeyStorage = db
			if full {
				store = fullKeys{db}
			}
			m := solver.NewCacheManager(t.Context(), "local", cacheKeys{store}, cacheResults{bkworker.NewCacheResultStorage(&bkworker.Controller{})})
			base := solver.NewCacheKey(digest.FromString("base"), "", 0)
			res := bkworker.NewWorkerRefResult(fullRef{}, someWorker{})
			saved, err := m.Save(base, res, time.Now())
			require.NoError(t, err, "the step has succeeded")
			require.NotNil(t, saved.Exporter)
			var found []solver.CacheResult
			require.NoError(t, db.WalkResults(base.ID, func(r solver.CacheResult) error {
				found = append(found, r)
				return nil
			}))
			if full {
				require.Empty(t, found)
			} else {
				require.Len(t, found, 1)
				require.Equal(t, res.ID(), found[0].ID)
			}
		})
	}
}

// A wrapper of an interface hides the methods that it does not have: BuildKit asks
// for some by name.
func TestCacheResultsHideNothing(t *testing.T) {
	stock := reflect.TypeOf(bkworker.NewCacheResultStorage(&bkworker.Controller{}))
	for m := range stock.Methods() {
		_, ok := reflect.TypeOf(cacheResults{}).MethodByName(m.Name)
		require.True(t, ok, "no %s", m.Name)
	}
}

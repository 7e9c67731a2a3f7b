package main

import (
	"time"

	"github.com/moby/buildkit/solver"
	"github.com/moby/buildkit/util/bklog"
	bkworker "github.com/moby/buildkit/worker"
)

// A step whose result can't be written into the build cache, since the disk is full
// or has become read-only, has succeeded all the same: it will run again next time.
// BuildKit fails the build instead, and forgets to release the result (execOp in
// solver/edge.go): its records would be in use, and could not be pruned to make room,
// until the daemon ends.

// cacheKeys is the solver's database, to which nothing fails to be added.
type cacheKeys struct{ solver.CacheKeyStorage }

// AddResult is that of solver.CacheKeyStorage without an error.
func (s cacheKeys) AddResult(id string, res solver.CacheResult) error {
	notCached(res.ID, s.CacheKeyStorage.AddResult(id, res))
	return nil
}

// AddLink is that of solver.CacheKeyStorage without an error.
func (s cacheKeys) AddLink(id string, link solver.CacheInfoLink, target string) error {
	notCached(target, s.CacheKeyStorage.AddLink(id, link, target))
	return nil
}

// notCached says why something was not written, if it was not.
func notCached(what string, err error) {
	if err == nil {
		return
	}
	bklog.L.WithError(err).Warnf("the build cache can't be written: %s will not be found in it", what)
}

// cacheResults are the workers' results, which nothing keeps from being used.
type cacheResults struct{ solver.CacheResultStorage }

// Save is that of solver.CacheResultStorage. A reference that can't be marked as
// cached goes with its last user.
func (s cacheResults) Save(res solver.Result, at time.Time) (solver.CacheResult, error) {
	saved, err := s.CacheResultStorage.Save(res, at)
	ref, ok := res.Sys().(*bkworker.WorkerRef)
	if err == nil || !ok {
		return saved, err
	}
	notCached(ref.ID(), err)
	return solver.CacheResult{ID: ref.ID(), CreatedAt: at}, nil
}

package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/util/db"
	bolt "go.etcd.io/bbolt"
)

// Names in BuildKit's solver/llbsolver/history.
const (
	historyRecords = "_records"
	historyLease   = "ref_" // and the build's reference
	historySuffix  = "_history"
)

// endHistoryLeases ends leases of builds that are not in the history. BuildKit makes
// the lease first: that of a build whose daemon was killed before the record was
// written would keep its logs for good.
func endHistoryLeases(ctx context.Context, history db.DB, lm leases.Manager) error {
	known := map[string]bool{}
	err := history.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte(historyRecords))
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error {
			known[string(k)] = true
			return nil
		})
	})
	if err != nil {
		return fmt.Errorf("read the build history: %w", err)
	}
	list, err := lm.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases of the build history: %w", err)
	}
	for _, l := range list {
		ref, ok := strings.CutPrefix(l.ID, historyLease)
		if !ok || known[ref] {
			continue
		}
		if err := lm.Delete(ctx, l); err != nil {
			return fmt.Errorf("end lease %s of a build that is not in the history: %w", l.ID, err)
		}
	}
	return nil
}

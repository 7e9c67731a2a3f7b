package main

import (
	"context"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/core/leases"
	"github.com/moby/buildkit/util/db/boltutil"
	"github.com/stretchr/testify/require"
	bolt "go.etcd.io/bbolt"
)

// leaseList is a lease manager that has leases and can end them.
type leaseList struct {
	leases.Manager
	ids []string
}

func (l *leaseList) List(context.Context, ...string) (out []leases.Lease, _ error) {
	for _, id := range l.ids {
		out = append(out, leases.Lease{ID: id})
	}
	return out, nil
}

func (l *leaseList) Delete(_ context.Context, lease leases.Lease, _ ...leases.DeleteOpt) error {
	var kept []string
	for _, id := range l.ids {
		if id != lease.ID {
			kept = append(kept, id)
		}
	}
	l.ids = kept
	return nil
}

func TestEndHistoryLeases(t *testing.T) {
	db, err := boltutil.Open(filepath.Join(t.TempDir(), "history.db"), 0o600, nil)
	require.NoError(t, err)
	defer db.Close()
	l := &leaseList{ids: []string{"ref_orphan", "ref_known", "somebody-else"}}
	require.NoError(t, db.Update(func(tx *bolt.Tx) error {
		b, err := tx.CreateBucket([]byte(historyRecords))
		if err != nil {
			return err
		}
		return b.Put([]byte("known"), []byte("record"))
	}))
	require.NoError(t, endHistoryLeases(t.Context(), db, l))
	require.Equal(t, []string{"ref_known", "somebody-else"}, l.ids)
}

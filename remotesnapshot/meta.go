package remotesnapshot

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

// metaStore is what the snapshotter uses of *storage.MetaStore; tests put one
// that fails in its place.
type metaStore interface {
	TransactionContext(ctx context.Context, writable bool) (context.Context, storage.Transactor, error)
	Close() error
}

var _ metaStore = (*storage.MetaStore)(nil)

// lockTimeout bounds the wait for the file lock of metadata.db, which another
// process holds only if it runs on the same root.
const lockTimeout = 10 * time.Second

func openMetaStore(root string) (*storage.MetaStore, error) {
	return storage.NewMetaStore(filepath.Join(root, "metadata.db"), func(o *bolt.Options) error {
		o.Timeout = lockTimeout
		return nil
	})
}

// read runs f in a read transaction.
func (s *Snapshotter) read(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, tx, err := s.meta.TransactionContext(ctx, false)
	if err != nil {
		return err
	}
	return errors.Join(f(ctx), tx.Rollback())
}

// reading is read for a snapshot that may have to be revived for it.
func (s *Snapshotter) reading(ctx context.Context, key string, inTransaction bool, f func(ctx context.Context) error) error {
	err := s.read(ctx, f)
	if !cerrdefs.IsNotFound(err) {
		return err
	}
	if ok, rerr := s.revive(ctx, key, inTransaction); rerr != nil {
		return rerr // it is not known whether there is one
	} else if !ok {
		return err
	}
	return s.read(ctx, f)
}

// write runs f in the write transaction and commits it unless f fails.
func (s *Snapshotter) write(ctx context.Context, f func(ctx context.Context) error) error {
	ctx, tx, err := s.meta.TransactionContext(ctx, true)
	if err != nil {
		return err
	}
	if err := f(context.WithValue(ctx, transaction{}, tx)); err != nil {
		return errors.Join(err, tx.Rollback())
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("commit metadata of snapshots: %w", err)
	}
	return nil
}

// transaction is the context's key of a write transaction: containerd's own is not
// exported.
type transaction struct{}

// transactionOf returns the transaction of write that ctx is in.
func transactionOf(ctx context.Context) (*bolt.Tx, bool) {
	tx, ok := ctx.Value(transaction{}).(*bolt.Tx)
	return tx, ok
}

// info is storage.GetInfo in a transaction of its own.
func (s *Snapshotter) info(ctx context.Context, key string) (id string, info snapshots.Info, usage snapshots.Usage, err error) {
	return s.infoIn(ctx, key, false)
}

// infoIn is info; inTransaction says that the caller is in one of containerd's database.
func (s *Snapshotter) infoIn(ctx context.Context, key string, inTransaction bool) (id string, info snapshots.Info, usage snapshots.Usage, err error) {
	get := func(ctx context.Context) error {
		id, info, usage, err = storage.GetInfo(ctx, key)
		return err
	}
	err = s.reading(ctx, key, inTransaction, get)
	if err != nil {
		err = fmt.Errorf("snapshot %q: %w", key, err)
	}
	return id, info, usage, err
}

// idMap is storage.IDMap (id to name), empty in a database without a snapshot.
func idMap(ctx context.Context) (map[string]string, error) {
	ids, err := storage.IDMap(ctx)
	if cerrdefs.IsNotFound(err) {
		return nil, nil
	}
	return ids, err
}

// link is one committed snapshot of a chain.
type link struct {
	id     string
	name   string
	labels map[string]string
}

func (l link) remote() bool { return isRemote(l.labels) }

// chainFrom lists name and its ancestors, nearest first; it needs a transaction.
// It is empty for the name "".
func chainFrom(ctx context.Context, name string) ([]link, error) {
	var chain []link
	for name != "" {
		id, info, _, err := storage.GetInfo(ctx, name)
		if err != nil {
			return nil, fmt.Errorf("snapshot %q: %w", name, err)
		}
		chain = append(chain, link{id: id, name: name, labels: info.Labels})
		name = info.Parent
	}
	return chain, nil
}

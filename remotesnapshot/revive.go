package remotesnapshot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/storage"
	cerrdefs "github.com/containerd/errdefs"
	"github.com/containerd/log"
	bolt "go.etcd.io/bbolt"
)

// containerd's metadata database calls a snapshotter's Commit in the midst of a
// transaction of its own. When that one can't be written then, since the disk is
// full, or the process ends before it is, the database goes on with the active
// snapshot, which the snapshotter does not have any more; and the collector removes
// the committed one, of which the database does not know. What a step has written
// would be lost. So a committed snapshot remembers what it was before, and becomes
// that again when the database asks for it.

// labelFormer is on a committed snapshot: the key of the active one that it was.
const labelFormer = "lazykit/former"

// KeptBy says which database, opened at db, calls this snapshotter by name. Call it
// before the database is used. Without it nothing is revived.
func (s *Snapshotter) KeptBy(db *bolt.DB, name string) { s.keeper = keeper{db, name} }

// keeper is containerd's metadata database, as far as the names of snapshots go.
type keeper struct {
	db   *bolt.DB
	name string // of the snapshotter
}

// has says whether the database, as it was written last, has a snapshot that is called
// key here.
func (k keeper) has(key string) (ok bool, err error) {
	if k.db == nil {
		return false, nil
	}
	err = k.db.View(func(tx *bolt.Tx) error { ok = k.hasIn(tx, key); return nil })
	if err != nil {
		return false, fmt.Errorf("look for snapshot %q in containerd's database: %w", key, err)
	}
	return ok, nil
}

// hasIn is has in a transaction. The database calls a snapshot
// NAMESPACE/NUMBER/KEY here, and notes that in its own bucket for KEY (the schema is
// described in containerd's core/metadata/buckets.go).
func (k keeper) hasIn(tx *bolt.Tx, key string) bool {
	namespace, rest, _ := strings.Cut(key, "/")
	_, theirs, found := strings.Cut(rest, "/")
	if !found {
		return false
	}
	b := tx.Bucket([]byte("v1"))
	for _, name := range []string{namespace, "snapshots", k.name, theirs} {
		if b == nil || name == "" {
			return false
		}
		b = b.Bucket([]byte(name))
	}
	return b != nil && string(b.Get([]byte("name"))) == key
}

// isOwed says that the database still means a committed snapshot by the key of the
// active one that it was, and will ask for that.
func (s *Snapshotter) isOwed(info snapshots.Info) (bool, error) {
	former := info.Labels[labelFormer]
	if former == "" || info.Kind != snapshots.KindCommitted {
		return false, nil
	}
	return s.keeper.has(former)
}

// revive makes the committed snapshot that key was an active one again, if the
// database means it, and says whether there is a snapshot key now. It is called when
// there was none, for which the database otherwise never asks but while it notes that
// key was committed. So nothing may be committed meanwhile: it holds the database's own
// lock, which a caller in one of its transactions has already.
func (s *Snapshotter) revive(ctx context.Context, key string, inTransaction bool) (ok bool, rerr error) {
	if ok, err := s.keeper.has(key); !ok || err != nil {
		return false, err
	}
	if !inTransaction {
		tx, err := s.keeper.db.Begin(true)
		if err != nil {
			return false, fmt.Errorf("lock containerd's database: %w", err)
		}
		defer func() { rerr = errors.Join(rerr, tx.Rollback()) }()
		if !s.keeper.hasIn(tx, key) {
			return false, nil
		}
	}
	revived := false
	err := s.write(ctx, func(ctx context.Context) error {
		if _, _, _, err := storage.GetInfo(ctx, key); err == nil {
			ok = true // somebody else was faster
			return nil
		}
		name := ""
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted && info.Labels[labelFormer] == key {
				name = info.Name
			}
			return nil
		})
		tx, isBolt := transactionOf(ctx)
		if err != nil || name == "" || !isBolt {
			return err
		}
		ok, revived = true, true
		return uncommit(tx, name, key)
	})
	switch {
	case cerrdefs.IsNotFound(err): // there was never a snapshot
		return false, nil
	case err != nil:
		return false, fmt.Errorf("revive snapshot %q: %w", key, err)
	}
	if revived {
		log.G(ctx).Warnf("snapshot %q was committed, but containerd's database could not note that; it is active again", key)
	}
	return ok, nil
}

// uncommit undoes storage.CommitActive, for which containerd has no function: the
// record moves from name to key, becomes that of an active snapshot and loses its
// usage; and its parent's link to it, a value in the bucket of parents, follows. The
// id, by which its directory is called, stays.
func uncommit(tx *bolt.Tx, name, key string) error {
	v1 := tx.Bucket([]byte("v1"))
	all, links := v1.Bucket([]byte("snapshots")), v1.Bucket([]byte("parents"))
	from := all.Bucket([]byte(name))
	to, err := all.CreateBucket([]byte(key))
	if err != nil {
		return err
	}
	for _, k := range []string{"id", "parent", "createdat", "updatedat"} {
		if v := from.Get([]byte(k)); v != nil {
			if err := to.Put([]byte(k), v); err != nil {
				return err
			}
		}
	}
	if err := to.Put([]byte("kind"), []byte{byte(snapshots.KindActive)}); err != nil {
		return err
	}
	if err := all.DeleteBucket([]byte(name)); err != nil {
		return err
	}
	if links == nil {
		return nil
	}
	var link []byte
	err = links.ForEach(func(k, v []byte) error {
		if string(v) == name {
			link = bytes.Clone(k)
		}
		return nil
	})
	if err != nil || link == nil {
		return err
	}
	return links.Put(link, []byte(key))
}

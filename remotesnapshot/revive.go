package remotesnapshot

import (
	"bytes"
	"context"
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

// has says whether the database has a snapshot that is called key here. It calls
// one so: NAMESPACE/NUMBER/KEY, and notes that in its own bucket for KEY (the schema
// is described in containerd's core/metadata/buckets.go).
func (k keeper) has(key string) (ok bool, err error) {
	if k.db == nil {
		return false, nil
	}
	namespace, rest, _ := strings.Cut(key, "/")
	_, theirs, found := strings.Cut(rest, "/")
	if !found {
		return false, nil
	}
	err = k.db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket([]byte("v1"))
		for _, name := range []string{namespace, "snapshots", k.name, theirs} {
			if b == nil || name == "" {
				return nil
			}
			b = b.Bucket([]byte(name))
		}
		ok = b != nil && string(b.Get([]byte("name"))) == key
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("look for snapshot %q in containerd's database: %w", key, err)
	}
	return ok, nil
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
// database means it. It is called when there is no snapshot key, which is otherwise
// never asked for by the database.
func (s *Snapshotter) revive(ctx context.Context, key string) (ok bool, err error) {
	if ok, err := s.keeper.has(key); !ok || err != nil {
		return false, err
	}
	err = s.write(ctx, func(ctx context.Context) error {
		name := ""
		err := storage.WalkInfo(ctx, func(_ context.Context, info snapshots.Info) error {
			if info.Kind == snapshots.KindCommitted && info.Labels[labelFormer] == key {
				name = info.Name
			}
			return nil
		})
		if err != nil || name == "" {
			return err
		}
		tx, isBolt := transactionOf(ctx)
		if !isBolt {
			return nil
		}
		ok = true
		return uncommit(tx, name, key)
	})
	switch {
	case cerrdefs.IsNotFound(err): // there was never a snapshot
		return false, nil
	case err != nil:
		return false, fmt.Errorf("revive snapshot %q: %w", key, err)
	}
	if ok {
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

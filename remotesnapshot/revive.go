package remotesnapshot

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

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
func (s *Snapshotter) KeptBy(db *bolt.DB, name string) { s.keeper.db, s.keeper.name = db, name }

// keeper is containerd's metadata database, as far as the names of snapshots go.
type keeper struct {
	db   *bolt.DB
	name string // of the snapshotter

	mu      sync.Mutex
	commits map[string]int // those whose transactions may be under way: key, number before
}

// noteWait bounds how long a snapshot that is asked for waits for the transaction to
// end in which it was committed.
const noteWait = time.Second

// errUnsettled says that it is not known yet whether the database has noted a commit.
var errUnsettled = fmt.Errorf("it was committed, and containerd's database may be noting that: %w", cerrdefs.ErrUnavailable)

// begin notes that snapshot key will be committed in the transaction of the database
// that is under way, and forgets those whose transactions have ended.
func (k *keeper) begin(key string) {
	if k.db == nil {
		return
	}
	now, err := k.number()
	if err != nil {
		return // the database is closed
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for old, n := range k.commits {
		if n < now {
			delete(k.commits, old)
		}
	}
	if k.commits == nil {
		k.commits = map[string]int{}
	}
	k.commits[key] = now
}

// number is that of the database's last transaction that was written: it grows with
// each, and not with one that was rolled back.
func (k *keeper) number() (n int, err error) {
	err = k.db.View(func(tx *bolt.Tx) error { n = tx.ID(); return nil })
	return n, err
}

// unsettled says whether the transaction in which key was committed may be under way.
func (k *keeper) unsettled(key string) (bool, error) {
	k.mu.Lock()
	n, ok := k.commits[key]
	k.mu.Unlock()
	if !ok {
		return false, nil
	}
	now, err := k.number()
	return n == now, err
}

// settle waits until the transaction in which key was committed has ended, as far as
// there is one and it can be seen.
func (k *keeper) settle(ctx context.Context, key string) error {
	for begun := time.Now(); ; {
		unsettled, err := k.unsettled(key)
		switch {
		case err != nil || !unsettled:
			return err
		case time.Since(begun) > noteWait:
			return errUnsettled
		}
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// has says whether the database has a snapshot that is called key here. It calls
// one so: NAMESPACE/NUMBER/KEY, and notes that in its own bucket for KEY (the schema
// is described in containerd's core/metadata/buckets.go).
func (k *keeper) has(key string) (ok bool, err error) {
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
// never asked for by the database but while it notes that key was committed; unless
// the caller is in a transaction of the database's, which there is one of at a time.
func (s *Snapshotter) revive(ctx context.Context, key string, inTransaction bool) (ok bool, err error) {
	if ok, err := s.keeper.has(key); !ok || err != nil {
		return false, err
	}
	if !inTransaction {
		if err := s.keeper.settle(ctx, key); err != nil {
			return false, fmt.Errorf("snapshot %q: %w", key, err)
		}
		if ok, err := s.keeper.has(key); !ok || err != nil {
			return false, err
		}
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

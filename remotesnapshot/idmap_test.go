package remotesnapshot

import (
	"os"
	"syscall"
	"testing"

	"github.com/containerd/containerd/v2/core/snapshots"
	cerrdefs "github.com/containerd/errdefs"
)

func TestMappedRoot(t *testing.T) {
	for name, tt := range map[string]struct {
		uids, gids string
		want       owner
		fails      bool
	}{
		"one each":       {uids: "0:1000:10", gids: "0:2000:10", want: owner{known: true, uid: 1000, gid: 2000}},
		"users only":     {uids: "0:1000:10", want: owner{known: true, uid: 1000}},
		"later mapping":  {uids: "1:5:3,0:7:1", gids: "0:0:1", want: owner{known: true, uid: 7}},
		"first one wins": {uids: "0:7:1,0:8:1", want: owner{known: true, uid: 7}},
		"no root":        {uids: "1:1000:10", fails: true},
		"no size":        {uids: "0:1000:0", fails: true},
		"too short":      {uids: "0:1000", fails: true},
		"too long":       {uids: "0:1000:1:1", fails: true},
		"negative":       {uids: "0:-1:1", fails: true},
		"no such user":   {uids: "0:4294967295:1", fails: true},
		"trailing comma": {uids: "0:1:1,", fails: true},
		"bad groups":     {uids: "0:1:1", gids: "x", fails: true},
	} {
		t.Run(name, func(t *testing.T) {
			got, ok, err := mappedRoot(map[string]string{
				snapshots.LabelSnapshotUIDMapping: tt.uids, snapshots.LabelSnapshotGIDMapping: tt.gids,
			})
			if tt.fails {
				if !cerrdefs.IsInvalidArgument(err) || ok {
					t.Fatalf("ok = %v, error %v", ok, err)
				}
				return
			}
			if err != nil || !ok || got != tt.want {
				t.Fatalf("%+v, %v, %v", got, ok, err)
			}
		})
	}
	if _, ok, err := mappedRoot(map[string]string{"a": "b"}); ok || err != nil {
		t.Fatal(ok, err)
	}
}

// TestRootOwner checks who owns a new upper directory: the mapped root, the
// owner of the parent's root, also where that is a layer's.
func TestRootOwner(t *testing.T) {
	needRoot(t)
	w := newWorld(t, Options{})
	dgst := w.fs.layer("base", true)
	if err := os.Lchown(w.fs.layers[dgst].dir, 12, 34); err != nil {
		t.Fatal(err)
	}
	w.remote("base", "", dgst)
	check := func(key string, uid, gid uint32) {
		t.Helper()
		st, err := os.Stat(w.dirs.upper(w.id(key)))
		if err != nil {
			t.Fatal(err)
		}
		if got := st.Sys().(*syscall.Stat_t); got.Uid != uid || got.Gid != gid {
			t.Errorf("%s belongs to %d:%d, not %d:%d", key, got.Uid, got.Gid, uid, gid)
		}
	}
	if _, err := w.Prepare(t.Context(), "child", "base"); err != nil {
		t.Fatal(err)
	}
	check("child", 12, 34)
	mapped := snapshots.WithLabels(map[string]string{
		snapshots.LabelSnapshotUIDMapping: "0:500:10", snapshots.LabelSnapshotGIDMapping: "0:600:10",
	})
	if _, err := w.Prepare(t.Context(), "mapped", "base", mapped); err != nil {
		t.Fatal(err)
	}
	check("mapped", 500, 600)
	bad := snapshots.WithLabels(map[string]string{snapshots.LabelSnapshotUIDMapping: "nonsense"})
	if _, err := w.Prepare(t.Context(), "bad", "base", bad); !cerrdefs.IsInvalidArgument(err) {
		t.Errorf("bad mapping: %v", err)
	}
	w.checkNoLeak()
}

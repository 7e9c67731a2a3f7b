package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	controlapi "github.com/moby/buildkit/api/services/control"
	"github.com/moby/buildkit/client"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
)

// slack is how much more than what was lost may be fetched again, and guess what a step
// may fetch that ran before: requests bring more than what is read, and not the same
// each time.
const (
	slack = 3 << 20
	guess = 1 << 20
)

// check looks at the state that the fault has left, from the daemon that runs on it.
func (r *trial) check(ctx context.Context) error {
	if err := r.mounts(); err != nil {
		return err
	}
	if err := r.rebuild(ctx); err != nil {
		return err
	}
	if err := r.seed(ctx); err != nil {
		return err
	}
	if err := r.empty(ctx); err != nil {
		return err
	}
	return r.said()
}

// mounts are those of the FUSE server, alive, and images of a daemon that went on.
func (r *trial) mounts() error {
	found, err := lab.Mounts(r.root)
	if err != nil {
		return err
	}
	var list []string
	for _, m := range found {
		if _, err := os.Stat(m.Mountpoint); err != nil {
			return fmt.Errorf("a dead mount is left: %w", err)
		}
		if m.FSType != "erofs" {
			list = append(list, filepath.Base(m.Mountpoint))
		}
	}
	slices.Sort(list)
	if want := []string{"d", "p", "x"}; !slices.Equal(list, want) {
		return fmt.Errorf("there should be three mounts, of the FUSE server: %v", list)
	}
	var left []string
	for deadline := time.Now().Add(3 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if left, err = containers(r.root); err != nil || len(left) == 0 {
			return err
		}
	}
	return fmt.Errorf("steps of the daemon before still run: %v", left)
}

// containers are processes with mounts of their own of what lies below root: steps.
func containers(root string) (out []string, err error) {
	procs, err := filepath.Glob("/proc/[0-9]*/mountinfo")
	if err != nil {
		return nil, err
	}
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		return nil, err
	}
	for _, p := range procs {
		dir := filepath.Dir(p)
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || ns == own {
			continue
		}
		if b, err := os.ReadFile(p); err == nil && strings.Contains(string(b), root+"/") {
			cmd, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
			out = append(out, filepath.Base(dir)+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	return out, nil
}

// rebuild does the work again: it succeeds, with the same bytes, what was cached
// still is, and what was fetched is not fetched again.
func (r *trial) rebuild(ctx context.Context) error {
	m := r.fault.moment
	before, err := r.b.registry.Stats(ctx)
	if err != nil {
		return err
	}
	r.b.seedCached = false
	out, err := m.again()(ctx, r.b, r.daemon)
	if err != nil {
		return fmt.Errorf("the work fails afterwards: %w", err)
	}
	if err := out.diff(m.want); err != nil {
		return fmt.Errorf("afterwards %w", err)
	}
	if m.state == stateSeeded && m.name != "export" && r.fault.kind != power && !r.b.seedCached {
		return errors.New("a step that was cached before the fault runs again")
	}
	after, err := r.b.registry.Stats(ctx)
	if err != nil {
		return err
	}
	again := after.LayerBytes - before.LayerBytes
	if r.fault.kind == kill || r.fault.kind == term {
		if may := m.bytes - max(0, r.kept-r.hinted); m.redo == nil && again > may+may/10+slack {
			return fmt.Errorf("%d bytes are fetched after the fault, though %d of %d were kept", again, r.kept-r.hinted, m.bytes)
		}
	}
	return nil
}

// seed runs the seed's step without the cache. Everything that it reads was fetched
// and noted before the fault.
func (r *trial) seed(ctx context.Context) error {
	if r.fault.moment.state == stateEmpty || r.fault.moment.forget {
		return nil
	}
	if err := r.b.registry.Reset(ctx); err != nil {
		return err
	}
	out, err := r.b.build(ctx, r.daemon, lab.BuildOptions{
		Dockerfile: "FROM " + r.b.base + " AS base\n" + seedStep + "FROM scratch\nCOPY --from=base /seed /\n", NoCache: true,
	})
	if err != nil {
		return fmt.Errorf("a step on the same base fails afterwards: %w", err)
	}
	if err := out.diff(seedOutput); seedOutput != nil && err != nil {
		return fmt.Errorf("a step on the same base: %w", err)
	}
	seedOutput = out
	s, err := r.b.registry.Stats(ctx)
	if err != nil {
		return err
	}
	if s.LayerBytes > guess && r.fault.kind != power {
		return fmt.Errorf("what was fetched before the fault is fetched again: %d requests, %d bytes", s.LayerGets, s.LayerBytes)
	}
	return nil
}

// seedOutput is what the seed's step makes, always.
var seedOutput output

// empty removes everything through the API and makes sure that nothing is left.
func (r *trial) empty(ctx context.Context) error {
	if err := r.clear(ctx); err != nil {
		return err
	}
	if r.fault.kind.errno() != 0 {
		// What could not be removed at the time goes with the next start, and a record
		// whose transaction failed after all of it was written turns up then.
		if err := errors.Join(r.daemon.Stop(), r.daemon.Remove(), r.restart(ctx), r.clear(ctx)); err != nil {
			return err
		}
	}
	orphans, err := r.waitNoOrphans()
	if err != nil {
		return err
	}
	if len(orphans) > 0 {
		err := fmt.Errorf("files are left that nothing explains:\n%s", strings.Join(orphans, "\n"))
		return errors.Join(err, r.daemon.Stop(), r.databases())
	}
	d := r.daemon
	if err := d.Stop(); err != nil {
		return err
	}
	return r.databases()
}

// waitNoOrphans lists what is left when nothing more goes by itself.
func (r *trial) waitNoOrphans() (orphans []string, err error) {
	for deadline := time.Now().Add(ttl + 7*time.Second); ; time.Sleep(200 * time.Millisecond) {
		if orphans, err = r.orphans(); err != nil || len(orphans) == 0 || time.Now().After(deadline) {
			return orphans, err
		}
	}
}

// clear removes everything through the API.
func (r *trial) clear(ctx context.Context) error {
	c, err := r.daemon.Client(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.DiskUsage(ctx); err != nil {
		return fmt.Errorf("disk usage: %w", err)
	}
	if err := forgetBuilds(ctx, c); err != nil {
		return fmt.Errorf("history: %w", err)
	}
	if err := c.Prune(ctx, nil, client.PruneAll); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	time.Sleep(ttl + 500*time.Millisecond)
	if err := c.Prune(ctx, nil, client.PruneAll); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	left, err := c.DiskUsage(ctx)
	if err != nil {
		return fmt.Errorf("disk usage: %w", err)
	}
	if len(left) > 0 {
		return fmt.Errorf("a prune leaves %d records: %s %q", len(left), left[0].ID, left[0].Description)
	}
	return nil
}

// forgetBuilds removes the history, which keeps logs and attestations.
func forgetBuilds(ctx context.Context, c *client.Client) error {
	stream, err := c.ControlClient().ListenBuildHistory(ctx, &controlapi.BuildHistoryRequest{EarlyExit: true})
	if err != nil {
		return err
	}
	for {
		ev, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if ev.Type != controlapi.BuildHistoryEventType_COMPLETE {
			continue
		}
		if _, err := c.ControlClient().UpdateBuildHistory(ctx, &controlapi.UpdateBuildHistoryRequest{Ref: ev.Record.Ref, Delete: true}); err != nil {
			return err
		}
	}
}

// orphans are paths that an empty state does not have.
func (r *trial) orphans() (out []string, err error) {
	now, err := paths(r.root)
	if err != nil {
		return nil, err
	}
	for p := range now {
		if !r.b.empty[p] {
			out = append(out, p)
		}
	}
	return out, nil
}

// paths lists a state directory without what is mounted in it. Databases keep their
// size, profiles outlive their layers, and a damaged database is kept aside.
func paths(root string) (map[string]bool, error) {
	out := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		rel := strings.TrimPrefix(path, root)
		switch rel {
		case "/runc-stargz/lazy/profiles", "/runc-stargz/snapshots/snapshotter/p", "/runc-stargz/snapshots/snapshotter/x":
			return fs.SkipDir
		case "/buildkitd.lock", "/runc-stargz/inuse", "/runc-stargz/executor/resolv.conf", "/runc-stargz/executor/runc-log.json":
			return nil // one for all steps
		}
		if strings.HasSuffix(rel, ".db") || strings.HasSuffix(rel, ".bak") {
			return nil
		}
		out[rel] = true
		return nil
	})
	return out, err
}

// databases are whole, and hold nothing.
func (r *trial) databases() error {
	var errs []error
	for _, db := range []struct {
		file   string
		bucket []string
	}{
		{"containerdmeta.db", []string{"v1", "buildkit", "snapshots", "stargz"}},
		{"containerdmeta.db", []string{"v1", "buildkit", "content", "blob"}},
		{"containerdmeta.db", []string{"v1", "buildkit", "content", "ingests"}},
		{"containerdmeta.db", []string{"v1", "buildkit", "leases"}},
		{"containerdmeta.db", []string{"v1", "buildkit_history", "content", "blob"}},
		{"containerdmeta.db", []string{"v1", "buildkit_history", "leases"}},
		{"metadata_v2.db", []string{"_main"}},
		{"snapshots/snapshotter/metadata.db", []string{"v1", "snapshots"}},
	} {
		n, err := keys(filepath.Join(r.root, "runc-stargz", db.file), db.bucket)
		if err != nil {
			return fmt.Errorf("%s: %w", db.file, err)
		}
		if len(n) > 0 {
			errs = append(errs, fmt.Errorf("%s: %s has %d keys: %v", db.file, strings.Join(db.bucket, "/"), len(n), n))
		}
	}
	return errors.Join(errs...)
}

func keys(file string, path []string) (out []string, err error) {
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	err = db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			return err
		}
		b := tx.Bucket([]byte(path[0]))
		for _, name := range path[1:] {
			if b == nil {
				return nil
			}
			b = b.Bucket([]byte(name))
		}
		if b == nil {
			return nil
		}
		return b.ForEach(func(k, _ []byte) error {
			out = append(out, string(k))
			return nil
		})
	})
	return out, err
}

// said makes sure that no daemon has panicked.
func (r *trial) said() error {
	data, err := os.ReadFile(r.root + ".log")
	if err != nil {
		return err
	}
	for _, line := range strings.Split(string(data), "\n") {
		for _, bad := range []string{"panic:", "fatal error:", "unexpected fault", "DATA RACE"} {
			if strings.Contains(line, bad) {
				return fmt.Errorf("the log says: %s", line)
			}
		}
	}
	return nil
}

// hinted is how many bytes of the image's layers are noted on disk. No daemon may run.
func hinted(root string, img *lab.Image) (n int64, err error) {
	dir := filepath.Join(root, "runc-stargz", "lazy", "blobs")
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	s, err := blob.NewStore(blob.Options{Root: dir})
	if err != nil {
		return 0, err
	}
	defer s.Close()
	for _, l := range img.Layers {
		st, err := s.State(l.Digest)
		if err != nil {
			return 0, err
		}
		n += st.Fetched
	}
	return n, nil
}

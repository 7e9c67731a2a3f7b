package remotesnapshot

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	newPrefix  = "new-" // directories that have no id yet
	gonePrefix = "rm-"  // directories that no id owns any more
)

// dirs is root/snapshots: a directory for each id. A directory is made under a
// temporary name and renamed to its id in the transaction that makes the id;
// rubbish is renamed out of an id's way in a transaction too, since an id that
// was rolled back is given out again.
type dirs struct {
	path string
	mu   struct {
		sync.Mutex
		inUse map[string]struct{} // names of new-* directories
	}
}

func (d *dirs) upper(id string) string { return filepath.Join(d.path, id, "fs") }
func (d *dirs) work(id string) string  { return filepath.Join(d.path, id, "work") }

// newDir is a directory that belongs to no snapshot yet.
type newDir struct {
	dirs *dirs
	name string
}

// create makes a directory with fs, owned by owner, and with work if the
// snapshot is to be written. The caller ends it by release.
func (d *dirs) create(withWork bool, owner owner) (_ *newDir, err error) {
	n := &newDir{dirs: d, name: newPrefix + rand.Text()}
	d.mu.Lock()
	if d.mu.inUse == nil {
		d.mu.inUse = map[string]struct{}{}
	}
	d.mu.inUse[n.name] = struct{}{}
	d.mu.Unlock()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("directory for a snapshot: %w", err), n.release())
		}
	}()
	dir := filepath.Join(d.path, n.name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	fs := filepath.Join(dir, "fs")
	if err := os.Mkdir(fs, 0o755); err != nil {
		return nil, err
	}
	// The process' umask must not shape a container's root directory.
	if err := os.Chmod(fs, 0o755); err != nil {
		return nil, err
	}
	if owner.known {
		if err := os.Lchown(fs, owner.uid, owner.gid); err != nil {
			return nil, err
		}
	}
	if withWork {
		if err := os.Mkdir(filepath.Join(dir, "work"), 0o711); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// publish gives the directory to id, in the write transaction that made id.
func (n *newDir) publish(id string) error {
	from, to := filepath.Join(n.dirs.path, n.name), filepath.Join(n.dirs.path, id)
	err := os.Rename(from, to)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		// Left behind by a transaction that was rolled back after this point.
		if err := os.Rename(to, filepath.Join(n.dirs.path, gonePrefix+rand.Text())); err != nil {
			return err
		}
		err = os.Rename(from, to)
	}
	return err
}

// sync forces the names of the directories to disk.
func (d *dirs) sync() error {
	f, err := os.Open(d.path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// release ends the use of the temporary name, and removes what still lies there.
func (n *newDir) release() error {
	err := os.RemoveAll(filepath.Join(n.dirs.path, n.name))
	n.dirs.mu.Lock()
	delete(n.dirs.mu.inUse, n.name)
	n.dirs.mu.Unlock()
	return err
}

func (d *dirs) isInUse(name string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, ok := d.mu.inUse[name]
	return ok
}

// setAside renames every directory that neither ids nor a call under way owns,
// and returns the paths that are to be removed. It needs the write transaction
// that ids was read in.
func (d *dirs) setAside(ids map[string]string) ([]string, error) {
	f, err := os.Open(d.path)
	if err != nil {
		return nil, err
	}
	names, err := f.Readdirnames(-1)
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	var rubbish []string
	for _, name := range names {
		if _, owned := ids[name]; owned || d.isInUse(name) {
			continue
		}
		path := filepath.Join(d.path, name)
		if !strings.HasPrefix(name, gonePrefix) && !strings.HasPrefix(name, newPrefix) {
			aside := filepath.Join(d.path, gonePrefix+rand.Text())
			err := os.Rename(path, aside)
			if errors.Is(err, os.ErrNotExist) {
				continue // a Remove deletes it at the same time
			}
			if err != nil {
				return rubbish, err
			}
			path = aside
		}
		rubbish = append(rubbish, path)
	}
	return rubbish, nil
}

// removeAll removes paths, until ctx ends.
func removeAll(ctx context.Context, paths []string) error {
	var errs []error
	for _, p := range paths {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		if err := os.RemoveAll(p); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// owner of a directory, if it is known.
type owner struct {
	known    bool
	uid, gid int
}

// ownerOf reads the owner of a directory.
func ownerOf(dir string) (owner, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return owner{}, &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	return owner{known: true, uid: int(st.Uid), gid: int(st.Gid)}, nil
}

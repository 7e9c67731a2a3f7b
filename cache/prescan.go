package cache

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/contenthash"
	"github.com/moby/buildkit/snapshot"
	"github.com/moby/buildkit/util/overlay"
)

// keyContentHash is where BuildKit's contenthash keeps what it knows of a record's
// tree: paths, some of them with digests.
const keyContentHash = "buildkit.contenthash.v0"

// Most entries of one directory, and of all, that a prescan lists. 10,000 are
// listed in a tenth of a second.
const (
	prescanDir   = 4_000
	prescanTotal = 10_000
)

// prescanWait is how long a prescan waits for the record's lock and its mounts.
const prescanWait = 5 * time.Second

// contentHashes is a record's metadata with which contenthash begins.
//
// To hash /out, contenthash lists the directory that /out is in, with everything
// below it: the whole root file system. COPY --from of what a step has made waits
// for that, seconds on a lazy base that nothing has looked at. A path that it knows
// is hashed without. So a record that nothing is known of begins with what lies at
// the root and is not the base's.
type contentHashes struct {
	bkcache.RefMetadata
	record *record
}

// GetExternal implements bkcache.RefMetadata.
func (c contentHashes) GetExternal(key string) ([]byte, error) {
	raw, err := c.RefMetadata.GetExternal(key)
	if key != keyContentHash || err == nil && raw != nil {
		return raw, err
	}
	scanned, serr := c.record.prescan()
	if serr != nil || scanned == nil {
		// Nothing is lost: contenthash lists the tree by itself.
		return raw, err
	}
	return scanned, nil
}

// GetExternal implements bkcache.RefMetadata.
func (h *immutableRef) GetExternal(key string) ([]byte, error) {
	return contentHashes{h.ref.RefMetadata, h.record}.GetExternal(key)
}

// GetEqualMutable implements bkcache.RefMetadata. What is known of twins' trees is
// kept with the mutable one.
func (h *immutableRef) GetEqualMutable() (bkcache.RefMetadata, bool) {
	md, ok := h.ref.RefMetadata.GetEqualMutable()
	if !ok {
		return nil, false
	}
	return contentHashes{md, h.record}, true
}

// prescan lists files at the root of the record's tree, and the directories there
// that its bottom layer does not have, with all that is in them. It returns them as
// contenthash stores them; nil where there is nothing to gain. What a layer holds is
// asked of the mount, so overlayfs decides what is visible.
func (r *record) prescan() ([]byte, error) {
	// BuildKit brings no context here. What follows is local; the lock may be held
	// by somebody who waits for the network.
	ctx, cancel := context.WithTimeout(context.Background(), prescanWait)
	defer cancel()
	if keyBlobOnly.get(r.meta) {
		return nil, nil // not extracted: contenthash is about to
	}
	mountable, err := r.mountForReaders(ctx)
	if err != nil {
		return nil, err
	}
	var bottom string
	mounter := snapshot.LocalMounter(&seenMountable{&readonlyMountable{mountable}, func(m mount.Mount) {
		bottom = bottomDir(m)
	}})
	root, err := mounter.Mount()
	if err != nil {
		return nil, err
	}
	list, err := prescanTree(root, bottom)
	if err = errors.Join(err, mounter.Unmount()); err != nil || len(list) == 0 {
		return nil, err
	}
	return (&contenthash.CacheRecords{Paths: list}).MarshalVT()
}

// bottomDir is the bottom layer's directory in an overlay; "" in another mount.
func bottomDir(m mount.Mount) string {
	if !overlay.IsOverlayMountType(m) {
		return ""
	}
	for _, o := range m.Options {
		if lowers, ok := strings.CutPrefix(o, optionLower); ok {
			return lowers[strings.LastIndexByte(lowers, ':')+1:]
		}
	}
	return ""
}

// seenMountable shows the first of the mounts.
type seenMountable struct {
	snapshot.Mountable
	see func(mount.Mount)
}

// Mount implements snapshot.Mountable.
func (s *seenMountable) Mount() ([]mount.Mount, func() error, error) {
	mounts, unmount, err := s.Mountable.Mount()
	if err == nil && len(mounts) > 0 {
		s.see(mounts[0])
	}
	return mounts, unmount, err
}

// prescanTree does prescan's work on a mounted tree.
func prescanTree(root, bottom string) ([]*contenthash.CacheRecordWithPath, error) {
	if bottom == "" {
		return nil, nil
	}
	entries, err := os.ReadDir(root)
	if err != nil {
		return nil, err
	}
	var all []*contenthash.CacheRecordWithPath
	for _, e := range entries {
		switch {
		case e.IsDir():
			_, err := os.Lstat(filepath.Join(bottom, e.Name()))
			if err == nil {
				continue
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			list, err := prescanSubtree(root, e.Name(), min(prescanDir, prescanTotal-len(all)))
			if err != nil {
				return nil, err
			}
			all = append(all, list...)
		case e.Type()&fs.ModeSymlink == 0:
			all = append(all, hashRecord("/"+e.Name(), contenthash.CacheRecordTypeFile))
		}
	}
	return all, nil
}

var errTooMany = errors.New("too many entries")

// prescanSubtree lists a directory with all that is in it; nothing where there are
// more than most entries.
func prescanSubtree(root, dir string, most int) (list []*contenthash.CacheRecordWithPath, err error) {
	left := most
	err = filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if left--; left < 0 {
			return errTooMany
		}
		name := strings.TrimPrefix(path, root)
		switch {
		case e.IsDir():
			// A directory with its contents, and its header alone.
			list = append(list, hashRecord(name, contenthash.CacheRecordTypeDir), hashRecord(name+"/", contenthash.CacheRecordTypeDirHeader))
		case e.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			link := hashRecord(name, contenthash.CacheRecordTypeSymlink)
			link.Record.Linkname = target
			list = append(list, link)
		default:
			list = append(list, hashRecord(name, contenthash.CacheRecordTypeFile))
		}
		return nil
	})
	switch {
	case errors.Is(err, errTooMany):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("list %s: %w", dir, err)
	}
	return list, nil
}

// hashRecord is an entry without a digest, as contenthash has it: by its path with
// zero bytes for slashes.
func hashRecord(path string, t contenthash.CacheRecordType) *contenthash.CacheRecordWithPath {
	return &contenthash.CacheRecordWithPath{
		Path:   strings.ReplaceAll(path, "/", "\x00"),
		Record: &contenthash.CacheRecord{Type: t},
	}
}

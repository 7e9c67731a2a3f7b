package lazyfs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// Remove frees the disk space of a layer that nobody has open: its blob and, when
// its manifest names no TOC digest, its TOC. errdefs.ErrFailedPrecondition while
// it is in use. Other TOCs are small and left to Collect.
func (fs *FS) Remove(dgst digest.Digest) error {
	if len(fs.entriesOf(dgst)) > 0 {
		return fmt.Errorf("layer %s is in use: %w", dgst, cerrdefs.ErrFailedPrecondition)
	}
	if err := fs.blobs.Remove(dgst); err != nil {
		return err
	}
	err := os.Remove(layer.TOCPath(fs.tocDir, dgst, estargz.Hints{}))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// kept is a blob or a TOC on disk that no open layer needs.
type kept struct {
	blob digest.Digest // "" for a TOC
	toc  string        // path
	size int64
	used time.Time
}

// Collect frees disk space until the blobs and TOCs that no open layer needs have
// at most KeepBytes, those first that were not used for longest, and says how
// much it freed. Snapshots of what goes keep working: it is fetched again.
func (fs *FS) Collect(ctx context.Context) (freed int64, err error) {
	list, err := fs.unused()
	if err != nil {
		return 0, err
	}
	slices.SortFunc(list, func(a, b kept) int { return cmp.Or(b.used.Compare(a.used), cmp.Compare(a.size, b.size)) })
	room := max(fs.opts.KeepBytes, 0)
	for _, k := range list {
		if room -= k.size; room >= 0 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return freed, err
		}
		switch err := fs.free(k); {
		case cerrdefs.IsFailedPrecondition(err): // it came into use
		case err != nil:
			return freed, err
		default:
			freed += k.size
		}
	}
	return freed, nil
}

func (fs *FS) free(k kept) error {
	if k.blob != "" {
		return fs.blobs.Remove(k.blob)
	}
	// A layer that is opened at this moment keeps its mapping, and the next one
	// that looks for the file finds none.
	return os.Remove(k.toc)
}

// unused lists what no open layer needs.
func (fs *FS) unused() ([]kept, error) {
	blobs, tocs := fs.needed()
	list, err := fs.unusedBlobs(blobs)
	if err != nil {
		return nil, err
	}
	files, err := os.ReadDir(fs.tocDir)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		path := filepath.Join(fs.tocDir, f.Name())
		st, err := f.Info()
		if tocs[path] || !layer.Kept(f.Name()) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, kept{toc: path, size: st.Size(), used: st.ModTime()})
	}
	return list, nil
}

func (fs *FS) unusedBlobs(needed map[digest.Digest]bool) (list []kept, err error) {
	digests, err := fs.blobs.Digests()
	if err != nil {
		return nil, err
	}
	for _, d := range digests {
		if needed[d] {
			continue
		}
		// What another store has as well costs nothing, and spares a fetch.
		linked, err := fs.blobs.Linked(d)
		if err != nil {
			return nil, err
		}
		if linked {
			continue
		}
		size, err := fs.blobs.Usage(d)
		if err != nil {
			return nil, err
		}
		used, err := fs.blobs.LastUsed(d)
		if err != nil {
			return nil, err
		}
		list = append(list, kept{blob: d, size: size, used: used})
	}
	return list, nil
}

// markUsed tells Collect that a layer was in use until now.
func (fs *FS) markUsed(k key) error {
	if err := fs.blobs.Touch(k.blob); err != nil {
		return err
	}
	toc := layer.TOCPath(fs.tocDir, k.blob, estargz.Hints{TOCDigest: k.toc})
	if err := os.Chtimes(toc, time.Time{}, time.Now()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// needed is what the open layers have on disk.
func (fs *FS) needed() (blobs map[digest.Digest]bool, tocs map[string]bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	blobs, tocs = map[digest.Digest]bool{}, map[string]bool{}
	for k := range fs.mu.entries {
		blobs[k.blob] = true
		tocs[layer.TOCPath(fs.tocDir, k.blob, estargz.Hints{TOCDigest: k.toc})] = true
		tocs[layer.TOCPath(fs.tocDir, k.blob, estargz.Hints{})] = true
	}
	fs.aheadLocked()
	for d := range fs.mu.ahead {
		blobs[d] = true
	}
	return blobs, tocs
}

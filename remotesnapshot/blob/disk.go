package blob

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/containerd/v2/pkg/reference"
)

// diskPause is how long writes are not tried again after one has failed; reads
// go past the disk in that time.
const diskPause = 10 * time.Second

// load opens the files of an entry, once.
func (e *entry) load() error {
	e.loadMu.Lock()
	defer e.loadMu.Unlock()
	e.mu.Lock()
	loaded := e.mu.file != nil
	e.mu.Unlock()
	if loaded {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(e.path), 0o700); err != nil {
		return err
	}
	file, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	h, err := e.recall(file)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			e.store.hintFailed(fmt.Errorf("ranges of blob %s: %w", e.dgst, err))
		}
		h = hint{}
	}
	if !h.verified {
		var uerr error
		if file, h, uerr = e.unshare(file, h); uerr != nil {
			return errors.Join(uerr, file.Close())
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.mu.file = file
	e.mu.present = h.present
	e.mu.size, e.mu.sizeKnown = h.size, err == nil || h.verified
	e.mu.local = h.verified
	e.mu.dirty = h.verified && h.modified == 0
	return nil
}

// recall reads the hint and takes from it what the file can still vouch for.
func (e *entry) recall(file *os.File) (hint, error) {
	h, err := readHint(e.path + hintSuffix)
	if err != nil {
		return hint{}, err
	}
	fi, err := file.Stat()
	if err != nil {
		return hint{}, err
	}
	if h.verified && fi.Size() == h.size && fi.ModTime().UnixNano() == h.modified {
		return h, nil // its bytes were synced before this was written, and not touched since
	}
	h.verified = false
	onDisk, err := extents(file)
	if err != nil {
		return hint{}, err
	}
	h.present = h.present.intersect(onDisk)
	return h, nil
}

// unshare makes sure that a file which is to be written has no name in another
// store, whose readers trust it: the process may have ended after it was linked there
// and before it was known as verified, or somebody has written to it since. One that
// has the right digest is as good as new, and otherwise a new one takes its name.
func (e *entry) unshare(file *os.File, h hint) (*os.File, hint, error) {
	fi, err := file.Stat()
	if err != nil || !linked(fi) {
		return file, h, err
	}
	v := e.dgst.Verifier()
	n, err := io.Copy(v, io.NewSectionReader(file, 0, fi.Size()))
	if err != nil {
		return file, h, err
	}
	if v.Verified() {
		whole := hint{size: n, verified: true}
		whole.present.add(span{0, n})
		return file, whole, nil
	}
	if err := os.Remove(e.path); err != nil {
		return file, h, err
	}
	fresh, err := os.OpenFile(e.path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return file, h, err
	}
	return fresh, hint{size: h.size}, file.Close()
}

// flush writes the hint when it has changed. A whole and verified blob's bytes are
// synced first, since nobody verifies them again after a restart.
func (e *entry) flush() {
	e.flushMu.Lock()
	defer e.flushMu.Unlock()
	e.mu.Lock()
	h := hint{size: e.mu.size, verified: e.mu.local, present: e.mu.present.clone()}
	due := e.mu.dirty && e.mu.sizeKnown && e.mu.file != nil
	file := e.mu.file
	if due {
		e.mu.dirty = false
	}
	e.mu.Unlock()
	if !due {
		return
	}
	err := error(nil)
	if h.verified {
		h.modified, err = synced(file)
	}
	if err == nil {
		err = writeHint(e.path+hintSuffix, h, h.verified)
	}
	if err != nil {
		e.store.hintFailed(fmt.Errorf("write ranges of blob %s: %w", e.dgst, err))
		e.mu.Lock()
		e.mu.dirty = true
		e.mu.Unlock()
	}
}

// synced forces a file to disk and says when it was modified last.
func synced(file *os.File) (modified int64, err error) {
	if err := file.Sync(); err != nil {
		return 0, err
	}
	fi, err := file.Stat()
	if err != nil {
		return 0, err
	}
	return fi.ModTime().UnixNano(), nil
}

// shut ends flights and demands, writes the hint and closes the file.
func (e *entry) shut() error {
	e.mu.Lock()
	e.mu.closing = true
	for _, d := range slices.Clone(e.mu.demands) {
		e.finishLocked(d, ErrClosed)
	}
	e.mu.Unlock()
	e.cancel(ErrClosed)
	e.wg.Wait()
	e.flush()
	e.mu.Lock()
	files := e.mu.retired
	if e.mu.file != nil {
		files = append(files, e.mu.file)
	}
	e.mu.Unlock()
	var errs []error
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

// addOrigin puts o before the known origins, in place of one with the same reference.
func (e *entry) addOrigin(o Origin) {
	if o.Hosts == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	kept := []Origin{o}
	if !slices.ContainsFunc(e.mu.origins, func(have Origin) bool { return have.registry() == o.registry() }) {
		e.mu.added++
	}
	for _, have := range e.mu.origins {
		if have.Reference != o.Reference && len(kept) < maxOrigins {
			kept = append(kept, have)
		}
	}
	e.mu.origins = kept
}

// registry is the one that an origin names; its reference where that names none.
func (o Origin) registry() string {
	if spec, err := reference.Parse(o.Reference); err == nil {
		return spec.Hostname()
	}
	return o.Reference
}

// origins is how many registries the blob could be asked for at.
func (e *entry) origins() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.mu.added
}

// maxOrigins bounds the origins kept of a blob; the oldest are forgotten.
const maxOrigins = 16

func (s *Store) hintFailed(err error) {
	s.stats.hintFails.Add(1)
	s.opts.OnError(err)
}

// diskFailed stops writes for a while.
func (s *Store) diskFailed() { s.noDisk.Store(time.Now().Add(diskPause).UnixNano()) }

// diskPaused says whether writes are not tried at present.
func (s *Store) diskPaused() bool {
	until := s.noDisk.Load()
	return until != 0 && time.Now().UnixNano() < until
}

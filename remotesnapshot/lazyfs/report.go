package lazyfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/estargz"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// Report is what the file system does at one moment.
type Report struct {
	Layers  []LayerReport     // those that are open
	NotLazy []Reason          // the latest layers that could not be resolved, the last one first
	Fetched blob.Stats        // requests and bytes since the start
	FUSE    map[string]uint64 // messages of the kernel, by operation
	Memory  int64             // bytes of chunk memory
}

// LayerReport is a layer that is open.
type LayerReport struct {
	layer.Info
	TOCDigest digest.Digest // "" when the manifest names none
	Reference string        // of the image that asked last
	Holds     int           // snapshots that need it
	Pending   bool          // restored and not used yet: Info has the digest only
}

// Reason says why a layer is not lazy.
type Reason struct {
	Digest    digest.Digest
	Reference string
	Final     bool // see IsFinal
	Err       string
	Time      time.Time
}

// Report never blocks on the network.
func (fs *FS) Report() Report {
	r := Report{Fetched: fs.blobs.Stats(), FUSE: fs.server.Requests(), Memory: fs.pool.Memory()}
	fs.mu.Lock()
	r.NotLazy = fs.mu.reasons.list()
	entries := make([]*entry, 0, len(fs.mu.entries))
	for _, e := range fs.mu.entries {
		entries = append(entries, e)
		r.Layers = append(r.Layers, LayerReport{TOCDigest: e.key.toc, Reference: e.reference, Holds: e.holds})
	}
	fs.mu.Unlock()
	for i, e := range entries {
		info, ok := e.content.info()
		info.Digest = e.key.blob
		r.Layers[i].Info, r.Layers[i].Pending = info, !ok
	}
	return r
}

// Info implements remotesnapshot.Lazy.
func (fs *FS) Info(dgst digest.Digest) remotesnapshot.LayerInfo {
	state, err := fs.blobs.State(dgst)
	info := remotesnapshot.LayerInfo{Size: state.Size, Fetched: state.Fetched, Local: state.Local, LastError: fs.lastReason(dgst)}
	if err != nil {
		info.LastError = err.Error()
	}
	for _, e := range fs.entriesOf(dgst) {
		i, ok := e.content.info()
		if !ok {
			continue
		}
		info.Open = true
		info.Size, info.LastRead = i.Size, later(info.LastRead, i.LastRead)
		info.Prefetched += i.Prefetched
		if i.LastError != "" {
			info.LastError, info.LastFailed = i.LastError, later(info.LastFailed, i.LastFailed)
		}
	}
	return info
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// lastReason is why the layer's last Resolve failed, "" if it didn't.
func (fs *FS) lastReason(dgst digest.Digest) string {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.mu.reasons.of(dgst)
}

// Usage implements remotesnapshot.Lazy. A TOC that the manifest vouches for is
// known, and counted, while its layer is open, as that of a snapshot is.
func (fs *FS) Usage(dgst digest.Digest) (int64, error) {
	n, err := fs.blobs.Usage(dgst)
	if err != nil {
		return 0, err
	}
	paths := map[string]struct{}{layer.TOCPath(fs.tocDir, dgst, estargz.Hints{}): {}}
	for _, e := range fs.entriesOf(dgst) {
		paths[layer.TOCPath(fs.tocDir, dgst, estargz.Hints{TOCDigest: e.key.toc})] = struct{}{}
	}
	for path := range paths {
		size, err := allocated(path)
		if err != nil {
			return 0, err
		}
		n += size
	}
	return n, nil
}

// allocated is the disk space of a file, in bytes; 0 when it is not there.
func allocated(path string) (int64, error) {
	var st unix.Stat_t
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, os.ErrNotExist):
		return 0, nil
	case err != nil:
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Blocks * 512, nil
}

func (fs *FS) entriesOf(dgst digest.Digest) (entries []*entry) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return fs.entriesOfLocked(dgst)
}

func (fs *FS) entriesOfLocked(dgst digest.Digest) (entries []*entry) {
	for k, e := range fs.mu.entries {
		if k.blob == dgst {
			entries = append(entries, e)
		}
	}
	return entries
}

// note keeps the outcome of a Resolve for reports. Callers that left have none.
func (fs *FS) note(src remotesnapshot.Source, err error) {
	if errors.Is(err, context.Canceled) || errors.Is(err, ErrClosed) {
		return
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.mu.reasons.drop(src.Digest)
	if err != nil {
		fs.mu.reasons.add(Reason{Digest: src.Digest, Reference: src.Reference, Final: IsFinal(err), Err: err.Error(), Time: time.Now()})
	}
}

// maxReasons is how many failed layers are remembered.
const maxReasons = 256

// reasons are in the order of time; guarded by FS.mu.
type reasons struct{ last []Reason }

func (r *reasons) add(n Reason) {
	if len(r.last) >= maxReasons {
		r.last = slices.Delete(r.last, 0, 1)
	}
	r.last = append(r.last, n)
}

func (r *reasons) drop(dgst digest.Digest) {
	r.last = slices.DeleteFunc(r.last, func(n Reason) bool { return n.Digest == dgst })
}

func (r *reasons) of(dgst digest.Digest) string {
	i := slices.IndexFunc(r.last, func(n Reason) bool { return n.Digest == dgst })
	if i < 0 {
		return ""
	}
	return r.last[i].Err
}

func (r *reasons) list() []Reason {
	out := slices.Clone(r.last)
	slices.Reverse(out)
	return out
}

// Check asks whether the rest of an open layer can still be had, with one small
// request. errdefs.ErrNotFound when no layer of the blob is open.
func (fs *FS) Check(ctx context.Context, dgst digest.Digest) error {
	for _, e := range fs.entriesOf(dgst) {
		l := e.content.layer.Load()
		if l == nil {
			continue
		}
		if _, err := l.Acquire(); err != nil {
			continue
		}
		defer l.Release()
		return l.Check(ctx)
	}
	return fmt.Errorf("layer %s: %w", dgst, cerrdefs.ErrNotFound)
}

package layer

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"

	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"

	"github.com/lazykit/lazykit/estargz"
)

// ErrNotResolved says that a layer was not seen before, or not well enough to be
// opened without the network.
var ErrNotResolved = errors.New("layer is not resolved")

// maxTOC bounds the compressed TOC that is read into memory; the largest ones of
// real layers have some megabytes.
const maxTOC = 256 << 20

// Finder says where the TOC of a layer is looked for. TOCDir is required.
type Finder struct {
	// TOCDir keeps the compact TOCs.
	TOCDir string
	// External fetches the TOC of an eStargz blob whose TOC lies in a blob of
	// its own; nil: such layers are not lazy.
	External func(ctx context.Context) ([]byte, error)
	// Limits of what a TOC may cost.
	Limits estargz.Limits
	// Compiling is what Finders share; nil: no bound.
	Compiling *Compiling
}

// Compiling bounds how many TOCs are decompressed, verified and compiled at the same
// time. That takes a processor, and several times a TOC's size of memory, while
// fetching them takes neither. Large TOCs have a place of their own, so that nobody
// waits long for them.
type Compiling struct{ small, large *semaphore.Weighted }

const (
	compileAtOnce = 4
	largeTOC      = 4 << 20 // compressed bytes: a layer of 200,000 files
)

// NewCompiling makes the bounds of a daemon.
func NewCompiling() *Compiling {
	return &Compiling{
		small: semaphore.NewWeighted(int64(min(runtime.GOMAXPROCS(0), compileAtOnce))),
		large: semaphore.NewWeighted(1),
	}
}

// begin waits for a place for a TOC of size compressed bytes, until end.
func (c *Compiling) begin(ctx context.Context, size int64) (end func(), err error) {
	if c == nil {
		return func() {}, nil
	}
	s := c.small
	if size > largeTOC {
		s = c.large
	}
	if err := s.Acquire(ctx, 1); err != nil {
		return nil, context.Cause(ctx)
	}
	return func() { s.Release(1) }, nil
}

// TOCPath is where the compact TOC of a layer is kept in dir: by the digest that
// vouches for it, the TOC's own or, without one, the blob's. A TOC is that of one
// blob: where its last member ends, and how it is compressed, is no part of it, and
// another image could lend its own answers.
func TOCPath(dir string, blob digest.Digest, hints estargz.Hints) string {
	if d := hints.TOCDigest; d != "" {
		return filepath.Join(dir, d.Algorithm().String()+"-"+d.Encoded()+"-"+blob.Encoded()+".toc")
	}
	return wholePath(dir, blob)
}

// wholePath is the place of a TOC that only the whole blob vouches for.
func wholePath(dir string, blob digest.Digest) string {
	return filepath.Join(dir, "blob-"+blob.Algorithm().String()+"-"+blob.Encoded()+".toc")
}

// OpenTOC opens the TOC of a layer that was resolved before, without any request.
// ErrNotResolved when that is not possible.
func (f Finder) OpenTOC(b Blob, hints estargz.Hints) (*estargz.TOC, error) {
	if toc := openKept(TOCPath(f.TOCDir, b.Digest(), hints), b); toc != nil {
		return toc, nil
	}
	return nil, fmt.Errorf("layer %s: %w", b.Digest(), ErrNotResolved)
}

// openKept opens a compact TOC if it is undamaged, is of this blob, and its
// layer can be verified: by chunk digests, or because the blob is local. A file
// that can't be used is left to Compile, which replaces it.
func openKept(path string, b Blob) *estargz.TOC {
	toc, err := estargz.Open(path)
	if err != nil {
		return nil
	}
	size := b.Size()
	if size != 0 && size != toc.BlobSize() || !toc.HasChunkDigests() && !b.Local() {
		// Closing what was only mapped for reading can't lose anything.
		_ = toc.Close()
		return nil
	}
	return toc
}

// Resolve finds the TOC of a layer, verifies it and opens its compact form: the
// one kept in TOCDir, or else, over the network, the one that the blob's footer
// or the hints point to. Where nothing vouches for the TOC or for single chunks,
// the blob is made local first. The caller closes the TOC; b stays the caller's.
//
// The error wraps estargz.ErrNotLazy when the blob has no TOC, and
// estargz.ErrCorrupt when it has a wrong one, which is fetched three times unless it is what
// the manifest names: both are final.
// Other errors are those of the network and the disk.
func (f Finder) Resolve(ctx context.Context, b Blob, hints estargz.Hints) (*estargz.TOC, error) {
	if toc, err := f.OpenTOC(b, hints); err == nil {
		return toc, nil
	}
	toc, err := f.resolve(ctx, b, hints)
	if err != nil {
		return nil, fmt.Errorf("layer %s: %w", b.Digest(), err)
	}
	return toc, nil
}

func (f Finder) resolve(ctx context.Context, b Blob, hints estargz.Hints) (*estargz.TOC, error) {
	if hints.TOCDigest != "" {
		// Never by the blob instead: whoever names a TOC relies on seeing what it says.
		return f.byDigest(ctx, b, hints)
	}
	if _, err := f.find(ctx, b, hints); err != nil {
		return nil, err // not worth the whole blob: it has no TOC, or can't be had
	}
	return f.byBlob(ctx, b, hints)
}

// errNeedsWhole says that only the whole blob can vouch for a layer's files: legacy
// stargz, whose TOC has no digests of chunks.
var errNeedsWhole = fmt.Errorf("%w that vouches for the files: %w", estargz.ErrNotLazy, errors.New("legacy stargz"))

// byDigest resolves a layer by the TOC digest of its manifest. Wrong bytes may be
// what an earlier run left on the disk, or one host's fault: they are fetched again.
func (f Finder) byDigest(ctx context.Context, b Blob, hints estargz.Hints) (*estargz.TOC, error) {
	path := TOCPath(f.TOCDir, b.Digest(), hints)
	loc, err := f.compile(ctx, b, hints, path)
	var givers givers
	for try := 1; try < wrongTOCs && errors.As(err, new(wrongBytes)); try++ {
		if size := b.Size(); size > 0 {
			from := max(0, size-estargz.TailOf(size))
			givers.add(b.Drop(from, size-from))
			if loc.Offset >= 0 && loc.Offset < from { // hints may point anywhere
				givers.add(b.Drop(loc.Offset, min(max(loc.Size, 0), size-loc.Offset)))
			}
		}
		loc, err = f.compile(ctx, b, hints, path)
	}
	if errors.As(err, new(wrongBytes)) {
		return nil, fmt.Errorf("table of contents%s, fetched %d times: %w", givers, wrongTOCs, err)
	}
	if err != nil {
		return nil, err
	}
	toc, err := estargz.Open(path)
	if err != nil || toc.HasChunkDigests() || b.Local() {
		return toc, err
	}
	return nil, errors.Join(errNeedsWhole, toc.Close())
}

// wrongTOCs is how often a TOC is fetched that is wrong each time. Fewer than
// wrongTries: a layer whose TOC is really wrong is asked for so often, too.
const wrongTOCs = 3

// wrongBytes is an error that other bytes may cure: none that the digest vouches for
// have been seen.
type wrongBytes struct{ error }

func (w wrongBytes) Unwrap() error { return w.error }

func mayBeWrongBytes(err error) error {
	if errors.Is(err, estargz.ErrCorrupt) || errors.Is(err, estargz.ErrNotLazy) {
		return wrongBytes{err}
	}
	return err
}

// compile fetches the TOC, which takes the network, and makes a compact one of it,
// which takes processors and memory. It returns where the TOC lies, as far as it
// is known.
func (f Finder) compile(ctx context.Context, b Blob, hints estargz.Hints, path string) (estargz.Location, error) {
	found, err := f.find(ctx, b, hints)
	if err != nil {
		return found.loc, mayBeWrongBytes(err)
	}
	if found.loc.Format == estargz.FormatStargz {
		return found.loc, errNeedsWhole
	}
	if found, err = f.fetch(ctx, b, found); err != nil {
		return found.loc, mayBeWrongBytes(err)
	}
	end, err := f.Compiling.begin(ctx, found.loc.Size)
	if err != nil {
		return found.loc, err
	}
	defer end()
	u, err := f.read(ctx, b, found)
	if err != nil {
		return found.loc, mayBeWrongBytes(err)
	}
	if err = u.Compile(ctx, hints.TOCDigest, path); errors.Is(err, estargz.ErrMismatch) {
		err = wrongBytes{err}
	}
	return found.loc, err
}

// byBlob resolves a layer that only its whole blob vouches for. The TOC is read
// after the blob was verified, for the bytes seen before may have been wrong.
func (f Finder) byBlob(ctx context.Context, b Blob, hints estargz.Hints) (*estargz.TOC, error) {
	if err := b.Complete(ctx, Blocked); err != nil {
		return nil, err
	}
	found, err := f.find(ctx, b, estargz.Hints{})
	if err != nil {
		return nil, err
	}
	if found.loc.Format == estargz.FormatEStargzExtern {
		return nil, fmt.Errorf("external TOC without a digest in the manifest: %w", estargz.ErrNotLazy)
	}
	end, err := f.Compiling.begin(ctx, found.loc.Size)
	if err != nil {
		return nil, err
	}
	defer end()
	u, err := f.read(ctx, b, found)
	if err != nil {
		return nil, err
	}
	path := wholePath(f.TOCDir, b.Digest())
	if err := u.CompileByBlob(ctx, path); err != nil {
		return nil, err
	}
	return estargz.Open(path)
}

// found is where a TOC lies, and its bytes where they are not the blob's on disk.
type found struct {
	loc   estargz.Location
	bytes []byte // nil: read them from the blob
}

// find learns where the TOC lies: from the hints, which costs nothing, or from
// the footer, for which the end of the blob is fetched.
func (f Finder) find(ctx context.Context, b Blob, hints estargz.Hints) (found, error) {
	if hints.TOC.Size > 0 {
		return found{loc: hints.TOC}, nil
	}
	tail, size, err := b.Tail(ctx, estargz.TailOf(max(hints.BlobSize, b.Size())))
	if err != nil {
		return found{}, err
	}
	loc, err := estargz.ParseFooter(tail, size)
	if err != nil {
		return found{}, err
	}
	at := found{loc: loc}
	if toc, ok := loc.Within(tail, size); ok && !b.Present(loc.Offset, loc.Size) {
		at.bytes = toc // the disk took none
	}
	return at, nil
}

// fetch fetches what is missing of a TOC, and makes the blob's size known. A TOC that
// waits to be read takes no memory, unless the disk takes no bytes.
func (f Finder) fetch(ctx context.Context, b Blob, at found) (found, error) {
	var err error
	switch {
	case at.loc.Format == estargz.FormatEStargzExtern:
		at.bytes, err = f.external(ctx)
	case at.bytes == nil:
		if err = checkRange(b, at.loc); err != nil || b.Fetch(ctx, Blocked, at.loc.Offset, at.loc.Size) == nil {
			break
		}
		at.bytes, err = readRange(ctx, b, at.loc) // says what is wrong, or goes past the disk
	}
	if err == nil && b.Size() == 0 {
		// The hints were enough so far, but members need the blob's end.
		_, _, err = b.Tail(ctx, estargz.MinTail)
	}
	return at, err
}

// read reads a TOC that was fetched.
func (f Finder) read(ctx context.Context, b Blob, at found) (*estargz.Unverified, error) {
	if at.bytes == nil {
		var err error
		if at.bytes, err = readRange(ctx, b, at.loc); err != nil {
			return nil, err
		}
	}
	return estargz.ReadTOC(at.loc, b.Size(), at.bytes, f.Limits)
}

func (f Finder) external(ctx context.Context) ([]byte, error) {
	if f.External == nil {
		return nil, fmt.Errorf("TOC lies outside of the blob: %w", estargz.ErrNotLazy)
	}
	toc, err := f.External(ctx)
	if err != nil {
		return nil, fmt.Errorf("external TOC: %w", err)
	}
	return toc, nil
}

// checkRange refuses a TOC that can't be in the blob, or is not worth its memory.
func checkRange(b Blob, loc estargz.Location) error {
	if loc.Size > maxTOC {
		return fmt.Errorf("TOC of %d bytes: %w: %w", loc.Size, estargz.ErrLimit, estargz.ErrCorrupt)
	}
	size := b.Size()
	if size == 0 {
		size = math.MaxInt64 // not known yet
	}
	if loc.Size < 0 || loc.Offset < 0 || loc.Offset > size-loc.Size {
		return fmt.Errorf("TOC of %d bytes at %d is not in a blob of %d bytes: %w", loc.Size, loc.Offset, size, estargz.ErrCorrupt)
	}
	return nil
}

func readRange(ctx context.Context, b Blob, loc estargz.Location) ([]byte, error) {
	if err := checkRange(b, loc); err != nil {
		return nil, err
	}
	dst := make([]byte, loc.Size)
	if err := readFull(ctx, b, dst, loc.Offset); err != nil {
		return nil, fmt.Errorf("TOC: %w", err)
	}
	return dst, nil
}

// Ahead fetches what Resolve will ask the network for, of a layer whose hints are
// not known yet: footer and TOC. Nothing is verified or kept but the bytes.
func Ahead(ctx context.Context, b Blob) error {
	tail, size, err := b.Tail(ctx, estargz.TailOf(b.Size()))
	if err != nil {
		return err
	}
	loc, err := estargz.ParseFooter(tail, size)
	if err != nil {
		return err
	}
	if _, ok := loc.Within(tail, size); ok || loc.Size == 0 || loc.Size > maxTOC {
		return nil
	}
	return b.Fetch(ctx, Prefetch, loc.Offset, loc.Size)
}

// Kept says whether a file in TOCDir is a compact TOC, and not one that is being
// written.
func Kept(name string) bool {
	return filepath.Ext(name) == ".toc"
}

// MakeTOCDir makes the directory and removes what an earlier process left half
// written in it. To be called before the first Resolve.
func MakeTOCDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !Kept(e.Name()) {
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

package lazyfs

import (
	"context"
	"fmt"
	"slices"
	"sync"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot/layer"
	"github.com/lazykit/lazykit/remotesnapshot/profile"
)

// Step is a build step that runs: what it reads of layers is noted, and what it
// read of them when it ran before is fetched ahead. Safe for concurrent use.
type Step struct {
	fs     *FS
	opts   StepOptions
	ctx    context.Context // ends with End
	cancel context.CancelFunc

	mu    sync.Mutex
	ended bool
	uses  []use
	begun chan struct{} // closed when what Reads began last has ended; nil before
	known bool          // a profile knows the step
}

// use is a layer that a step may read.
type use struct {
	entry     *entry
	layer     *layer.Layer
	recording *layer.Recording // nil until the step reads
}

// StepOptions describe a step.
type StepOptions struct {
	// ID is what profile.StepDigest returns.
	ID digest.Digest
	// Wants, when set, says what the step will probably read. It is asked when no profile
	// knows anything of the step.
	Wants func() layer.Wants
	// Broken is called when a read has failed, see Step.ReadError, that only this step can
	// have asked for: there is no use in going on. It may be called more than once, and
	// must not block. Required.
	Broken func()
}

// BeginStep begins to follow a step. End it.
func (fs *FS) BeginStep(opts StepOptions) *Step {
	s := &Step{fs: fs, opts: opts}
	s.ctx, s.cancel = context.WithCancel(fs.ctx)
	return s
}

// WillRead says that the step will probably read the layers with these digests, the topmost first,
// as far as they are readable already: what it needs of them is fetched ahead. Nothing is noted of what is read.
// It waits for no network and no disk.
func (s *Step) WillRead(layers []digest.Digest) { s.see(layers, false) }

// Reads says that the step may read the layers with these digests from now on, as WillRead
// does; what it was told before is not fetched again.
//
// What other steps read of the same layers at the same time counts for this one
// as well: the kernel does not say for whom it reads.
func (s *Step) Reads(layers []digest.Digest) { s.see(layers, true) }

func (s *Step) see(layers []digest.Digest, record bool) {
	added := s.add(s.fs.stack(layers), record)
	if len(added) == 0 {
		return
	}
	done := make(chan struct{})
	s.mu.Lock()
	before := s.begun
	s.begun = done
	s.mu.Unlock()
	started := s.fs.inBackground(func() {
		defer close(done)
		if before != nil {
			<-before
		}
		s.ahead(added)
	})
	if !started {
		close(done)
	}
}

// ahead fetches what the step has read before of layers, or else what it names.
func (s *Step) ahead(uses []use) {
	if s.fs.profiles != nil && s.replay(uses) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.known = true
		return
	}
	var wants layer.Wants
	if s.opts.Wants != nil {
		wants = s.opts.Wants()
	}
	for _, u := range s.images(uses) {
		u.layer.Want(s.ctx, wants)
	}
}

// images leaves one use of each image: a layer finds the others of its own.
func (s *Step) images(uses []use) (out []use) {
	seen := map[string]bool{}
	for _, u := range uses {
		if ref := s.fs.referenceOf(u.entry); !seen[ref] {
			seen[ref] = true
			out = append(out, u)
		}
	}
	return out
}

// Runs says that the step runs sources that are not in its layers, which read returns; it may
// block, and is not called when a profile knows the step. To be called after Reads.
func (s *Step) Runs(read func() []layer.Source) {
	s.mu.Lock()
	begun := s.begun
	s.mu.Unlock()
	if begun == nil {
		return // nothing is lazy
	}
	s.fs.inBackground(func() {
		<-begun
		s.mu.Lock()
		uses, known := slices.Clone(s.uses), s.known
		s.mu.Unlock()
		if known || len(uses) == 0 {
			return
		}
		sources := read()
		for _, u := range s.images(uses) {
			u.layer.WantSources(s.ctx, sources)
		}
	})
}

// add takes the layers of entries among those of the step, and returns those that are new;
// record begins to note what is read of them.
func (s *Step) add(entries []*entry, record bool) (added []use) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return nil
	}
	for _, e := range entries {
		i := slices.IndexFunc(s.uses, func(u use) bool { return u.entry == e })
		if i < 0 {
			l := e.content.layer.Load()
			if l == nil || !s.fs.retainOpen(e) {
				continue
			}
			i = len(s.uses)
			s.uses = append(s.uses, use{entry: e, layer: l})
			added = append(added, s.uses[i])
		}
		if u := &s.uses[i]; record && u.recording == nil {
			u.recording = u.layer.Record()
			u.recording.WhenFailed(s.opts.Broken)
		}
	}
	return added
}

// replay fetches what the step has read before of layers; false when that is not known.
func (s *Step) replay(uses []use) (known bool) {
	var wanted []profile.Wanted
	for _, u := range uses {
		ranges, err := s.fs.profiles.Get(u.entry.key.blob, s.opts.ID)
		if err != nil {
			s.fs.opts.OnError(err)
			continue
		}
		known = known || len(ranges) > 0
		ranges = slices.DeleteFunc(ranges, func(r profile.Range) bool { return u.layer.Has(r.Off, r.Len) })
		wanted = append(wanted, profile.Wanted{Layer: u.entry.key.blob, Ranges: ranges})
	}
	of := make(map[digest.Digest][]layer.Range)
	for _, f := range profile.Plan(wanted) {
		of[f.Layer] = append(of[f.Layer], layer.Range{Off: f.Off, Size: f.Len})
	}
	order := make(map[digest.Digest][]layer.Range)
	for _, w := range wanted {
		for _, r := range w.Ranges {
			order[w.Layer] = append(order[w.Layer], layer.Range{Off: r.Off, Size: r.Len})
		}
	}
	for _, u := range uses {
		u.layer.Replay(s.ctx, of[u.entry.key.blob], order[u.entry.key.blob])
	}
	return known
}

// ReadError says why files of layers could not be read while the step ran, and which
// parts of which layers; nil when all that was asked for was read. The process may
// have gone on all the same, with less than the layers hold. To be called before End.
func (s *Step) ReadError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var first error
	others := 0
	for _, u := range s.uses {
		if u.recording == nil {
			continue
		}
		n, err := u.recording.Failed()
		if err == nil {
			continue
		}
		if others += n; first == nil {
			first = fmt.Errorf("a file of %s could not be read: %w", s.fs.referenceOf(u.entry), err)
			others--
		}
	}
	if others > 0 {
		return fmt.Errorf("%w (and %d more reads failed)", first, others)
	}
	return first
}

// End ends the step; completed says that it ran to its end without an error.
// What it has read is written down behind the caller's back.
func (s *Step) End(completed bool) {
	s.mu.Lock()
	uses := s.uses
	s.uses, s.ended = nil, true
	s.mu.Unlock()
	s.cancel()
	done := func() {
		for _, u := range uses {
			s.fs.release(u.entry)
		}
	}
	read := make([][]profile.Range, len(uses))
	whole := make([]bool, len(uses))
	recorded := false
	for i, u := range uses {
		if u.recording == nil {
			continue
		}
		recorded = true
		var ranges []layer.Range
		ranges, whole[i] = u.recording.Stop()
		for _, r := range ranges {
			read[i] = append(read[i], profile.Range{Off: r.Off, Len: r.Size})
		}
	}
	if s.fs.profiles == nil || !recorded {
		done()
		return
	}
	started := s.fs.inBackground(func() {
		defer done()
		put := make(map[digest.Digest]bool, len(uses))
		for i, u := range uses {
			if u.recording == nil {
				continue
			}
			// A blob that is two layers, by two TOCs, has one profile.
			blob := u.entry.key.blob
			if err := s.fs.profiles.Put(blob, s.opts.ID, read[i], whole[i] && completed && !put[blob]); err != nil {
				s.fs.opts.OnError(err)
			}
			put[blob] = true
		}
	})
	if !started {
		done()
	}
}

// inBackground runs f in a goroutine that Close waits for; false when the file
// system is closed.
func (fs *FS) inBackground(f func()) bool {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.mu.closed {
		return false
	}
	fs.wg.Go(f)
	return true
}

package profile

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// MaxLayers is how many layers a store keeps; beyond that, those written longest
// ago go.
const MaxLayers = 2048

// Store is a directory of profiles: DIR/sha256/HEX.json. Safe for concurrent use;
// several processes may share the directory, where the last one to write a
// layer's file wins.
type Store struct {
	dir     string
	writing sync.Mutex // held from reading a file to replacing it
}

// newPrefix begins the names of files that are being written.
const newPrefix = ".new-"

// Open makes the directory if it is missing.
func Open(dir string) (*Store, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("access profiles: %w", err)
	}
	sweep(dir)
	return &Store{dir: dir}, nil
}

// staleAfter is more than a file needs to be written and renamed.
const staleAfter = time.Hour

// sweep removes what a process has left that was killed while it wrote. Others may be
// writing at this moment.
func sweep(dir string) {
	left, _ := filepath.Glob(filepath.Join(dir, "*", newPrefix+"*"))
	for _, p := range left {
		if fi, err := os.Lstat(p); err == nil && time.Since(fi.ModTime()) > staleAfter {
			_ = os.Remove(p) // makeRoom tries again
		}
	}
}

func (s *Store) path(layer digest.Digest) string {
	return filepath.Join(s.dir, layer.Algorithm().String(), layer.Encoded()+".json")
}

// Get returns what step has read of layer, nil when that is not known. The error
// is of [ErrInvalid] when the layer's file is damaged; the next Put replaces it.
func (s *Store) Get(layer, step digest.Digest) ([]Range, error) {
	l, err := s.load(layer)
	if err != nil || l == nil {
		return nil, err
	}
	return l.step(step), nil
}

// recentSteps is how many of a layer's steps Requests looks at, those that ran last.
const recentSteps = 8

// Requests is how many requests a plan has for a step that read layers lately, at most. Files
// that are damaged count for nothing.
func (s *Store) Requests(layers ...digest.Digest) (most int) {
	steps := map[digest.Digest][]Wanted{}
	for _, d := range layers {
		if l, err := s.load(d); err == nil && l != nil {
			for _, v := range l.Steps[:min(len(l.Steps), recentSteps)] {
				steps[v.Step] = append(steps[v.Step], Wanted{d, v.Ranges})
			}
		}
	}
	for _, wanted := range steps {
		most = max(most, len(Plan(wanted)))
	}
	return most
}

// load returns nil when nothing is known of the layer.
func (s *Store) load(layer digest.Digest) (*Layer, error) {
	if err := layer.Validate(); err != nil {
		return nil, fmt.Errorf("access profile of %.80q: %w", layer, err)
	}
	f, err := os.Open(s.path(layer))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("access profile: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("access profile: %w", err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("%w: %s is larger than %d bytes", ErrInvalid, f.Name(), maxFile)
	}
	l, err := parse(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", f.Name(), err)
	}
	if l.Layer != layer {
		return nil, fmt.Errorf("%s: %w: it is about %s", f.Name(), ErrInvalid, l.Layer)
	}
	return l, nil
}

// Put notes that step has read the ranges of layer, in this order. They take the
// place of what was known when all is true: nothing of the layer had been read
// before, so they are what the step needs. Otherwise the kernel has answered
// some reads from its memory, and they are added.
func (s *Store) Put(layer, step digest.Digest, ranges []Range, all bool) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	l, err := s.load(layer)
	if err != nil && !errors.Is(err, ErrInvalid) {
		return err
	}
	if l == nil {
		l = &Layer{Layer: layer}
	}
	if !all {
		ranges = Union(l.step(step), ranges)
	}
	if len(ranges) == 0 {
		return nil
	}
	l.put(Step{Step: step, Used: time.Now().UTC().Truncate(time.Second), Ranges: ranges})
	return s.save(l)
}

// save replaces a layer's file. It is not forced to disk: what a power cut leaves
// of it is found damaged or missing, and made again.
func (s *Store) save(l *Layer) error {
	b, err := json.Marshal(l)
	for err == nil && len(b) > maxFile && len(l.Steps) > 1 {
		l.Steps = l.Steps[:len(l.Steps)/2]
		b, err = json.Marshal(l)
	}
	if err != nil {
		return fmt.Errorf("access profile of layer %s: %w", l.Layer, err)
	}
	path := s.path(l.Layer)
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("access profile: %w", err)
	}
	_, err = os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.makeRoom(dir); err != nil {
			return err
		}
	}
	tmp, err := os.CreateTemp(dir, newPrefix+"*")
	if err != nil {
		return fmt.Errorf("access profile: %w", err)
	}
	_, err = tmp.Write(b)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name()) // the error that counts is known
		return fmt.Errorf("access profile: %w", err)
	}
	return nil
}

// makeRoom removes the files written longest ago, and what a crash has left, so
// that one more has a place.
func (s *Store) makeRoom(dir string) error {
	files, err := listFiles(dir)
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b file) int { return b.written.Compare(a.written) })
	for i, f := range files {
		if i < MaxLayers-1 {
			continue
		}
		if err := os.Remove(f.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("access profile: %w", err)
		}
	}
	return nil
}

type file struct {
	path    string
	written time.Time
}

func listFiles(dir string) ([]file, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("access profiles: %w", err)
	}
	var files []file
	for _, e := range entries {
		info, err := e.Info()
		if err != nil { // removed meanwhile
			continue
		}
		files = append(files, file{filepath.Join(dir, e.Name()), info.ModTime()})
	}
	return files, nil
}

// Layers lists the layers of which something is known. Damaged files are left
// out and named by the error, which is of [ErrInvalid].
func (s *Store) Layers() ([]*Layer, error) {
	paths, err := filepath.Glob(filepath.Join(s.dir, "*", "*.json"))
	if err != nil {
		return nil, fmt.Errorf("access profiles: %w", err)
	}
	var out []*Layer
	var errs []error
	for _, p := range paths {
		name := filepath.Base(p)
		l, err := s.load(digest.Digest(filepath.Base(filepath.Dir(p)) + ":" + name[:len(name)-len(".json")]))
		if err != nil {
			errs = append(errs, err)
		} else if l != nil {
			out = append(out, l)
		}
	}
	return out, errors.Join(errs...)
}

// Export writes the profiles of layers, of all when none is named: a line of JSON
// for each layer. It returns how many there were.
func (s *Store) Export(w io.Writer, layers ...digest.Digest) (int, error) {
	all, err := s.Layers()
	if err != nil && !errors.Is(err, ErrInvalid) {
		return 0, err
	}
	n := 0
	enc := json.NewEncoder(w)
	for _, l := range all {
		if len(layers) > 0 && !slices.Contains(layers, l.Layer) {
			continue
		}
		if err := enc.Encode(l); err != nil {
			return n, fmt.Errorf("export the access profile of %s: %w", l.Layer, err)
		}
		n++
	}
	return n, nil
}

// Import reads what Export wrote. A step that is known already keeps the ranges
// of whichever was used last. It stops at the first line that is not a profile,
// with an error of [ErrInvalid] that names it; what came before it stays.
func (s *Store) Import(r io.Reader) (n int, err error) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxFile)
	for line := 1; lines.Scan(); line++ {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		l, err := parse(lines.Bytes())
		if err != nil {
			return n, fmt.Errorf("line %d: %w", line, err)
		}
		if err := s.merge(l); err != nil {
			return n, err
		}
		n++
	}
	if err := lines.Err(); errors.Is(err, bufio.ErrTooLong) {
		return n, fmt.Errorf("%w: a line is longer than %d bytes", ErrInvalid, maxFile)
	} else if err != nil {
		return n, fmt.Errorf("import access profiles: %w", err)
	}
	return n, nil
}

func (s *Store) merge(l *Layer) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	have, err := s.load(l.Layer)
	if err != nil && !errors.Is(err, ErrInvalid) {
		return err
	}
	if have == nil {
		have = &Layer{Layer: l.Layer}
	}
	now := time.Now().UTC().Truncate(time.Second)
	for _, step := range l.Steps {
		if step.Used.After(now) { // another machine's clock does not keep ours from learning
			step.Used = now
		}
		if i := slices.IndexFunc(have.Steps, func(o Step) bool { return o.Step == step.Step }); i >= 0 && have.Steps[i].Used.After(step.Used) {
			continue
		}
		have.put(step)
	}
	return s.save(have)
}

package profile

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	digest "github.com/opencontainers/go-digest"
)

// Bounds of what is kept. Beyond them the steps used longest ago go, and ranges
// that were read last.
const (
	MaxSteps  = 64       // of one layer
	MaxRanges = 16 << 10 // of one step and layer
	maxFile   = 8 << 20  // bytes of a layer's file, or of its line in an export
)

// ErrInvalid says that bytes are not a profile.
var ErrInvalid = errors.New("invalid access profile")

// Range is a part of a blob. In JSON it is [offset, length], in bytes.
type Range struct{ Off, Len int64 }

func (r Range) end() int64 { return r.Off + r.Len }

// MarshalJSON implements json.Marshaler.
func (r Range) MarshalJSON() ([]byte, error) { return json.Marshal([2]int64{r.Off, r.Len}) }

// UnmarshalJSON implements json.Unmarshaler. A range that no blob can have is an
// error of [ErrInvalid].
func (r *Range) UnmarshalJSON(b []byte) error {
	var pair []int64
	if err := json.Unmarshal(b, &pair); err != nil {
		return err
	}
	if len(pair) != 2 || pair[0] < 0 || pair[1] <= 0 || pair[0] > math.MaxInt64-pair[1] {
		return fmt.Errorf("range %v: %w", pair, ErrInvalid)
	}
	*r = Range{pair[0], pair[1]}
	return nil
}

// Step is what one build step has read of a layer.
type Step struct {
	// Step names it, see [StepDigest].
	Step digest.Digest `json:"step"`
	// Used is when it ran last.
	Used time.Time `json:"used"`
	// Ranges in the order in which they were needed first.
	Ranges []Range `json:"ranges"`
}

// Layer is what is known of one layer. The steps used last come first.
type Layer struct {
	Layer digest.Digest `json:"layer"`
	Steps []Step        `json:"steps"`
}

// StepDigest names a build step by its command and its working directory: what a
// command reads of its base rarely depends on anything else.
func StepDigest(args []string, cwd string) digest.Digest {
	b, err := json.Marshal(append([]string{cwd}, args...))
	if err != nil {
		panic(err) // strings can always be encoded
	}
	return digest.FromBytes(b)
}

// parse reads a layer's file. Errors are of [ErrInvalid].
func parse(b []byte) (*Layer, error) {
	var l Layer
	if err := json.Unmarshal(b, &l); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := l.Layer.Validate(); err != nil {
		return nil, fmt.Errorf("%w: layer %.80q: %w", ErrInvalid, l.Layer, err)
	}
	if len(l.Steps) > MaxSteps {
		return nil, fmt.Errorf("%w: layer %s has %d steps, and %d are the most", ErrInvalid, l.Layer, len(l.Steps), MaxSteps)
	}
	seen := make(map[digest.Digest]bool, len(l.Steps))
	for _, s := range l.Steps {
		if err := s.Step.Validate(); err != nil {
			return nil, fmt.Errorf("%w: layer %s: step %.80q: %w", ErrInvalid, l.Layer, s.Step, err)
		}
		if seen[s.Step] {
			return nil, fmt.Errorf("%w: layer %s: step %s occurs twice", ErrInvalid, l.Layer, s.Step)
		}
		seen[s.Step] = true
		if len(s.Ranges) > MaxRanges {
			return nil, fmt.Errorf("%w: layer %s: step %s has %d ranges, and %d are the most", ErrInvalid, l.Layer, s.Step, len(s.Ranges), MaxRanges)
		}
	}
	return &l, nil
}

// step returns the ranges of a step; nil when it is not known.
func (l *Layer) step(id digest.Digest) []Range {
	for _, s := range l.Steps {
		if s.Step == id {
			return s.Ranges
		}
	}
	return nil
}

// put makes s the step used last. One that is there is replaced, and the one used
// longest ago goes when they are too many.
func (l *Layer) put(s Step) {
	l.Steps = slices.DeleteFunc(l.Steps, func(o Step) bool { return o.Step == s.Step })
	s.Ranges = s.Ranges[:min(len(s.Ranges), MaxRanges)]
	byUse := func(a, b Step) int { return b.Used.Compare(a.Used) }
	slices.SortStableFunc(l.Steps, byUse)
	l.Steps = append([]Step{s}, l.Steps[:min(len(l.Steps), MaxSteps-1)]...)
	slices.SortStableFunc(l.Steps, byUse)
}

// Union adds to known what read has besides. The order of known stays.
func Union(known, read []Range) []Range {
	have := sorted(known)
	out := slices.Clone(known)
	for _, r := range read {
		if i, ok := slices.BinarySearchFunc(have, r, func(h, r Range) int {
			switch {
			case h.end() < r.end():
				return -1
			case h.Off > r.Off:
				return 1
			}
			return 0
		}); ok && have[i].Off <= r.Off {
			continue
		}
		out = append(out, r)
	}
	return out
}

// sorted are the ranges by offset, those that touch one another joined.
func sorted(ranges []Range) []Range {
	all := slices.Clone(ranges)
	slices.SortFunc(all, func(a, b Range) int {
		switch {
		case a.Off < b.Off:
			return -1
		case a.Off > b.Off:
			return 1
		}
		return 0
	})
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && r.Off <= out[n-1].end() {
			out[n-1].Len = max(out[n-1].end(), r.end()) - out[n-1].Off
			continue
		}
		out = append(out, r)
	}
	return out
}

package lazyfs

import (
	"cmp"
	"math"
	"slices"

	digest "github.com/opencontainers/go-digest"

	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

// siblings lists the open layers of the image that asked for e last, e's too: those that
// came by the same reference. Those of which it is not known where they lie are the last, but for e's.
func (fs *FS) siblings(e *entry) (out []*layer.Layer) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	var list []*entry
	for _, o := range fs.mu.entries {
		if o.content.layer.Load() != nil && o.reference == e.reference {
			list = append(list, o)
		}
	}
	place := func(o *entry) int {
		if o == e && o.place == 0 {
			return math.MaxInt
		}
		return o.place
	}
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(place(b), place(a)) })
	for _, o := range list {
		out = append(out, o.content.layer.Load())
	}
	return out
}

// stack finds layers of an image, the topmost first, and notes how they lie upon each other. Places are counted from
// the bottom, and never become less: images mostly share their lowest layers, and one that knows
// only some of its layers yet does not disturb the others.
func (fs *FS) stack(layers []digest.Digest) (entries []*entry) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	below := 0
	for _, dgst := range slices.Backward(layers) {
		highest := below
		for _, e := range fs.entriesOfLocked(dgst) {
			e.place = max(e.place, below+1)
			highest = max(highest, e.place)
			entries = append(entries, e)
		}
		below = highest
	}
	slices.Reverse(entries)
	return entries
}

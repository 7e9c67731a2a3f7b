package lazyfs

import (
	"cmp"
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
	rank := func(o *entry) int {
		switch {
		case o.place > 0:
			return o.place
		case o == e:
			return 0
		}
		return maxCopies + 1
	}
	slices.SortFunc(list, func(a, b *entry) int { return cmp.Compare(rank(a), rank(b)) })
	for _, o := range list {
		out = append(out, o.content.layer.Load())
	}
	return out
}

// stack notes how layers of an image lie upon each other, the topmost first.
func (fs *FS) stack(layers []digest.Digest) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for k, e := range fs.mu.entries {
		if i := slices.Index(layers, k.blob); i >= 0 {
			e.place = i + 1
		}
	}
}

package cache

import (
	"context"
	"slices"
	"strings"

	bkcache "github.com/moby/buildkit/cache"
)

// Image is what became of an image that a record stands on.
type Image struct {
	Reference  string
	Layers     int   // of the image, as far as the record has them
	LazyLayers int   // those that are mounted without having been extracted
	Fetched    int64 // bytes on disk of the lazy layers' blobs
	Size       int64 // of the lazy layers' blobs, in bytes
}

// Images tells of the images below some refs, in the order of their names. Only
// those with a lazy layer are listed. Without the lazy ability there is none.
func (m *Manager) Images(ctx context.Context, refs ...bkcache.ImmutableRef) []Image {
	if m.lazy == nil {
		return nil
	}
	seen := map[*record]bool{}
	byName := map[string]*Image{}
	for _, ref := range refs {
		h, ok := ref.(*immutableRef)
		if !ok || h.m != m {
			continue
		}
		h.walk(func(r *record) {
			if !seen[r] && r.isLayer() {
				seen[r] = true
				m.countLayer(ctx, r, byName)
			}
		})
	}
	var list []Image
	for _, img := range byName {
		if img.LazyLayers > 0 {
			list = append(list, *img)
		}
	}
	slices.SortFunc(list, func(a, b Image) int { return strings.Compare(a.Reference, b.Reference) })
	return list
}

func (m *Manager) countLayer(ctx context.Context, r *record, byName map[string]*Image) {
	names := keyImageRefs.get(r.meta)
	if len(names) == 0 {
		return
	}
	img := byName[names[0]]
	if img == nil {
		img = &Image{Reference: names[0]}
		byName[names[0]] = img
	}
	img.Layers++
	if remote, err := r.isRemote(ctx); err != nil || !remote {
		return
	}
	info := m.lazy.Info(keyBlob.get(r.meta))
	img.LazyLayers++
	img.Fetched += info.Fetched
	img.Size += max(info.Size, r.blobSize(), 0)
}

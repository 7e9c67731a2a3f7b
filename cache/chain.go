package cache

import (
	"slices"

	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"
)

// chaining gives records the ids by which others find them, once the blobs of
// their layers are known: the chain of identities, and the chain of blobs with
// their DiffIDs, as GetByBlob gives them to layers that come from blobs.
type chaining struct {
	included map[*record]bool // the layers whose blobs are known
	seen     map[*record]bool
}

// record gives ids to a record after those that it is made of.
func (c *chaining) record(r *record) error {
	if c.seen[r] {
		return nil
	}
	c.seen[r] = true
	switch r.kind() {
	case kindMerge:
		for _, p := range r.parents.merge {
			if err := c.record(p.record); err != nil {
				return err
			}
		}
	case kindLayer:
		if err := c.record(r.parents.layer.record); err != nil {
			return err
		}
	}
	return c.assign(r)
}

// assign writes the ids of one record, if they can be known and are not yet.
func (c *chaining) assign(r *record) error {
	if keyChainID.get(r.meta) != "" || r.onLegacySnapshot() {
		return nil
	}
	ids, ok := c.ids(r)
	if !ok {
		return nil
	}
	var w change
	putIndexed(&w, keyChainID, ids.chain, indexChain)
	putIndexed(&w, keyBlobChainID, ids.blobs, indexBlobChain)
	return r.meta.commit(w)
}

// chainIDs are the two ids of a record.
type chainIDs struct{ chain, blobs digest.Digest }

// append adds a layer on top. It fails for one without an identity.
func (ids *chainIDs) append(l *record) bool {
	id := l.identity()
	if id == "" || l.isLegacySnapshot() {
		return false
	}
	blob := imageid.ChainID([]digest.Digest{keyBlob.get(l.meta), keyDiffID.get(l.meta)})
	if ids.chain == "" {
		ids.chain, ids.blobs = id, blob
		return true
	}
	ids.chain = imageid.ChainID([]digest.Digest{ids.chain, id})
	ids.blobs = imageid.ChainID([]digest.Digest{ids.blobs, blob})
	return true
}

func idsOf(r *record) chainIDs {
	return chainIDs{keyChainID.get(r.meta), keyBlobChainID.get(r.meta)}
}

// stands says whether all layers of a parent are included.
func (c *chaining) stands(p *record) bool {
	return !slices.ContainsFunc(p.layerList(), func(l *record) bool { return !c.included[l] })
}

// ids are those of a record; not ok for one that can't be known by its layers.
func (c *chaining) ids(r *record) (ids chainIDs, ok bool) {
	switch r.kind() {
	case kindMerge:
		base := r.parents.merge[0].record
		if !c.included[base] {
			return ids, false
		}
		if ids = idsOf(base); ids.chain == "" || ids.blobs == "" {
			return ids, false
		}
		for _, p := range r.parents.merge[1:] {
			for _, l := range p.record.layerList() {
				if !c.included[l] || !ids.append(l) {
					return ids, false
				}
			}
		}
		return ids, true
	case kindDiff:
		// A diff shows one layer on nothing, whatever that layer stands on.
		l := r
		if only := r.parents.onlyLayer(); only != nil {
			l = only
		}
		return ids, c.included[l] && ids.append(l)
	case kindLayer:
		p := r.parents.layer.record
		if !c.included[r] || !c.stands(p) {
			return ids, false // its chain is not all here: see Diff
		}
		if ids = idsOf(p); ids.chain == "" || ids.blobs == "" {
			return ids, false // a merge on a diff has none, nor what stands on it
		}
		return ids, ids.append(r)
	}
	return ids, c.included[r] && ids.append(r)
}

package cache

import (
	"context"
	"fmt"

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
func (c *chaining) record(ctx context.Context, r *record) error {
	if c.seen[r] {
		return nil
	}
	c.seen[r] = true
	switch r.kind() {
	case kindMerge:
		for _, p := range r.parents.merge {
			if err := c.record(ctx, p.record); err != nil {
				return err
			}
		}
	case kindLayer:
		if err := c.record(ctx, r.parents.layer.record); err != nil {
			return err
		}
	case kindDiff:
		if !c.included[r] && r.parents.upper != nil {
			if err := c.record(ctx, r.parents.upper.record); err != nil {
				return err
			}
		}
	}
	return c.assign(r)
}

// assign writes the ids of one record, if they can be known and are not yet.
func (c *chaining) assign(r *record) error {
	if keyChainID.get(r.meta) != "" || r.onLegacySnapshot() {
		return nil
	}
	ids, ok, err := c.ids(r)
	if err != nil || !ok {
		return err
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

func (c *chaining) ids(r *record) (ids chainIDs, ok bool, err error) {
	switch r.kind() {
	case kindMerge:
		base := r.parents.merge[0].record
		if !c.included[base] {
			return ids, false, nil
		}
		ids = idsOf(base)
		for _, p := range r.parents.merge[1:] {
			for _, l := range p.record.layerList() {
				if !c.included[l] || !ids.append(l) {
					return ids, false, nil
				}
			}
		}
		return ids, ids.chain != "", nil
	case kindDiff:
		if c.included[r] {
			return ids, ids.append(r), nil
		}
		if r.parents.upper == nil {
			return ids, false, nil
		}
		ids = idsOf(r.parents.upper.record)
		return ids, ids.chain != "", nil
	case kindLayer:
		if !c.included[r] {
			return ids, false, nil
		}
		if p := r.parents.layer.record; c.included[p] {
			if ids = idsOf(p); ids.chain == "" || ids.blobs == "" {
				if p.onLegacySnapshot() {
					return ids, false, nil
				}
				return ids, false, fmt.Errorf("record %s stands on %s (%s), which has no chain id", r.ID(), p.ID(), p.GetDescription())
			}
		}
		return ids, ids.append(r), nil
	}
	return ids, c.included[r] && ids.append(r), nil
}

package cachetest

import (
	bkcache "github.com/moby/buildkit/cache"
	digest "github.com/opencontainers/go-digest"
	imageid "github.com/opencontainers/image-spec/identity"
)

// Keys of BuildKit's records that tests look at or change.
const (
	keySize        = "snapshot.size"
	keyCommitted   = "snapshot.committed"
	keyTwin        = "cache.equalMutable"
	keyCreatedAt   = "cache.createdAt"
	keyLastUsedAt  = "cache.lastUsedAt"
	keyUsageCount  = "cache.usageCount"
	keyParent      = "cache.parent"
	keyMerge       = "cache.mergeParents"
	keyLower       = "cache.lowerDiffParent"
	keyUpper       = "cache.upperDiffParent"
	keyDiffID      = "cache.diffID"
	keyIdentity    = "cache.layerIdentity"
	keyChainID     = "cache.chainID"
	keyBlobChainID = "cache.blobChainID"
	keyBlob        = "cache.blob"
	keyBlobSize    = "cache.blobsize"
	keyBlobOnly    = "cache.blobonly"
	keyMediaType   = "cache.mediatype"
	keyURLs        = "cache.layer.urls"
	keySnapshot    = "cache.snapshot"
	keyImageRefs   = "cache.imageRefs"
	keyDeleted     = "cache.deleted"
)

// value reads a key of a record; the zero value when it is absent.
func value[T any](md bkcache.RefMetadata, key string) (v T) {
	if raw := md.Get(key); raw != nil {
		_ = raw.Unmarshal(&v)
	}
	return v
}

func digestOf(md bkcache.RefMetadata, key string) digest.Digest {
	return digest.Digest(md.GetString(key))
}

// ids are the digests by which a layer's record is found and shared.
type ids struct{ diffID, identity, chain, blobs digest.Digest }

func idsOf(md bkcache.RefMetadata) ids {
	return ids{digestOf(md, keyDiffID), digestOf(md, keyIdentity), digestOf(md, keyChainID), digestOf(md, keyBlobChainID)}
}

// with is what the ids of layer l have to be on top of ids i.
func (i ids) with(l layer) ids {
	id := l.diffID()
	own := ids{id, id, id, imageid.ChainID([]digest.Digest{l.desc.Digest, id})}
	if i.chain == "" {
		return own
	}
	own.chain = imageid.ChainID([]digest.Digest{i.chain, own.chain})
	own.blobs = imageid.ChainID([]digest.Digest{i.blobs, own.blobs})
	return own
}

// snapshotID names the snapshot of a record.
func snapshotID(md bkcache.RefMetadata) string {
	if id := md.GetString(keySnapshot); id != "" {
		return id
	}
	return md.ID()
}

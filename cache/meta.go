package cache

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/snapshot"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// key is one value of a record in the metadata store: JSON of a T.
type key[T any] string

// The keys of a record. All but those of "lazykit." are BuildKit's, with its
// types and meanings. Descriptions, record types, policies and layer types are
// BuildKit's RefMetadata's to read and write.
const (
	keySize         key[int64]         = "snapshot.size" // absent or -1: unknown
	keyCommitted    key[bool]          = "snapshot.committed"
	keyTwin         key[string]        = "cache.equalMutable" // id of the mutable record with the data
	keyCreatedAt    key[int64]         = "cache.createdAt"    // Unix nanoseconds
	keyLastUsedAt   key[int64]         = "cache.lastUsedAt"   // Unix nanoseconds
	keyUsageCount   key[int]           = "cache.usageCount"
	keyParent       key[string]        = "cache.parent"
	keyMergeParents key[[]string]      = "cache.mergeParents"
	keyLowerParent  key[string]        = "cache.lowerDiffParent"
	keyUpperParent  key[string]        = "cache.upperDiffParent"
	keyDiffID       key[digest.Digest] = "cache.diffID"
	keyIdentity     key[digest.Digest] = "cache.layerIdentity"
	keyChainID      key[digest.Digest] = "cache.chainID"
	keyBlobChainID  key[digest.Digest] = "cache.blobChainID"
	keyBlob         key[digest.Digest] = "cache.blob"
	keyBlobSize     key[int64]         = "cache.blobsize"
	keyBlobOnly     key[bool]          = "cache.blobonly"
	keyMediaType    key[string]        = "cache.mediatype"
	keyURLs         key[[]string]      = "cache.layer.urls"
	keySnapshot     key[string]        = "cache.snapshot" // absent: the record's id
	keyImageRefs    key[[]string]      = "cache.imageRefs"
	keyDeleted      key[bool]          = "cache.deleted"
	keyOrigins      key[[]origin]      = "lazykit.origins" // where a lazy blob can be asked for
)

// Values that are searched for have an index entry: prefix and value.
const (
	indexChain     = "chainid:"
	indexBlobChain = "blobchainid:"
)

// sizeUnknown is stored, and returned, for a size that has to be measured.
const sizeUnknown int64 = -1

// meta is a record's item in the store. Reads are from memory; writes go to the
// database. Safe for concurrent use.
type meta struct {
	bkcache.RefMetadata
	si *metadata.StorageItem
}

func newMeta(si *metadata.StorageItem) meta { return meta{RefMetadata: newMetadata(si), si: si} }

// get returns a value, the zero value when there is none.
func (k key[T]) get(m meta) (v T) {
	v, _ = k.lookup(m)
	return v
}

func (k key[T]) lookup(m meta) (v T, ok bool) {
	raw := m.si.Get(string(k))
	if raw == nil {
		return v, false
	}
	if err := raw.Unmarshal(&v); err != nil {
		var zero T
		return zero, false
	}
	return v, true
}

// write is a change of several values in one transaction.
type write struct {
	si *metadata.StorageItem
	b  *bolt.Bucket
}

// set stores a value; index, unless empty, is the prefix under which it is found.
func set[T any](w *write, k key[T], v T, index string) error {
	val, err := metadata.NewValue(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", string(k), err)
	}
	val.Index = index
	return w.si.SetValue(w.b, string(k), val)
}

// clear removes a value and its index entry.
func (k key[T]) clear(w *write) error { return w.si.SetValue(w.b, string(k), nil) }

// change is a list of writes that are made together.
type change []func(*write) error

// put adds a value to the change.
func put[T any](c *change, k key[T], v T) {
	*c = append(*c, func(w *write) error { return set(w, k, v, "") })
}

// putIndexed adds a value that can be searched for.
func putIndexed(c *change, k key[digest.Digest], v digest.Digest, prefix string) {
	*c = append(*c, func(w *write) error { return set(w, k, v, prefix+v.String()) })
}

// drop adds the removal of a value to the change.
func drop[T any](c *change, k key[T]) {
	*c = append(*c, func(w *write) error { return k.clear(w) })
}

// errErased ends a change of an item that is not stored any more.
var errErased = errors.New("record was erased")

// commit makes a change of a stored item in one transaction. When the item was
// erased meanwhile nothing happens: the change alone would bring it back.
func (m meta) commit(c change) error {
	err := m.si.Update(func(b *bolt.Bucket) error {
		if k, _ := b.Cursor().First(); k == nil {
			return errErased
		}
		for _, f := range c {
			if err := f(&write{m.si, b}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errErased) {
		return fmt.Errorf("record %s: write metadata: %w", m.si.ID(), err)
	}
	return nil
}

// create writes a new item: a change together with what BuildKit's options have
// queued. After an error nothing of it is stored.
func (m meta) create(c change, opts []bkcache.RefOption) (rerr error) {
	defer func() {
		if rerr != nil {
			// Some options write at once.
			rerr = errors.Join(rerr, m.si.Storage().Clear(m.si.ID()))
		}
	}()
	for _, f := range c {
		m.si.Queue(func(b *bolt.Bucket) error { return f(&write{m.si, b}) })
	}
	if err := applyOptions(m.RefMetadata, opts); err != nil {
		return err
	}
	if err := m.si.Commit(); err != nil {
		return fmt.Errorf("record %s: write metadata: %w", m.si.ID(), err)
	}
	return applyImageRefs(m.RefMetadata, opts)
}

// snapshotID names the record's snapshot.
func (m meta) snapshotID() string {
	if id := keySnapshot.get(m); id != "" {
		return id
	}
	return m.ID()
}

// size is the stored size in bytes, or sizeUnknown.
func (m meta) size() int64 {
	if n, ok := keySize.lookup(m); ok {
		return n
	}
	return sizeUnknown
}

// blobSize is the size of the blob as its descriptor had it, or sizeUnknown.
func (m meta) blobSize() int64 {
	if n, ok := keyBlobSize.lookup(m); ok {
		return n
	}
	return sizeUnknown
}

// lastUsed returns how often, and when last, the record was used.
func (m meta) lastUsed() (count int, at *time.Time) {
	count, ok := keyUsageCount.lookup(m)
	if !ok {
		return 0, nil
	}
	if ns := keyLastUsedAt.get(m); ns != 0 {
		t := time.Unix(0, ns)
		at = &t
	}
	return count, at
}

// touch counts a use that ends now.
// What was written to a mutable record has to be measured again.
func (m meta) touch(now time.Time, written bool) error {
	count, _ := m.lastUsed()
	var c change
	if written {
		put(&c, keySize, sizeUnknown)
	}
	put(&c, keyUsageCount, count+1)
	put(&c, keyLastUsedAt, now.UnixNano())
	return m.commit(c)
}

// identity is what a layer's snapshot is shared by. Records of old BuildKits
// have none stored.
func (m meta) identity() digest.Digest {
	if id := keyIdentity.get(m); id != "" {
		return id
	}
	return keyDiffID.get(m)
}

// isLegacySnapshot says that a layer's snapshot is named by its chain alone, as
// BuildKits did before the name was bound to what was verified. Such a snapshot
// is not shared with new records.
func (m meta) isLegacySnapshot() bool {
	chain := keyChainID.get(m)
	return chain != "" && keyBlob.get(m) != "" && m.snapshotID() == chain.String()
}

// layerSnapshotID names the snapshot that all layers of a chain share.
func layerSnapshotID(chain digest.Digest) string { return snapshot.LayerSnapshotID(chain) }

// origin is a place where a lazy blob is, as it is stored: a remotesnapshot.Source
// less what the record says anyway and the neighbours, which are a build's to
// resolve ahead.
type origin struct {
	Reference   string            `json:"ref"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// maxOrigins is how many places a lazy blob is remembered to be at.
const maxOrigins = 8

// sources are the places of a lazy blob, the latest one first.
func (m meta) sources() []remotesnapshot.Source {
	var out []remotesnapshot.Source
	for _, o := range keyOrigins.get(m) {
		out = append(out, remotesnapshot.Source{Reference: o.Reference, Digest: keyBlob.get(m), Annotations: o.Annotations})
	}
	return out
}

// putSource adds to the change that the blob is at src, the place to ask first. It
// adds nothing when that is known.
func (m meta) putSource(c *change, src remotesnapshot.Source) {
	have := keyOrigins.get(m)
	if len(have) > 0 && have[0].Reference == src.Reference && maps.Equal(have[0].Annotations, src.Annotations) {
		return
	}
	list := []origin{{Reference: src.Reference, Annotations: src.Annotations}}
	for _, o := range have {
		if o.Reference != src.Reference && len(list) < maxOrigins {
			list = append(list, o)
		}
	}
	put(c, keyOrigins, list)
}

// appendNew appends the values that are not in list yet.
func appendNew(list []string, values ...string) []string {
	for _, v := range values {
		if !slices.Contains(list, v) {
			list = append(list, v)
		}
	}
	return list
}

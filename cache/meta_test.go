package cache

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/cache/metadata"
	digest "github.com/opencontainers/go-digest"
	bolt "go.etcd.io/bbolt"

	"github.com/lazykit/lazykit/remotesnapshot"
)

// rawItem is what the database has of an item, and its index entries.
func rawItem(t testing.TB, s *metadata.Store, id string) (values map[string]string, indexes []string) {
	t.Helper()
	values = map[string]string{}
	err := s.DB().View(func(tx *bolt.Tx) error {
		if b := tx.Bucket([]byte("_main")).Bucket([]byte(id)); b != nil {
			_ = b.ForEach(func(k, v []byte) error { values[string(k)] = string(v); return nil })
		}
		if b := tx.Bucket([]byte("_index")); b != nil {
			_ = b.ForEach(func(k, v []byte) error {
				if strings.HasSuffix(string(k), "::"+id) {
					indexes = append(indexes, string(k))
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return values, indexes
}

const (
	digestA = digest.Digest("sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
	digestB = digest.Digest("sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb")
)

// TestSchema pins down every key, value and index entry, byte by byte: a state
// directory is shared with stock BuildKit.
func TestSchema(t *testing.T) {
	s := newItems(t)
	si, _ := s.Get("id")
	m := newMeta(si)
	var c change
	put(&c, keySize, 7)
	put(&c, keyCommitted, true)
	put(&c, keyTwin, "mut")
	put(&c, keyCreatedAt, 11)
	put(&c, keyLastUsedAt, 12)
	put(&c, keyUsageCount, 3)
	put(&c, keyParent, "p")
	put(&c, keyMergeParents, []string{"p", "q"})
	put(&c, keyLowerParent, "l")
	put(&c, keyUpperParent, "u")
	put(&c, keyDiffID, digestA)
	put(&c, keyIdentity, digestB)
	putIndexed(&c, keyChainID, digestA, indexChain)
	putIndexed(&c, keyBlobChainID, digestB, indexBlobChain)
	put(&c, keyBlob, digestA)
	put(&c, keyBlobSize, 5)
	put(&c, keyBlobOnly, true)
	put(&c, keyMediaType, "m/t")
	put(&c, keyURLs, []string{"http://u"})
	put(&c, keySnapshot, "sn")
	put(&c, keyImageRefs, []string{"r"})
	put(&c, keyDeleted, true)
	put(&c, keyOrigins, []origin{{Reference: "r", Annotations: map[string]string{"k": "v"}}, {Reference: "s"}})
	if err := m.create(c, nil); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{m.SetDescription("d"), m.SetCachePolicyRetain(), m.SetLayerType("windows"), m.SetRecordType("regular")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	want := map[string]string{
		"snapshot.size":         `{"value":7}`,
		"snapshot.committed":    `{"value":true}`,
		"cache.equalMutable":    `{"value":"mut"}`,
		"cache.createdAt":       `{"value":11}`,
		"cache.lastUsedAt":      `{"value":12}`,
		"cache.usageCount":      `{"value":3}`,
		"cache.parent":          `{"value":"p"}`,
		"cache.mergeParents":    `{"value":["p","q"]}`,
		"cache.lowerDiffParent": `{"value":"l"}`,
		"cache.upperDiffParent": `{"value":"u"}`,
		"cache.diffID":          `{"value":"` + string(digestA) + `"}`,
		"cache.layerIdentity":   `{"value":"` + string(digestB) + `"}`,
		"cache.chainID":         `{"value":"` + string(digestA) + `","index":"chainid:` + string(digestA) + `"}`,
		"cache.blobChainID":     `{"value":"` + string(digestB) + `","index":"blobchainid:` + string(digestB) + `"}`,
		"cache.blob":            `{"value":"` + string(digestA) + `"}`,
		"cache.blobsize":        `{"value":5}`,
		"cache.blobonly":        `{"value":true}`,
		"cache.mediatype":       `{"value":"m/t"}`,
		"cache.layer.urls":      `{"value":["http://u"]}`,
		"cache.snapshot":        `{"value":"sn"}`,
		"cache.imageRefs":       `{"value":["r"]}`,
		"cache.deleted":         `{"value":true}`,
		"lazykit.origins":       `{"value":[{"ref":"r","annotations":{"k":"v"}},{"ref":"s"}]}`,
		"cache.description":     `{"value":"d"}`,
		"cache.cachePolicy":     `{"value":1}`,
		"cache.layerType":       `{"value":"windows"}`,
		"cache.recordType":      `{"value":"regular"}`,
	}
	values, indexes := rawItem(t, s, "id")
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if values[k] != want[k] {
			t.Errorf("%s: %s, want %s", k, values[k], want[k])
		}
		delete(values, k)
	}
	if len(values) > 0 {
		t.Errorf("keys that this test does not know: %v", values)
	}
	if want := []string{"blobchainid:" + string(digestB) + "::id", "chainid:" + string(digestA) + "::id"}; !slices.Equal(indexes, want) {
		t.Errorf("index entries %v, want %v", indexes, want)
	}

	// What is read back is what was written, and clearing a key takes its index along.
	again, ok := s.Get("id")
	if !ok {
		t.Fatal("not stored")
	}
	r := newMeta(again)
	if r.size() != 7 || r.blobSize() != 5 || r.snapshotID() != "sn" || r.identity() != digestB || keyTwin.get(r) != "mut" {
		t.Errorf("read back: %d %d %s %s %s", r.size(), r.blobSize(), r.snapshotID(), r.identity(), keyTwin.get(r))
	}
	if n, at := r.lastUsed(); n != 3 || !at.Equal(time.Unix(0, 12)) {
		t.Errorf("used %d times, last at %v", n, at)
	}
	wantSources := []remotesnapshot.Source{{Reference: "r", Digest: digestA, Annotations: map[string]string{"k": "v"}}, {Reference: "s", Digest: digestA}}
	if got := r.sources(); !reflect.DeepEqual(got, wantSources) {
		t.Errorf("sources %v", got)
	}
	c = nil
	drop(&c, keyChainID)
	drop(&c, keySnapshot)
	if err := r.commit(c); err != nil {
		t.Fatal(err)
	}
	_, indexes = rawItem(t, s, "id")
	if len(indexes) != 1 || r.snapshotID() != "id" || keyChainID.get(r) != "" {
		t.Errorf("after dropping two keys: %v %s %s", indexes, r.snapshotID(), keyChainID.get(r))
	}
}

// TestKeysOfRecords: what operations write of a record, no more and no less.
func TestKeysOfRecords(t *testing.T) {
	w := newWorld(t, true)
	layers := w.layers("a", plainLayer, lazyLayer)
	top := w.pull(layers...)
	mut, err := w.m.New(w.ctx(), top, group("s"))
	if err != nil {
		t.Fatal(err)
	}
	mutID := mut.ID()
	twin, err := mut.Commit(w.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ what, id, keys string }{
		{"a layer of a blob", top.ID(), "cache.blob cache.blobChainID cache.blobonly cache.blobsize cache.chainID cache.createdAt cache.diffID cache.imageRefs cache.layerIdentity cache.mediatype cache.parent cache.snapshot lazykit.origins snapshot.committed"},
		{"a mutable record", mutID, "cache.createdAt cache.parent cache.snapshot"},
		{"its twin", twin.ID(), "cache.createdAt cache.equalMutable cache.parent cache.snapshot snapshot.committed snapshot.size"},
	} {
		values, _ := rawItem(t, w.md, c.id)
		if got := strings.Join(slices.Sorted(maps.Keys(values)), " "); got != c.keys {
			t.Errorf("%s has keys\n%s, want\n%s", c.what, got, c.keys)
		}
	}
	values, indexes := rawItem(t, w.md, top.ID())
	id, err := identify(layers[1].desc, top.parents.layer, true)
	if err != nil {
		t.Fatal(err)
	}
	if got := values["lazykit.origins"]; got != `{"value":[{"ref":"`+testImage+`","annotations":{"containerd.io/snapshot/stargz/toc.digest":"`+layers[1].desc.Annotations[remotesnapshot.AnnotationTOCDigest]+`"}}]}` {
		t.Errorf("origins: %s", got)
	}
	if want := []string{"blobchainid:" + id.blobs.String() + "::" + top.ID(), "chainid:" + id.chain.String() + "::" + top.ID()}; !slices.Equal(indexes, want) {
		t.Errorf("index entries %v, want %v", indexes, want)
	}
	w.release(top, twin)
}

// TestAbsentValues: a record of an old or a foreign BuildKit.
func TestAbsentValues(t *testing.T) {
	si, _ := newItems(t).Get("id")
	m := newMeta(si)
	if m.size() != sizeUnknown || m.blobSize() != sizeUnknown || m.snapshotID() != "id" || m.identity() != "" || m.isLegacySnapshot() || m.sources() != nil {
		t.Errorf("an empty item: %d %d %s", m.size(), m.blobSize(), m.snapshotID())
	}
	if n, at := m.lastUsed(); n != 0 || at != nil {
		t.Errorf("an empty item was used %d times, last at %v", n, at)
	}
	var c change
	put(&c, keyDiffID, digestA)
	put(&c, keyBlob, digestB)
	putIndexed(&c, keyChainID, digestA, indexChain)
	put(&c, keySnapshot, digestA.String())
	if err := m.create(c, nil); err != nil {
		t.Fatal(err)
	}
	if m.identity() != digestA || !m.isLegacySnapshot() {
		t.Errorf("a record of before identities: %s %v", m.identity(), m.isLegacySnapshot())
	}
}

// TestCorruptValues: a value of the wrong type is as absent, keys that nobody knows
// stay, and a database that can't be read at all is an error, not an empty cache.
func TestCorruptValues(t *testing.T) {
	w := newWorld(t, true)
	h := w.pull(w.layers("a", plainLayer)...)
	id := h.ID()
	w.release(h)
	set := func(key, raw string) {
		t.Helper()
		err := w.md.Update(id, func(b *bolt.Bucket) error { return b.Put([]byte(key), []byte(raw)) })
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, k := range []string{"snapshot.size", "lazykit.origins", "cache.imageRefs", "cache.lastUsedAt", "cache.usageCount", "cache.layer.urls", "cache.createdAt", "cache.description"} {
		set(k, `{"value":{"no":"such type"}}`)
	}
	set("other.key", `{"value":"kept","index":"other:kept"}`)
	w.restart()
	got, err := w.m.Get(w.ctx(), id, nil, w.handlers(slices.Collect(maps.Values(w.reg.layers))...))
	if err != nil {
		t.Fatal(err)
	}
	r := got.(*immutableRef)
	if r.size() != sizeUnknown || r.sources() != nil || r.GetDescription() != "" || !r.GetCreatedAt().IsZero() {
		t.Errorf("%d %v %q %v", r.size(), r.sources(), r.GetDescription(), r.GetCreatedAt())
	}
	w.checkFiles(r, "a0-plain")
	w.release(r)
	values, _ := rawItem(t, w.md, id)
	if values["other.key"] != `{"value":"kept","index":"other:kept"}` || values["cache.usageCount"] != `{"value":1}` {
		t.Errorf("%v", values)
	}

	set("cache.blob", `{"value":`)
	if _, err := w.m.opts.Metadata.All(); err == nil {
		t.Fatal("BuildKit's store reads what is no JSON: the rest of this test has lost its premise")
	}
	opts := w.m.opts
	opts.MountRoot = ""
	if _, err := New(w.ctx(), opts); err == nil {
		t.Error("records that can't be read are ignored")
	}
	if values, _ := rawItem(t, w.md, id); !json.Valid([]byte(values["cache.createdAt"])) {
		t.Error("and their values are gone")
	}
}

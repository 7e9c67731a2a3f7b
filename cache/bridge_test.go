package cache

import (
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	bkcache "github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/buildkit/client"
)

// newItems opens an empty metadata store.
func newItems(t testing.TB) *metadata.Store {
	t.Helper()
	s, err := metadata.NewStore(filepath.Join(t.TempDir(), "metadata_v2.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestBridgeFits(t *testing.T) {
	if err := checkBridge(); err != nil {
		t.Fatal(err)
	}
}

// TestBridgeSeesChanges: whatever BuildKit changes, the check says so, and New with
// it; nothing panics.
func TestBridgeSeesChanges(t *testing.T) {
	type twoFields struct {
		_ *metadata.StorageItem
		_ int
	}
	type otherField struct{ _ *metadata.Store }
	type sameShape struct{ _ *metadata.StorageItem }
	var option func(*sameShape) error
	for name, change := range map[string]func(){
		"options that are no functions of one pointer": func() { metadataType = nil },
		"an interface":                     func() { metadataType = reflect.TypeFor[bkcache.RefMetadata]() },
		"one more field":                   func() { metadataType = reflect.TypeFor[twoFields]() },
		"no field":                         func() { metadataType = reflect.TypeFor[struct{}]() },
		"a field of another type":          func() { metadataType = reflect.TypeFor[otherField]() },
		"options of another type":          func() { metadataType = reflect.TypeFor[sameShape]() },
		"WithImageRef like all others":     func() { imageRefOption = reflect.TypeOf(bkcache.WithDescription("")) },
		"WithImageRef that is no function": func() { imageRefOption = reflect.TypeOf("") },
		"WithImageRef of another type":     func() { imageRefOption = reflect.TypeOf(option) },
		"IsNotFound without a value":       func() { errNotFound = nil },
	} {
		t.Run(name, func(t *testing.T) {
			m, i, e := metadataType, imageRefOption, errNotFound
			defer func() { metadataType, imageRefOption, errNotFound = m, i, e }()
			change()
			if err := checkBridge(); err == nil || !strings.Contains(err.Error(), "bridge.go") {
				t.Errorf("the check says %v", err)
			}
			if _, err := New(t.Context(), Options{}); err == nil || !strings.Contains(err.Error(), "bridge.go") {
				t.Errorf("New says %v", err)
			}
		})
	}
}

// TestBridgeMetadata: what is made is BuildKit's own view of the item.
func TestBridgeMetadata(t *testing.T) {
	si, _ := newItems(t).Get("id")
	md := newMetadata(si)
	if got := fmt.Sprintf("%T", md); got != "*cache.cacheMetadata" {
		t.Errorf("type %s", got)
	}
	if md.ID() != "id" {
		t.Errorf("id %q", md.ID())
	}
	if err := md.SetDescription("words"); err != nil {
		t.Fatal(err)
	}
	if v := si.Get("cache.description"); v == nil || string(v.Value) != `"words"` {
		t.Errorf("the item has %v", v)
	}
}

func TestBridgeOptions(t *testing.T) {
	at := time.Unix(1, 2)
	s := newItems(t)
	si, _ := s.Get("id")
	m := newMeta(si)
	opts := []bkcache.RefOption{
		bkcache.WithDescription("words"),
		bkcache.WithRecordType(client.UsageRecordTypeGitCheckout),
		bkcache.WithCreationTime(at),
		bkcache.CachePolicyRetain,
		bkcache.WithImageRef("registry.example/a:1"),
		bkcache.WithImageRef("registry.example/b:1"),
		bkcache.WithImageRef("registry.example/a:1"),
		// Not for records:
		bkcache.DescHandlers{}, bkcache.NoUpdateLastUsed, bkcache.Unlazy(group("s")), nil,
	}
	var c change
	put(&c, keyCommitted, true)
	if err := m.create(c, opts); err != nil {
		t.Fatal(err)
	}
	again, ok := s.Get("id")
	if !ok {
		t.Fatal("nothing is stored")
	}
	for name, m := range map[string]meta{"in memory": m, "stored": newMeta(again)} {
		if !keyCommitted.get(m) || m.GetDescription() != "words" || m.GetRecordType() != client.UsageRecordTypeGitCheckout ||
			!m.GetCreatedAt().Equal(at) || !m.HasCachePolicyRetain() ||
			!reflect.DeepEqual(keyImageRefs.get(m), []string{"registry.example/a:1", "registry.example/b:1"}) {
			t.Errorf("%s: %v %q %v %v %v %v", name, keyCommitted.get(m), m.GetDescription(), m.GetRecordType(), m.GetCreatedAt(),
				m.HasCachePolicyRetain(), keyImageRefs.get(m))
		}
	}
	// On a record that exists, only the image's name is applied.
	if err := applyImageRefs(m.RefMetadata, []bkcache.RefOption{bkcache.WithDescription("other"), bkcache.WithImageRef("registry.example/c:1")}); err != nil {
		t.Fatal(err)
	}
	if err := si.Commit(); err != nil {
		t.Fatal(err)
	}
	if len(keyImageRefs.get(m)) != 3 || m.GetDescription() != "words" {
		t.Errorf("after a second pull: %v %q", keyImageRefs.get(m), m.GetDescription())
	}
}

// TestBridgeRefusesUnknownOptions: an option of a shape that nobody knows is an
// error, not a panic, and nothing of the record is written.
func TestBridgeRefusesUnknownOptions(t *testing.T) {
	s := newItems(t)
	for _, o := range []bkcache.RefOption{
		func() {},
		func(int) error { return nil },
		func(bkcache.RefMetadata) error { return nil },
	} {
		si, _ := s.Get("id")
		if err := newMeta(si).create(nil, []bkcache.RefOption{o}); err == nil {
			t.Errorf("option %T is accepted", o)
		}
		if _, ok := s.Get("id"); ok {
			t.Errorf("option %T: the item is stored", o)
		}
	}
}

func TestBridgeNotFound(t *testing.T) {
	err := notFound("x")
	if !bkcache.IsNotFound(err) || !errors.Is(err, errNotFound) {
		t.Errorf("BuildKit does not know %v", err)
	}
	if bkcache.IsNotFound(errInvalid) || bkcache.IsNotFound(bkcache.ErrLocked) {
		t.Error("everything is not found")
	}
}

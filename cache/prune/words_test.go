package prune

import (
	"slices"
	"time"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
)

// now is when all the tests happen.
var now = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

// rec makes a record of 10 bytes that is a week old and was used once, a day ago.
func rec(id string, is ...func(*Record)) Record {
	r := Record{ID: id, Size: 10, CreatedAt: now.Add(-7 * day), UsageCount: 1}
	ago(day)(&r)
	for _, f := range is {
		f(&r)
	}
	return r
}

const day = 24 * time.Hour

func on(parents ...string) func(*Record) { return func(r *Record) { r.Parents = parents } }
func twinOf(id string) func(*Record)     { return func(r *Record) { r.Twin = id } }
func sized(bytes int64) func(*Record)    { return func(r *Record) { r.Size = bytes } }
func times(n int) func(*Record)          { return func(r *Record) { r.UsageCount = n } }
func described(s string) func(*Record)   { return func(r *Record) { r.Description = s } }
func internal(r *Record)                 { r.Type = client.UsageRecordTypeInternal }
func frontend(r *Record)                 { r.Type = client.UsageRecordTypeFrontend }
func cacheMount(r *Record)               { r.Type = client.UsageRecordTypeCacheMount }
func mutable(r *Record)                  { r.Mutable = true }
func busy(r *Record)                     { r.Users++ }
func removing(r *Record)                 { r.Removing = true }
func neverUsed(r *Record)                { r.LastUsedAt, r.UsageCount = nil, 0 }

func ago(d time.Duration) func(*Record) {
	at := now.Add(-d)
	return func(r *Record) { r.LastUsedAt = &at }
}

func created(d time.Duration) func(*Record) {
	return func(r *Record) { r.CreatedAt = now.Add(-d) }
}

// sharing makes a SharedFunc that knows some IDs.
func sharing(ids ...string) SharedFunc {
	return func(id string, _ []digest.Digest) bool { return slices.Contains(ids, id) }
}

// ids names what is in a batch.
func ids(batch []client.UsageInfo) []string {
	var names []string
	for _, info := range batch {
		names = append(names, info.ID)
	}
	return names
}

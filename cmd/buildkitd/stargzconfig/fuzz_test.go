package stargzconfig

import (
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// FuzzParse reads tables of any TOML: an error or options, and a warning for
// each key that was given and means nothing.
func FuzzParse(f *testing.F) {
	f.Add("resolve_result_entry_ttl_sec = 1\n[blob]\nfetching_timeout_sec = 60\nmax_retries = 3\n")
	f.Add("prefetch_size = -1\nno_background_fetch = false\nprofile_dir = '/x'")
	f.Add("unknown = 1")
	f.Add("blob = 1")
	f.Add("[fuse]\n[[blob]]\n")
	f.Add("debug = 'yes'")
	f.Fuzz(func(t *testing.T, text string) {
		var table map[string]any
		if toml.Unmarshal([]byte(text), &table) != nil {
			return
		}
		_, warnings, err := Parse(table)
		if keys := flatten("", table); err == nil && len(warnings) > len(keys) {
			t.Fatalf("%d warnings of %d keys", len(warnings), len(keys))
		}
	})
}

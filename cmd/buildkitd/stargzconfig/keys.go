// Package stargzconfig reads [worker.oci.stargzSnapshotter], the keys of
// stargz-snapshotter and ours. It stands apart from the daemon, which takes minutes
// to build for a fuzzer.
package stargzconfig

import (
	"fmt"
	"maps"
	"reflect"
	"slices"

	"github.com/pelletier/go-toml/v2"
)

// Keys are those that mean something here. Zero stands for the default, as in
// stargz-snapshotter.
type Keys struct {
	PrefetchSize      int64 `toml:"prefetch_size"`
	NoBackgroundFetch *bool `toml:"no_background_fetch"`
	TTL               int64 `toml:"resolve_result_entry_ttl_sec"`
	Debug             bool  `toml:"debug"`

	// stargz-snapshotter has no such keys, see own.
	ProfileDir string `toml:"profile_dir"`
	NoProfiles bool   `toml:"no_profiles"`
	NoEROFS    bool   `toml:"no_erofs"`
	Resolve    int64  `toml:"resolve_timeout_sec"`
	MaxBytes   int64  `toml:"max_lazy_bytes"`

	Blob struct {
		FetchTimeout int64 `toml:"fetching_timeout_sec"`
		RequestSize  int64 `toml:"prefetch_chunk_size"`
		MinWait      int64 `toml:"min_wait_msec"`
		MaxWait      int64 `toml:"max_wait_msec"`
	} `toml:"blob"`
}

// Why keys mean nothing here, where several have the same reason.
const (
	byKernel    = "decompressed bytes are kept by the kernel"
	neverChange = "layers never change, so nothing that the kernel knows of them expires"
	noMerging   = "files are not merged on disk"
	atFailure   = "a source is asked when bytes are missing"
)

// inert are the other keys of stargz-snapshotter v0.18.2, and why they do
// nothing here.
var inert = map[string]string{
	"http_cache_type":                     "compressed bytes are always kept on disk",
	"filesystem_cache_type":               byKernel,
	"prefetch_timeout_sec":                "no step waits for a prefetch",
	"prefetch_async_size":                 "no step waits for a prefetch",
	"noprefetch":                          "no step waits for a prefetch; leave out prefetch_size to fetch nothing that the image does not ask for",
	"allow_no_verification":               "a layer that can't be verified lazily is pulled whole",
	"disable_verification":                "every layer is verified",
	"max_concurrency":                     "one scheduler orders all requests",
	"no_prometheus":                       "metrics are served on the debug address only",
	"log_file_access":                     "accesses are not logged",
	"resolve_result_entry":                "deprecated in stargz-snapshotter",
	"blob.valid_interval":                 atFailure,
	"blob.check_always":                   atFailure,
	"blob.chunk_size":                     "ranges follow the layer's own chunks",
	"blob.force_single_range_mode":        "every request is for a single range",
	"blob.max_retries":                    "requests are made again until blob.fetching_timeout_sec is over",
	"directory_cache.max_lru_cache_entry": byKernel,
	"directory_cache.max_cache_fds":       byKernel,
	"directory_cache.sync_add":            byKernel,
	"directory_cache.direct":              byKernel,
	"directory_cache.fadv_dontneed":       byKernel,
	"fuse.attr_timeout":                   neverChange,
	"fuse.entry_timeout":                  neverChange,
	"fuse.passthrough":                    noMerging,
	"fuse.merge_buffer_size":              noMerging,
	"fuse.merge_worker_count":             noMerging,
}

// own are the keys that only we have. Stock ignores them.
var own = []string{"profile_dir", "no_profiles", "no_erofs", "resolve_timeout_sec", "max_lazy_bytes"}

// Parse reads the table. The warnings name keys without effect; a key that is
// unknown to stargz-snapshotter is an error.
func Parse(table map[string]any) (_ Keys, warnings []string, _ error) {
	known := honoured()
	keys := flatten("", table)
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if why, ok := inert[key]; ok {
			warnings = append(warnings, fmt.Sprintf("[worker.oci.stargzSnapshotter] %s has no effect: %s", key, why))
		} else if !known[key] {
			return Keys{}, nil, fmt.Errorf("[worker.oci.stargzSnapshotter] has an unknown key: %s", key)
		}
	}
	b, err := toml.Marshal(table)
	if err != nil {
		return Keys{}, nil, fmt.Errorf("failed to parse stargz config: %w", err)
	}
	var c Keys
	if err := toml.Unmarshal(b, &c); err != nil {
		return Keys{}, nil, fmt.Errorf("failed to parse stargz config: %w", err)
	}
	return c, warnings, nil
}

// flatten names each value by its dotted path. An empty table is named itself,
// so that it can be unknown, too.
func flatten(prefix string, table map[string]any) map[string]struct{} {
	out := map[string]struct{}{}
	for k, v := range table {
		if sub, ok := v.(map[string]any); ok {
			maps.Copy(out, flatten(prefix+k+".", sub))
		} else {
			out[prefix+k] = struct{}{}
		}
	}
	return out
}

// honoured are the dotted names of Keys's keys.
func honoured() map[string]bool {
	out := map[string]bool{}
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			key := prefix + f.Tag.Get("toml")
			if f.Type.Kind() == reflect.Struct {
				walk(key+".", f.Type)
				continue
			}
			out[key] = true
		}
	}
	walk("", reflect.TypeFor[Keys]())
	return out
}

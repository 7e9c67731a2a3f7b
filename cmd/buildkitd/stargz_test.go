package main

import (
	"strings"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/worker"
)

func TestStargzKeys(t *testing.T) {
	for _, c := range []struct {
		name, file string
		want       worker.LazyOptions
		warnings   []string
		err        string
	}{
		{name: "nothing"},
		{
			name: "what is honoured",
			file: `
prefetch_size = 1000
no_background_fetch = false
resolve_result_entry_ttl_sec = 7
debug = true
profile_dir = "/srv/profiles"
no_profiles = true
resolve_timeout_sec = 9
[blob]
fetching_timeout_sec = 30
prefetch_chunk_size = 5000
min_wait_msec = 20
max_wait_msec = 4000
`,
			want: worker.LazyOptions{PrefetchSize: 1000, BackgroundFetch: true, TTL: 7 * time.Second, Debug: true,
				ProfileDir: "/srv/profiles", NoProfiles: true, ResolveTimeout: 9 * time.Second,
				FetchTimeout: 30 * time.Second, RequestSize: 5000, MinWait: 20 * time.Millisecond, MaxWait: 4 * time.Second},
		},
		{name: "background fetch is asked for by its absence only", file: "no_background_fetch = true"},
		{
			name:     "what has no effect",
			file:     "disable_verification = true\n[fuse]\npassthrough = true\n[directory_cache]\ndirect = true",
			warnings: []string{"directory_cache.direct", "disable_verification", "fuse.passthrough"},
		},
		{name: "an unknown key", file: "prefetch_siez = 1", err: "prefetch_siez"},
		{name: "an unknown key of a table", file: "[blob]\nchunk_sizes = 1", err: "blob.chunk_sizes"},
		{name: "an unknown table", file: "[cache]\nx = 1", err: "cache.x"},
		{name: "a value of another type", file: "prefetch_size = 'much'", err: "failed to parse stargz config"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var table map[string]any
			require.NoError(t, toml.Unmarshal([]byte(c.file), &table))
			got, warnings, err := parseStargz(table)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, c.want, got)
			require.Len(t, warnings, len(c.warnings))
			for i, key := range c.warnings {
				require.True(t, strings.Contains(warnings[i], " "+key+" has no effect"), warnings[i])
			}
		})
	}
}

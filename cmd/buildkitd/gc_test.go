package main

import (
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/disk"
	"github.com/stretchr/testify/require"
)

func TestGCSizes(t *testing.T) {
	for _, s := range []string{"1", "1,2", "1,2,3", "1,0,3"} {
		var cfg config.GCConfig
		require.NoError(t, parseGC(s, &cfg))
		require.Equal(t, s, formatGC(cfg, disk.DiskStat{}), "what is parsed is shown again")
	}
	cfg := config.GCConfig{GCMaxUsedSpace: config.DiskSpace{Bytes: 9}}
	require.NoError(t, parseGC("1,2", &cfg))
	require.Zero(t, cfg.GCMaxUsedSpace, "sizes are replaced as a whole")
	require.NoError(t, parseGC("", &cfg))
	require.True(t, cfg.IsUnset())
	for _, s := range []string{"x", "1,", "1,2,3,4", "1.5"} {
		require.Error(t, parseGC(s, &cfg), s)
	}
	old := config.GCConfig{GCKeepStorage: config.DiskSpace{Bytes: 7_000_000}} //nolint:staticcheck // the old key
	require.Equal(t, "7", formatGC(old, disk.DiskStat{}))
}

func TestGCPolicy(t *testing.T) {
	off := false
	require.Nil(t, gcPolicy(config.GCConfig{GC: &off}, t.TempDir()))

	rules := gcPolicy(config.GCConfig{}, t.TempDir())
	require.Len(t, rules, 4, "stock's default rules")
	require.True(t, rules[3].All)
	require.NotZero(t, rules[3].MaxUsedSpace)

	got := gcPolicy(config.GCConfig{GCPolicy: []config.GCPolicy{
		{All: true, Filters: []string{"type==regular"}, KeepDuration: config.Duration{Duration: time.Hour}, KeepBytes: config.DiskSpace{Bytes: 5}},
		{ReservedSpace: config.DiskSpace{Bytes: 6}, KeepBytes: config.DiskSpace{Bytes: 5}, MaxUsedSpace: config.DiskSpace{Bytes: 7}, MinFreeSpace: config.DiskSpace{Bytes: 8}},
	}}, t.TempDir())
	require.Equal(t, []client.PruneInfo{
		{All: true, Filter: []string{"type==regular"}, KeepDuration: time.Hour, ReservedSpace: 5},
		{ReservedSpace: 6, MaxUsedSpace: 7, MinFreeSpace: 8},
	}, got)
}

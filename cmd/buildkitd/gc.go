package main

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/disk"
)

const gcUsage = `Amount of storage GC keep locally, format "Reserved[,Free[,Maximum]]" (MB)`

const megabyte = 1_000_000

// gcPolicy is the worker's: the rules of the config, or stock's default rules for
// the configured sizes, and none when collection is switched off. Percentages are
// of the disk that holds root.
func gcPolicy(cfg config.GCConfig, root string) []client.PruneInfo {
	if cfg.GC != nil && !*cfg.GC {
		return nil
	}
	stat, _ := disk.GetDiskStat(root) // unknown: percentages become a fixed size
	rules := cfg.GCPolicy
	if len(rules) == 0 {
		rules = config.DefaultGCPolicy(cfg, stat)
	}
	out := make([]client.PruneInfo, len(rules))
	for i, r := range rules {
		reserved := r.ReservedSpace
		if reserved == (config.DiskSpace{}) {
			reserved = r.KeepBytes //nolint:staticcheck // the old name of the key
		}
		out[i] = client.PruneInfo{
			Filter:        r.Filters,
			All:           r.All,
			KeepDuration:  r.KeepDuration.Duration,
			ReservedSpace: reserved.AsBytes(stat),
			MaxUsedSpace:  r.MaxUsedSpace.AsBytes(stat),
			MinFreeSpace:  r.MinFreeSpace.AsBytes(stat),
		}
	}
	return out
}

// formatGC shows sizes as parseGC reads them, leaving out what is zero at the end.
func formatGC(cfg config.GCConfig, stat disk.DiskStat) string {
	if cfg.IsUnset() {
		cfg.GCReservedSpace = cfg.GCKeepStorage //nolint:staticcheck // the old name of the key
	}
	if cfg.IsUnset() {
		cfg = config.DetectDefaultGCCap(stat)
	}
	// Stock shows a reserve in percent as if the disk's size were unknown.
	sizes := []int64{
		cfg.GCReservedSpace.AsBytes(disk.DiskStat{}),
		cfg.GCMinFreeSpace.AsBytes(stat),
		cfg.GCMaxUsedSpace.AsBytes(stat),
	}
	n := len(sizes)
	for n > 1 && sizes[n-1] < megabyte {
		n--
	}
	parts := make([]string, n)
	for i := range parts {
		parts[i] = strconv.FormatInt(sizes[i]/megabyte, 10)
	}
	return strings.Join(parts, ",")
}

// parseGC reads "Reserved[,Free[,Maximum]]" in megabytes. What is not named is
// set to zero, since the flag replaces the config's sizes as a whole.
func parseGC(s string, cfg *config.GCConfig) error {
	var sizes [3]config.DiskSpace
	if s != "" {
		for i, part := range strings.SplitN(s, ",", len(sizes)) {
			n, err := strconv.ParseInt(part, 10, 64)
			if err != nil {
				return fmt.Errorf("failed to parse %s storage %q: %w", [...]string{"reserved", "free", "max"}[i], s, err)
			}
			sizes[i].Bytes = n * megabyte
		}
	}
	cfg.GCReservedSpace, cfg.GCMinFreeSpace, cfg.GCMaxUsedSpace = sizes[0], sizes[1], sizes[2]
	return nil
}

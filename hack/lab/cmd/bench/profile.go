package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// profile is what a daemon has recorded of one layer: a JSON file in the directory
// that profile_dir names.
type profile struct {
	Layer string `json:"layer"`
	Steps []struct {
		Step   string     `json:"step"`
		Ranges [][2]int64 `json:"ranges"` // offset in the blob, length
	} `json:"steps"`
}

// profileConfig is the part of buildkitd.toml that has profiles kept in dir.
func profileConfig(dir string) string {
	return fmt.Sprintf("[worker.oci.stargzSnapshotter]\n  profile_dir = %q\n", dir)
}

// readProfiles reads all profiles in dir and below.
func readProfiles(dir string) ([]profile, error) {
	var all []profile
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, ".json") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		var p profile
		if err := json.Unmarshal(data, &p); err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if p.Layer == "" {
			return fmt.Errorf("%s: it names no layer", path)
		}
		all = append(all, p)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the profiles: %w", err)
	}
	return all, nil
}

// bytesRead is how many compressed bytes the steps have read, each byte of a layer
// once.
func bytesRead(profiles []profile) (int64, error) {
	layers := map[string][][2]int64{}
	for _, p := range profiles {
		for _, s := range p.Steps {
			for _, r := range s.Ranges {
				if r[0] < 0 || r[1] < 0 {
					return 0, fmt.Errorf("profile of %s: range %v of step %q", p.Layer, r, s.Step)
				}
				layers[p.Layer] = append(layers[p.Layer], r)
			}
		}
	}
	var sum int64
	for _, ranges := range layers {
		slices.SortFunc(ranges, func(a, b [2]int64) int { return int(min(1, max(-1, a[0]-b[0]))) })
		var end int64
		for _, r := range ranges {
			from, to := max(r[0], end), r[0]+r[1]
			if to > from {
				sum += to - from
				end = to
			}
		}
	}
	if sum == 0 {
		return 0, errors.New("the profiles are empty")
	}
	return sum, nil
}

package prune

import (
	"fmt"
	"strings"

	"github.com/containerd/containerd/v2/pkg/filters"
	"github.com/moby/buildkit/client"
)

// filter chooses records; see parseFilter.
type filter struct{ filters.Filter }

// parseFilter reads filters in containerd's syntax. A record matches if one of
// them does, or if there are none. The fields are id, parents (joined with ";"),
// description and type, which have values, and inuse, mutable, immutable, shared
// and private, which are there or not. As in BuildKit, other fields are absent
// and a broken regular expression matches nothing.
//
// The error names the filter and is errdefs.ErrInvalidArgument.
func parseFilter(specs []string) (filter, error) {
	if len(specs) == 0 {
		return filter{filters.Always}, nil
	}
	var alternatives filters.Any
	for _, s := range specs {
		// ParseAll, unlike Parse, gives its error a class.
		f, err := filters.ParseAll(s)
		if err != nil {
			return filter{}, fmt.Errorf("filter %q: %w", s, err)
		}
		alternatives = append(alternatives, f)
	}
	return filter{alternatives}, nil
}

// match reports whether a record is chosen.
func (f filter) match(info *client.UsageInfo) bool {
	return f.Match(filters.AdapterFunc(func(path []string) (string, bool) {
		if len(path) == 0 {
			return "", false
		}
		return field(info, path[0])
	}))
}

// field returns a field's value and whether the record has it.
func field(info *client.UsageInfo, name string) (value string, present bool) {
	switch name {
	case "id":
		value = info.ID
	case "parents":
		value = strings.Join(info.Parents, ";")
	case "description":
		value = info.Description
	case "type":
		value = string(info.RecordType)
	case "inuse":
		return "", info.InUse
	case "mutable":
		return "", info.Mutable
	case "immutable":
		return "", !info.Mutable
	case "shared":
		return "", info.Shared
	case "private":
		return "", !info.Shared
	}
	return value, value != ""
}

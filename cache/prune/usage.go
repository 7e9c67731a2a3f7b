package prune

import (
	"fmt"
	"time"

	"github.com/moby/buildkit/client"
)

// Usage describes the records that the request's filter chooses and that were
// not used within its AgeLimit (0: whenever), sorted by ID. A record whose last
// use is unknown is older than any limit.
//
// An unknown size stays SizeUnknown: the caller measures those few records that
// are left, or puts 0 there when a record has gone meanwhile.
//
// The error names the filter that can't be parsed and is
// errdefs.ErrInvalidArgument.
func Usage(v View, req client.DiskUsageInfo, shared SharedFunc, now time.Time) ([]*client.UsageInfo, error) {
	f, err := parseFilter(req.Filter)
	if err != nil {
		return nil, fmt.Errorf("disk usage: %w", err)
	}
	g := newGraph(v)
	g.markShared(shared)
	var infos []*client.UsageInfo
	for _, n := range g.listed() {
		if req.AgeLimit > 0 && n.usedAfter(now.Add(-req.AgeLimit)) {
			continue
		}
		if info := n.info(); f.match(info) {
			infos = append(infos, info)
		}
	}
	return infos, nil
}

package main

import (
	"time"

	"github.com/lazykit/lazykit/hack/lab/link"
)

// floor is what a first build has to wait for on any lazy daemon.
type floor struct {
	Chunks int64 `json:"chunk_bytes"` // compressed bytes of the chunks that the build reads
	TOCs   int64 `json:"toc_bytes"`   // of the tables of contents
}

// floorTrips are the round trips: to connect, for the manifest, for the config, for
// all tables of contents, for all data.
const floorTrips = 5

// waiting is the least time over a link.
func (f floor) waiting(s link.Shape) time.Duration {
	t := floorTrips * s.RTT
	if s.Total > 0 {
		t += time.Duration(float64(f.Chunks+f.TOCs) / float64(s.Total) * float64(time.Second))
	}
	return t
}

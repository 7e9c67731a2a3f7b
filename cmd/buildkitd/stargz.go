package main

import (
	"time"

	"github.com/lazykit/lazykit/cmd/buildkitd/stargzconfig"
	"github.com/lazykit/lazykit/worker"
)

// parseStargz gives the worker's words for [worker.oci.stargzSnapshotter], and
// warnings that name keys without effect.
func parseStargz(table map[string]any) (_ worker.LazyOptions, warnings []string, _ error) {
	c, warnings, err := stargzconfig.Parse(table)
	if err != nil {
		return worker.LazyOptions{}, nil, err
	}
	return worker.LazyOptions{
		PrefetchSize: c.PrefetchSize,
		// Off unless it is asked for: a builder rarely needs all of a base image.
		BackgroundFetch: c.NoBackgroundFetch != nil && !*c.NoBackgroundFetch,
		RequestSize:     c.Blob.RequestSize,
		TTL:             time.Duration(c.TTL) * time.Second,
		FetchTimeout:    time.Duration(c.Blob.FetchTimeout) * time.Second,
		ResolveTimeout:  time.Duration(c.Resolve) * time.Second,
		MinWait:         time.Duration(c.Blob.MinWait) * time.Millisecond,
		MaxWait:         time.Duration(c.Blob.MaxWait) * time.Millisecond,
		ProfileDir:      c.ProfileDir,
		NoProfiles:      c.NoProfiles,
		NoImages:        c.NoEROFS,
		MaxBytes:        c.MaxBytes,
		Debug:           c.Debug,
	}, warnings, nil
}

package main

import (
	"errors"
	"fmt"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/solver/llbsolver/cdidevices"
	"github.com/moby/buildkit/util/bklog"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

func cdiDisabled(cfg config.CDIConfig) bool { return cfg.Disabled != nil && *cfg.Disabled }

// newCDI reads the device specifications. It is nil when devices are disabled; a
// broken specification is a warning.
func newCDI(cfg config.CDIConfig) (*cdidevices.Manager, error) {
	if cdiDisabled(cfg) {
		return nil, nil
	}
	if len(cfg.SpecDirs) == 0 {
		return nil, errors.New("no CDI specification directories specified")
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(cfg.SpecDirs...))
	if err == nil {
		err = cache.Refresh()
	}
	if err != nil {
		return nil, fmt.Errorf("CDI registry initialization failure: %w", err)
	}
	for dir, errs := range cache.GetErrors() {
		for _, err := range errs {
			bklog.L.Warnf("CDI setup error %v: %+v", dir, err)
		}
	}
	return cdidevices.NewManager(cache, cfg.AutoAllowed), nil
}

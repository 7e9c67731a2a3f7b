package main

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/bklog"
	"github.com/sirupsen/logrus"
)

// setupLog configures the logger. A level by name wins over the old switches.
func setupLog(cfg *config.Config) error {
	switch cfg.Log.Format {
	case "json":
		logrus.SetFormatter(&logrus.JSONFormatter{})
	case "text", "":
		logrus.SetFormatter(&logrus.TextFormatter{FullTimestamp: true})
	default:
		return fmt.Errorf("unsupported log type %q", cfg.Log.Format)
	}
	if cfg.Debug { //nolint:staticcheck // deprecated, and still honoured
		logrus.SetLevel(logrus.DebugLevel)
	}
	if cfg.Trace { //nolint:staticcheck // deprecated, and still honoured
		logrus.SetLevel(logrus.TraceLevel)
	}
	if cfg.Log.Level != "" {
		level, err := logrus.ParseLevel(cfg.Log.Level)
		if err != nil {
			return fmt.Errorf("unsupported log level: %w", err)
		}
		logrus.SetLevel(level)
	}
	return nil
}

func logWarnings(ctx context.Context, s *settings) {
	for _, w := range s.warnings {
		bklog.G(ctx).Warn(w)
	}
	s.warnings = nil
}

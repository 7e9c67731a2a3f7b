package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/gofrs/flock"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/cachedigest"
	"github.com/moby/buildkit/util/grpcerrors"
	"github.com/moby/buildkit/util/resolver/limited"
	"github.com/moby/buildkit/util/stack"
	"github.com/sirupsen/logrus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
)

// daemon is one run of buildkitd.
type daemon struct {
	telemetry telemetry // shut down after run
}

// run serves until ctx ends, by a signal, or until a listener fails, and returns
// why. What it opened it has closed by then, except the telemetry.
func (d *daemon) run(ctx context.Context, s *settings) (rerr error) {
	if err := setupLog(&s.Config); err != nil {
		return err
	}
	logWarnings(ctx, s)
	if err := applySystem(s.System); err != nil {
		return err
	}
	var cache *cacheDebug
	if addr := s.GRPC.DebugAddress; addr != "" {
		dbg, err := serveDebug(ctx, addr)
		if err != nil {
			return err
		}
		defer dbg.Close()
		cache = dbg.cache
	}
	var err error
	if d.telemetry, err = startTelemetry(ctx); err != nil {
		return err
	}
	unlock, err := lockRoot(&s.Config)
	if err != nil {
		return err
	}
	defer unlock()

	// Before the controller: it may need minutes to open a large state, during
	// which clients can connect already and wait.
	listeners, err := listenAll(ctx, s.GRPC)
	if err != nil {
		return err
	}
	defer closeAll(listeners) // harmless for those that the server has closed

	if s.saveCacheDebug {
		db, err := cachedigest.NewDB(filepath.Join(s.Root, "cache-debug.db"))
		if err != nil {
			return fmt.Errorf("failed to create cache debug db: %w", err)
		}
		cachedigest.SetDefaultDB(db)
		defer db.Close()
	}
	b, err := newBackend(ctx, s, d.telemetry.meter)
	if err != nil {
		return err
	}
	defer func() { logClose(ctx, b.Close()) }()
	if cache != nil {
		cache.setStore(b.cacheStore)
	}
	return serve(ctx, d.newServer(b), listeners, b)
}

// newServer is the gRPC server with all of the daemon's services.
func (d *daemon) newServer(b *backend) *grpc.Server {
	server := grpc.NewServer(
		grpc.StatsHandler(d.telemetry.statsHandler()),
		grpc.ChainUnaryInterceptor(logErrors, grpcerrors.UnaryServerInterceptor),
		grpc.StreamInterceptor(grpcerrors.StreamServerInterceptor),
		grpc.MaxRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
		grpc.MaxSendMsgSize(defaults.DefaultMaxSendMsgSize),
		// A build that is cut still has a step to kill and mounts to undo: Stop
		// is to wait for it.
		grpc.WaitForHandlers(true),
	)
	healthv1.RegisterHealthServer(server, health.NewServer())
	b.controller.Register(server)
	reflection.Register(server)
	return server
}

func applySystem(sc *config.SystemConfig) error {
	if sc == nil {
		return nil
	}
	if v := sc.PlatformsCacheMaxAge; v != nil {
		archutil.CacheMaxAge = v.Duration
	}
	if v := sc.MaxRegistryConcurrency; v != nil {
		if *v <= 0 {
			return fmt.Errorf("maxRegistryConcurrency must be greater than zero; set to %d in the configuration file", *v)
		}
		limited.SetMaxConcurrency(int64(*v))
	}
	return nil
}

// lockRoot makes the root absolute, makes it, and keeps other daemons out of it.
func lockRoot(cfg *config.Config) (unlock func(), err error) {
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, err
	}
	cfg.Root = root
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("failed to create %s: %w", root, err)
	}
	path := filepath.Join(root, "buildkitd.lock")
	for range lockTries {
		lock := flock.New(path)
		locked, err := lock.TryLock()
		if err != nil {
			return nil, fmt.Errorf("could not lock %s: %w", path, err)
		}
		if !locked {
			lock.Close()
			if endDying(root, path) {
				continue
			}
			break
		}
		if isFileAt(lock, path) {
			return func() {
				// In this order: who opened the file before finds it locked, or gone.
				os.RemoveAll(path)
				lock.Unlock()
			}, nil
		}
		lock.Close() // a daemon that ended at this moment has removed it: the next may be another's
	}
	return nil, fmt.Errorf("could not lock %s, another instance running?", path)
}

// lockTries is how often a lock file may vanish while it is locked, or be one of a
// daemon that was killed.
const lockTries = 10

// isFileAt says whether the locked file is the one that others will find at path.
func isFileAt(lock *flock.Flock, path string) bool {
	mine, err := lock.Stat()
	if err != nil {
		return false
	}
	now, err := os.Stat(path)
	return err == nil && os.SameFile(mine, now)
}

// logErrors logs calls that fail, but not those that only carry traces: they
// would log about logging.
func logErrors(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err == nil || strings.HasSuffix(info.FullMethod, "opentelemetry.proto.collector.trace.v1.TraceService/Export") {
		return resp, err
	}
	bklog.G(ctx).Errorf("%s returned error: %v", info.FullMethod, err)
	if logrus.IsLevelEnabled(logrus.DebugLevel) {
		fmt.Fprintf(os.Stderr, "%+v", stack.Formatter(grpcerrors.FromGRPC(err)))
	}
	return resp, err
}

func logClose(ctx context.Context, err error) {
	if err != nil && !errors.Is(err, net.ErrClosed) {
		bklog.G(ctx).WithError(err).Error("failed to stop cleanly")
	}
}

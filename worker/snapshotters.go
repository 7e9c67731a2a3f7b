package worker

import (
	"errors"
	"fmt"
	"os"
	"time"

	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/core/snapshots/proxy"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/containerd/v2/pkg/dialer"
	"github.com/containerd/containerd/v2/plugins/snapshots/native"
	"github.com/containerd/containerd/v2/plugins/snapshots/overlay"
	fuseoverlayfs "github.com/containerd/fuse-overlayfs-snapshotter/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// proxyMaxBackoff bounds the pause between two attempts to reach a snapshotter
// that is served by another process.
const proxyMaxBackoff = 3 * time.Second

// plainSnapshotter opens one of the snapshotters that have no lazy layers.
func plainSnapshotter(name, dir string) (snapshots.Snapshotter, error) {
	switch name {
	case Native:
		return native.NewSnapshotter(dir)
	case Overlay:
		return overlay.NewSnapshotter(dir, overlay.AsynchronousRemove)
	case FUSEOverlay:
		return fuseoverlayfs.NewSnapshotter(dir)
	}
	return nil, fmt.Errorf("unknown snapshotter name: %q", name)
}

// proxySnapshotter is the snapshotter that another process serves on a socket.
// The socket must exist; the process may come later.
func proxySnapshotter(name, address string) (snapshots.Snapshotter, error) {
	if _, err := os.Stat(address); errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("snapshotter doesn't exist on %q (Do not include 'unix://' prefix): %w", address, err)
	}
	pause := backoff.DefaultConfig
	pause.MaxDelay = proxyMaxBackoff
	conn, err := grpc.NewClient(dialer.DialAddress(address),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: pause}),
		grpc.WithContextDialer(dialer.ContextDialer),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(defaults.DefaultMaxRecvMsgSize),
			grpc.MaxCallSendMsgSize(defaults.DefaultMaxSendMsgSize)))
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", address, err)
	}
	return &dialed{proxy.NewSnapshotter(snapshotsapi.NewSnapshotsClient(conn), name), conn}, nil
}

// dialed closes its connection with the snapshotter.
type dialed struct {
	snapshots.Snapshotter
	conn *grpc.ClientConn
}

func (d *dialed) Close() error { return errors.Join(d.Snapshotter.Close(), d.conn.Close()) }

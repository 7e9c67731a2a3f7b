package main

import (
	"context"
	"net"
	"os"
	"sync"
	"time"

	sddaemon "github.com/coreos/go-systemd/v22/daemon"
	"github.com/moby/buildkit/util/appcontext"
	"github.com/moby/buildkit/util/bklog"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
)

// Bounds of the end. Once builds are cut, they and the closing stay below 10 s,
// after which container engines kill.
const (
	// stallTime is how long a lazy read may have waited for a registry in vain
	// before the build behind it is given up on.
	stallTime = 3 * time.Second
	// stallPoll is how often that is looked at.
	stallPoll = 250 * time.Millisecond
	// undoTime is given to cut builds to kill their steps and undo mounts.
	undoTime = 2 * time.Second
)

// stopper is the backend's part in stopping.
type stopper interface {
	// Stalled says for how long a lazy read has waited for a registry in vain.
	Stalled() time.Duration
	// Abort makes lazy reads fail.
	Abort()
}

// serve runs the server on the listeners until ctx ends or one of them fails,
// then stops it and returns why.
func serve(ctx context.Context, server *grpc.Server, listeners []net.Listener, s stopper) error {
	var eg errgroup.Group
	for _, l := range listeners {
		eg.Go(func() error {
			bklog.L.Infof("running server on %s", l.Addr())
			return server.Serve(l)
		})
	}
	notify(sddaemon.SdNotifyReady)
	failed := make(chan error, 1)
	go func() { failed <- eg.Wait() }()

	var why error
	select {
	case why = <-failed:
	case <-ctx.Done():
		why = context.Cause(ctx)
	}
	bklog.G(ctx).Infof("stopping server")
	notify(sddaemon.SdNotifyStopping)
	stop(server, appcontext.Shutdown().Done(), s)
	return why
}

// stop waits for the builds under way, as stock does, but not for one that hangs
// in a lazy read, nor beyond hurry: then all are cut.
func stop(server *grpc.Server, hurry <-chan struct{}, s stopper) {
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		server.GracefulStop()
	}()
	poll := time.NewTicker(stallPoll)
	defer poll.Stop()
	for {
		select {
		case <-drained:
			return
		case <-hurry:
			cut(server, s, "told to stop twice")
			return
		case <-poll.C:
			if d := s.Stalled(); d >= stallTime {
				cut(server, s, "a registry has not answered for "+d.Round(time.Second).String())
				return
			}
		}
	}
}

// cut ends the builds under way.
func cut(server *grpc.Server, s stopper, why string) {
	bklog.L.Warnf("builds are still running and are cut off: %s", why)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		var wg sync.WaitGroup
		wg.Go(server.Stop) // cancels the builds, which kill their steps
		wg.Go(s.Abort)     // lets the steps die
		wg.Wait()
	}()
	undo := time.NewTimer(undoTime)
	defer undo.Stop()
	select {
	case <-ended:
	case <-undo.C:
		bklog.L.Warn("some builds have not ended: what they leave mounted is detached")
	}
}

// notify tells systemd, when it started the daemon and wants to know.
func notify(state string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	sent, err := sddaemon.SdNotify(false, state)
	bklog.L.Debugf("sd_notify %s: sent=%v, err=%v", state, sent, err)
}

package main

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// slowBuild is a service whose call lasts until it is told to end, or, when it is
// stuck in a lazy read, until that is aborted.
type slowBuild struct {
	healthv1.UnimplementedHealthServer
	started chan struct{}
	finish  chan struct{}
	stuck   bool
	stall   atomic.Int64
	aborted chan struct{}
}

func (b *slowBuild) Check(ctx context.Context, _ *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	close(b.started)
	if b.stuck {
		<-b.aborted
		return nil, errors.New("read of a lazy layer: aborted")
	}
	select {
	case <-b.finish:
		return &healthv1.HealthCheckResponse{}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (b *slowBuild) Stalled() time.Duration { return time.Duration(b.stall.Load()) }

func (b *slowBuild) Abort() { close(b.aborted) }

// begin starts a server and a call of the build. The result of the call comes on
// the channel.
func (b *slowBuild) begin(t *testing.T) (*grpc.Server, chan error) {
	t.Helper()
	b.started, b.finish, b.aborted = make(chan struct{}), make(chan struct{}), make(chan struct{})
	server := grpc.NewServer(grpc.WaitForHandlers(true))
	healthv1.RegisterHealthServer(server, b)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go server.Serve(l)
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	result := make(chan error, 1)
	go func() {
		_, err := healthv1.NewHealthClient(conn).Check(context.Background(), &healthv1.HealthCheckRequest{})
		result <- err
	}()
	<-b.started
	return server, result
}

func TestStopWaitsForBuilds(t *testing.T) {
	b := &slowBuild{}
	b.stall.Store(int64(stallTime - 1)) // slow, but not in vain
	server, result := b.begin(t)
	stopped := make(chan struct{})
	go func() { defer close(stopped); stop(server, nil, b) }()
	select {
	case <-stopped:
		t.Fatal("stopped while a build was running")
	case <-time.After(3 * stallPoll):
	}
	close(b.finish)
	require.NoError(t, <-result, "the build ended well")
	<-stopped
}

func TestStopCutsStuckBuilds(t *testing.T) {
	b := &slowBuild{stuck: true}
	b.stall.Store(int64(stallTime))
	server, result := b.begin(t)
	began := time.Now()
	stop(server, nil, b)
	require.Less(t, time.Since(began), undoTime, "the build unwound once its reads were aborted")
	require.Error(t, <-result)
}

func TestStopCutsAtSecondSignal(t *testing.T) {
	b := &slowBuild{}
	server, result := b.begin(t)
	hurry := make(chan struct{})
	close(hurry)
	stop(server, hurry, b)
	require.Error(t, <-result)
}

func TestServeEndsWhenAListenerFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l.Close()
	err = serve(t.Context(), grpc.NewServer(), []net.Listener{l}, &slowBuild{})
	require.ErrorIs(t, err, net.ErrClosed)
}

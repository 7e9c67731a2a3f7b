package worker

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestCollectorLooksAgain(t *testing.T) {
	looks := make(chan struct{}, 8)
	c := newCollector(t.Context(), func(context.Context) (int64, error) {
		looks <- struct{}{}
		return 1, nil
	}, 50*time.Millisecond)
	require.NoError(t, c.run(t.Context()))
	require.NoError(t, c.run(t.Context()), "a collection soon after puts the second look off")
	require.Len(t, looks, 2)
	<-looks
	<-looks
	<-looks // the one that comes later
	c.close()
	require.Empty(t, looks)
	require.NoError(t, c.run(t.Context()))
	<-looks
	c.close()
	require.Empty(t, looks, "none after close")
}

func TestCollectorEnds(t *testing.T) {
	c := newCollector(t.Context(), func(ctx context.Context) (int64, error) {
		<-ctx.Done()
		return 0, ctx.Err()
	}, time.Nanosecond)
	c.schedule()
	c.close() // ends the look, if it has begun
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("over"))
	require.ErrorIs(t, c.run(ctx), context.Canceled)
}

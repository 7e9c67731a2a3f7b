package lazyfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/estargz/estargztest"
	"github.com/lazykit/lazykit/remotesnapshot"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// all reads a stream from one end to the other.
func all(r remotesnapshot.BlobReader) ([]byte, error) {
	return io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
}

func TestStreamOfALayerThatWasReadInParts(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	l := layerOf(t, 1, "a", "b", "c", "d", "e", "f")
	src := push(reg, "app:latest", l)
	dir, _ := w.resolved(src)
	check(t, dir, "b", contents(1, 1))
	had := w.Info(src.Digest)
	require.Less(t, had.Fetched, had.Size)
	reg.Reset()
	r, err := w.Stream(t.Context(), src)
	require.NoError(t, err)
	require.Equal(t, had.Size, r.Size())
	got, err := all(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(l.Blob, got))
	require.Equal(t, had.Size-had.Fetched, reg.Bytes(), "what was missing, and nothing else")
	require.True(t, w.Info(src.Digest).Local)
	require.NoError(t, r.Close())
	require.NoError(t, r.Close())

	reg.Stop()
	r, err = w.Stream(t.Context(), src)
	require.NoError(t, err)
	defer r.Close()
	got, err = all(r)
	require.NoError(t, err)
	require.True(t, bytes.Equal(l.Blob, got), "a local one needs nobody")
}

// TestStreamGivesWhatHasArrived reads the first bytes while the rest hangs.
func TestStreamGivesWhatHasArrived(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	data := estargztest.Bytes(1, 40<<20)
	src := remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: reg.AddBlob(data)}
	// What does not begin in the first MiB hangs.
	reg.Fault(blobtest.Fault{Stall: true, Match: func(q blobtest.Request) bool {
		var from int64
		n, _ := fmt.Sscanf(q.Range, "bytes=%d-", &from)
		return n == 1 && from > 1<<20
	}})
	r, err := w.Stream(t.Context(), src)
	require.NoError(t, err)
	head := make([]byte, 1<<20)
	_, err = r.ReadAt(head, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data[:1<<20], head))
	require.NoError(t, r.Close(), "and is closed in the middle")
}

func TestStreamOfWrongBytesNeverEnds(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	data := estargztest.Bytes(1, 300_000)
	dgst := reg.AddBlob(data)
	reg.Fault(blobtest.Fault{Flip: true, At: 1000})
	r, err := w.Stream(t.Context(), remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: dgst})
	require.NoError(t, err)
	defer r.Close()
	_, err = all(r)
	require.True(t, cerrdefs.IsDataLoss(err) || errors.Is(err, errWasWrong{}), "%v", err)
}

func TestStreamSaysThatBytesWereWrong(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	data := estargztest.Bytes(1, 300_000)
	src := remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: reg.AddBlob(data)}
	reg.Fault(blobtest.Fault{Flip: true, At: 0, Times: 1})
	r, err := w.Stream(t.Context(), src)
	require.NoError(t, err)
	defer r.Close()
	var temporary net.Error
	_, err = all(r)
	require.ErrorAs(t, err, &temporary, "or a push would not be tried again")
	require.True(t, temporary.Temporary()) //nolint:staticcheck // what BuildKit asks for

	again, err := w.Stream(t.Context(), src)
	require.NoError(t, err)
	defer again.Close()
	got, err := all(again)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
}

func TestStreamEndsWithItsContext(t *testing.T) {
	reg := blobtest.New(t)
	w := start(t, Options{}, reg)
	dgst := reg.AddBlob(estargztest.Bytes(1, 300_000))
	ctx, cancel := context.WithCancel(t.Context())
	src := remotesnapshot.Source{Reference: reg.Reference("plain:latest"), Digest: dgst}
	_, release := w.unlazied(src, estargztest.Bytes(1, 300_000))
	release()
	r, err := w.Stream(ctx, src)
	require.NoError(t, err)
	cancel()
	time.Sleep(10 * time.Millisecond)
	require.NoError(t, r.Close())
	_, err = w.Stream(t.Context(), remotesnapshot.Source{Reference: src.Reference, Digest: "sha256:x"})
	require.True(t, cerrdefs.IsInvalidArgument(err), "%v", err)
}

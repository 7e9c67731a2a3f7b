package blob_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// BenchmarkComplete fetches and verifies a blob from loopback.
func BenchmarkComplete(b *testing.B) {
	data := make([]byte, 128*mib)
	reg := blobtest.New(b)
	dgst := reg.AddBlob(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		s, err := blob.NewStore(blob.Options{Root: b.TempDir()})
		require.NoError(b, err)
		bl, err := s.Open(dgst, reg.Origin("repo"))
		require.NoError(b, err)
		require.NoError(b, bl.Complete(context.Background(), blob.Background))
		b.StopTimer()
		require.NoError(b, bl.Close())
		require.NoError(b, s.Remove(dgst))
		require.NoError(b, s.Close())
		b.StartTimer()
	}
}

// BenchmarkReadPresent reads bytes that are there.
func BenchmarkReadPresent(b *testing.B) {
	reg := blobtest.New(b)
	dgst := reg.AddBlob(make([]byte, 8*mib))
	s, err := blob.NewStore(blob.Options{Root: b.TempDir()})
	require.NoError(b, err)
	defer s.Close()
	bl, err := s.Open(dgst, reg.Origin("repo"))
	require.NoError(b, err)
	ctx := context.Background()
	require.NoError(b, bl.Complete(ctx, blob.Background))
	p := make([]byte, 50_000)
	b.SetBytes(int64(len(p)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := bl.ReadAt(ctx, blob.Blocked, p, 1234567); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkShapedLink completes a blob over 30 ms, 100 MB/s, 40 MB/s a connection.
func BenchmarkShapedLink(b *testing.B) {
	reg := blobtest.New(b)
	reg.SetLatency(30 * time.Millisecond)
	reg.SetBandwidth(100e6, 40e6)
	dgst := reg.AddBlob(make([]byte, 64*mib))
	b.SetBytes(64 * mib)
	for b.Loop() {
		s, err := blob.NewStore(blob.Options{Root: b.TempDir()})
		require.NoError(b, err)
		bl, err := s.Open(dgst, reg.Origin("repo"))
		require.NoError(b, err)
		require.NoError(b, bl.Complete(context.Background(), blob.Background))
		require.NoError(b, s.Close())
	}
}

package blob_test

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

func TestFaultsCostTimeOnly(t *testing.T) {
	for _, tc := range []struct {
		name  string
		fault blobtest.Fault
	}{
		{"503", blobtest.Fault{Status: 503, Times: 10}},
		{"500", blobtest.Fault{Status: 500, Times: 3}},
		{"501", blobtest.Fault{Status: 501, Times: 5}},
		{"429", blobtest.Fault{Status: 429, Times: 5}},
		{"408", blobtest.Fault{Status: 408, Times: 5}},
		{"hangup", blobtest.Fault{Hangup: true, Times: 5}},
		{"cut at once", blobtest.Fault{Cut: true, Times: 5}},
		{"cut in the body", blobtest.Fault{Cut: true, After: 70 * kib, Times: 5}},
		{"cut near the end", blobtest.Fault{Cut: true, After: 99 * kib, Times: 3}},
		{"stall before the body", blobtest.Fault{Stall: true, Times: 2}},
		{"stall in the body", blobtest.Fault{Stall: true, After: 70 * kib, Times: 2}},
		{"shifted range", blobtest.Fault{ContentRange: "bytes 5-102404/1048576", Times: 3}},
		{"short range", blobtest.Fault{ContentRange: "bytes 1000-1999/1048576", Times: 3}},
		{"nonsense range", blobtest.Fault{ContentRange: "bytes x-y/z", Times: 3}},
		{"wrong size", blobtest.Fault{ContentRange: "bytes 1000-103399/2000000", Times: 3}},
		{"refused once", blobtest.Fault{Status: 403, Times: 1}},
		{"missing once", blobtest.Fault{Status: 404, Times: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, mib)
			r.opts.StallTimeout = 200 * time.Millisecond
			b := r.open()
			r.reads(b, blob.Blocked, 0, 10)
			f := r.reg.Fault(tc.fault)
			r.reads(b, blob.Blocked, 1000, 100*kib)
			require.NotZero(t, f.Hits())
			if !tc.fault.Cut { // what follows a cut may be shorter than the next one
				require.Equal(t, tc.fault.Times, f.Hits())
			}
			require.NotZero(t, r.store.Stats().Errors)
			require.NoError(t, b.Complete(context.Background(), blob.Background))
			r.fileIsRight(b)
		})
	}
}

func TestBrokenBodiesAreContinued(t *testing.T) {
	r := newRig(t, 4*mib)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 10)
	r.reg.Reset()
	r.reg.Fault(blobtest.Fault{Cut: true, After: mib, Times: 3})
	require.NoError(t, b.Fetch(context.Background(), blob.Background, 10, 4*mib))
	require.Less(t, r.reg.Bytes(), int64(4*mib+200*kib), "what came is kept")
	require.Equal(t, 4, r.reg.Requests())
}

func TestLastingRefusals(t *testing.T) {
	for _, tc := range []struct {
		status int
		is     error
	}{
		{404, errdefs.ErrNotFound}, {403, errdefs.ErrPermissionDenied}, {400, errdefs.ErrUnavailable},
	} {
		r := newRig(t, mib)
		f := r.reg.Fault(blobtest.Fault{Status: tc.status})
		b := r.open()
		start := time.Now()
		_, err := b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
		require.ErrorIs(t, err, tc.is)
		require.Less(t, time.Since(start), time.Second, "no use in waiting")
		require.Equal(t, 2, f.Hits())
		// It can come back.
		f.Clear()
		r.reads(b, blob.Blocked, 0, 10)
	}
}

func TestGiveUpAfterADeadline(t *testing.T) {
	r := newRig(t, mib)
	r.opts.GiveUp = 300 * time.Millisecond
	r.opts.StallTimeout = 100 * time.Millisecond
	r.reg.Fault(blobtest.Fault{Stall: true})
	b := r.open()
	start := time.Now()
	_, err := b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
	require.ErrorContains(t, err, "no data within 100ms")
	require.Less(t, time.Since(start), 2*time.Second)
	eventually(t, "no flight is left", func() bool { return blob.Flights(b) == 0 })
}

func TestSlowIsNotGivenUp(t *testing.T) {
	r := newRig(t, mib)
	r.opts.GiveUp = 300 * time.Millisecond
	r.reg.SetBandwidth(512*kib, 0)
	b := r.open()
	r.reads(b, blob.Blocked, 0, mib-200*kib) // takes 1.6 s
}

func TestRetryAfterIsHonoured(t *testing.T) {
	r := newRig(t, mib)
	r.opts.RetryAfterMax = 400 * time.Millisecond
	b := r.open()
	f := r.reg.Fault(blobtest.Fault{Status: 429, RetryAfter: "120", Times: 1})
	start := time.Now()
	r.reads(b, blob.Blocked, 0, 10)
	require.GreaterOrEqual(t, time.Since(start), 400*time.Millisecond)
	require.Less(t, time.Since(start), 5*time.Second, "capped")
	require.Equal(t, 1, f.Hits())
	require.Equal(t, 2, r.reg.Requests())
}

// mirrored is an origin with another registry before (or behind) the rig's.
func mirrored(hosts ...docker.RegistryHosts) blob.Origin {
	return blob.Origin{Reference: "registry.example/repo:tag", Hosts: func(context.Context) (out []docker.RegistryHost, _ error) {
		for _, h := range hosts {
			got, err := h("")
			if err != nil {
				return nil, err
			}
			out = append(out, got...)
		}
		return out, nil
	}}
}

func TestMirrors(t *testing.T) {
	for _, tc := range []struct {
		name   string
		mirror func(r *rig, m *blobtest.Registry)
		first  int // requests to the mirror by the first read
		second int // by 5 later ones
	}{
		{"has it", func(r *rig, m *blobtest.Registry) { m.AddBlob(r.data) }, 1, 5},
		{"lacks it", func(r *rig, m *blobtest.Registry) {}, 1, 0},
		{"is broken", func(r *rig, m *blobtest.Registry) { m.Fault(blobtest.Fault{Status: 502}) }, 1, 0},
		{"is away", func(r *rig, m *blobtest.Registry) { m.Stop() }, 0, 0},
		{"hangs", func(r *rig, m *blobtest.Registry) { m.SetLatency(time.Hour) }, 1, 0},
		{"breaks off", func(r *rig, m *blobtest.Registry) {
			m.AddBlob(r.data)
			m.Fault(blobtest.Fault{Cut: true, After: 100})
		}, 1, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, mib)
			r.opts.HeaderTimeout = 300 * time.Millisecond
			m := blobtest.New(t)
			tc.mirror(r, m)
			s, err := blob.NewStore(r.opts)
			require.NoError(t, err)
			defer s.Close()
			b, err := s.Open(r.dgst, mirrored(m.RegistryHosts(), r.reg.RegistryHosts()))
			require.NoError(t, err)
			r.reads(b, blob.Blocked, 0, 1000)
			require.Equal(t, tc.first, m.Requests())
			for i := range 5 {
				r.reads(b, blob.Blocked, 10_000*(i+1), 1000)
			}
			require.Equal(t, tc.first+tc.second, m.Requests(), "a host that failed is asked last")
			for _, q := range append(m.Log(), r.reg.Log()...) {
				require.Equal(t, "ns=registry.example", q.Query)
				require.Equal(t, "/v2/repo/blobs/"+r.dgst.String(), q.Path)
			}
		})
	}
}

func TestErrorNamesEachHost(t *testing.T) {
	r := newRig(t, mib)
	m := blobtest.New(t)
	r.reg.Fault(blobtest.Fault{Status: 403})
	s, err := blob.NewStore(r.opts)
	require.NoError(t, err)
	defer s.Close()
	b, err := s.Open(r.dgst, mirrored(m.RegistryHosts(), r.reg.RegistryHosts()))
	require.NoError(t, err)
	_, err = b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
	require.ErrorContains(t, err, m.Host()+": status 404")
	require.ErrorContains(t, err, r.reg.Host()+": status 403")
}

func TestOrigins(t *testing.T) {
	r := newRig(t, mib)
	old, next := blobtest.New(t), blobtest.New(t)
	s, err := blob.NewStore(r.opts)
	require.NoError(t, err)
	defer s.Close()
	b, err := s.Open(r.dgst, old.Origin("repo"))
	require.NoError(t, err)
	for range 3 {
		b.AddOrigin(old.Origin("repo"))
	}
	b.AddOrigin(next.Origin("other"))
	b.AddOrigin(blob.Origin{Reference: "no hosts"})
	_, err = b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
	require.ErrorIs(t, err, errdefs.ErrNotFound)
	require.Equal(t, 2, old.Requests(), "once in each round")
	require.Equal(t, 2, next.Requests())
	require.True(t, next.Log()[0].Start.Before(old.Log()[0].Start), "the newest first")
	old.AddBlob(r.data)
	r.reads(b, blob.Blocked, 0, 10)
}

func TestHostThatIgnoresRange(t *testing.T) {
	r := newRig(t, 4*mib)
	r.reg.IgnoreRange(true)
	r.reg.SetBandwidth(16*mib, 0)
	b := r.open()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() { r.reads(b, blob.Blocked, mib/3*(i+1), 50_000) })
	}
	wg.Wait()
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	r.fileIsRight(b)
	served := 0
	for _, q := range r.reg.Blobs() {
		if q.Bytes == 4*mib {
			served++
		}
	}
	require.Equal(t, 1, served, "one stream brings all")
	require.Less(t, r.reg.Bytes(), int64(6*mib), "the other answers are not read")
}

func TestDropBehindAStream(t *testing.T) {
	r := newRig(t, 4*mib)
	r.reg.IgnoreRange(true)
	r.reg.SetBandwidth(8*mib, 0)
	b := r.open()
	r.reads(b, blob.Blocked, mib, 1000)
	require.Equal(t, 1, r.reg.Requests())
	b.Drop(mib, 1000)
	r.reads(b, blob.Blocked, mib, 1000)
	require.Equal(t, 2, r.reg.Requests(), "asked for again when the stream has ended")
}

func TestStreamThatBreaksOff(t *testing.T) {
	r := newRig(t, 2*mib)
	r.reg.IgnoreRange(true)
	r.reg.Fault(blobtest.Fault{Cut: true, After: mib, Times: 2})
	b := r.open()
	r.reads(b, blob.Blocked, 1900*kib, 1000)
	r.reads(b, blob.Blocked, 0, 2*mib)
	require.NoError(t, b.Complete(context.Background(), blob.Background))
	r.fileIsRight(b)
}

func TestRedirects(t *testing.T) {
	r := newRig(t, mib)
	r.reg.RequireBasic("user", "secret")
	r.reg.Redirect(time.Minute)
	b := r.open()
	for i := range 10 {
		r.reads(b, blob.Blocked, 10_000*i, 1000)
	}
	var registry, target int
	for _, q := range r.reg.Log() {
		if !q.Target {
			registry++
			continue
		}
		target++
		require.Empty(t, q.Authorization, "credentials stay with the registry")
	}
	require.Equal(t, 2, registry, "refused, redirected, and never asked again")
	require.Equal(t, 10, target)
}

func TestExpiredRedirects(t *testing.T) {
	r := newRig(t, mib)
	r.reg.Redirect(150 * time.Millisecond)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1000)
	time.Sleep(200 * time.Millisecond) // the time is what is tested
	r.reads(b, blob.Blocked, 10_000, 1000)
	require.Zero(t, r.store.Stats().Errors, "renewed in passing")
}

func TestRedirectHidesItsSecret(t *testing.T) {
	r := newRig(t, mib)
	r.opts.GiveUp = 300 * time.Millisecond
	r.reg.Redirect(time.Minute)
	r.reg.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Target }, Hangup: true})
	b := r.open()
	_, err := b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
	require.Error(t, err)
	require.NotContains(t, err.Error(), "expires=")
	require.Contains(t, err.Error(), r.reg.TargetHost())
}

func TestTokens(t *testing.T) {
	r := newRig(t, mib)
	r.reg.RequireToken("user", "secret", time.Hour)
	b := r.open()
	for i := range 5 {
		r.reads(b, blob.Blocked, 10_000*i, 1000)
	}
	require.Equal(t, 1, r.reg.TokensIssued())
	for _, q := range r.reg.Log() {
		if strings.HasPrefix(q.Authorization, "Bearer ") {
			require.Equal(t, "/v2/repo/blobs/"+r.dgst.String(), q.Path)
		}
	}
}

func TestNoCredentials(t *testing.T) {
	r := newRig(t, mib)
	r.reg.RequireToken("user", "secret", time.Hour)
	s, err := blob.NewStore(r.opts)
	require.NoError(t, err)
	defer s.Close()
	b, err := s.Open(r.dgst, mirrored(r.reg.AnonymousHosts()))
	require.NoError(t, err)
	_, err = b.ReadAt(context.Background(), blob.Blocked, make([]byte, 10), 0)
	require.ErrorIs(t, err, errdefs.ErrUnauthenticated)
	err = b.Check(context.Background())
	require.ErrorIs(t, err, errdefs.ErrUnauthenticated)
	require.NoError(t, b.CheckOrigin(context.Background(), r.reg.Origin("repo")))
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		name   string
		behave func(*blobtest.Registry)
		is     error
	}{
		{"there", func(*blobtest.Registry) {}, nil},
		{"redirected", func(r *blobtest.Registry) { r.Redirect(time.Minute) }, nil},
		{"no HEAD", func(r *blobtest.Registry) {
			r.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return q.Method == http.MethodHead }, Status: 405})
		}, nil},
		{"broken", func(r *blobtest.Registry) {
			r.Fault(blobtest.Fault{Match: func(q blobtest.Request) bool { return true }, Status: 500})
		}, errdefs.ErrUnavailable},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, mib)
			tc.behave(r.reg)
			b := r.open()
			require.ErrorIs(t, b.Check(context.Background()), tc.is)
			if tc.is == nil {
				r.reg.RemoveBlob(r.dgst)
				require.ErrorIs(t, b.Check(context.Background()), errdefs.ErrNotFound)
			}
			require.LessOrEqual(t, r.reg.Bytes(), int64(100))
		})
	}
}

func TestDeadRegistryDoesNotHoldOthersUp(t *testing.T) {
	r := newRig(t, mib)
	dead := blobtest.New(t)
	data := randomBytes(2 * mib)
	dgst := dead.AddBlob(data)
	dead.Fault(blobtest.Fault{Stall: true})
	b := r.open()
	stuck, err := r.store.Open(dgst, dead.Origin("repo"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			_, err := stuck.ReadAt(ctx, blob.Blocked, make([]byte, 1000), int64(30_000*i))
			require.Error(t, err)
		})
	}
	eventually(t, "all are stuck", func() bool { return blob.Waiting(stuck) == 50 })
	start := time.Now()
	for i := range 10 {
		r.reads(b, blob.Blocked, 100_000*i, 1000)
	}
	require.Less(t, time.Since(start), 2*time.Second)
	cancel()
	wg.Wait()
}

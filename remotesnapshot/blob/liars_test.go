package blob_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/remotesnapshot/blob"
	"github.com/lazykit/lazykit/remotesnapshot/blob/blobtest"
)

// openMirrored opens the rig's blob with a mirror before its registry.
func (r *rig) openMirrored(m *blobtest.Registry) *blob.Blob {
	s, err := blob.NewStore(r.opts)
	require.NoError(r, err)
	r.store = s
	b, err := s.Open(r.dgst, mirrored(m.RegistryHosts(), r.reg.RegistryHosts()))
	require.NoError(r, err)
	r.Cleanup(func() { b.Close() })
	return b
}

// liar is a mirror whose blob has one wrong byte.
func (r *rig) liar(at int) *blobtest.Registry {
	m := blobtest.New(r.T)
	wrong := bytes.Clone(r.data)
	wrong[at] ^= 1
	m.AddBlobAs(r.dgst, wrong)
	return m
}

func TestWrongBytesAreFetchedFromAnotherHost(t *testing.T) {
	r := newRig(t, mib)
	m := r.liar(100)
	b := r.openMirrored(m)
	dst := make([]byte, 1000)
	_, err := b.ReadAt(context.Background(), blob.Blocked, dst, 0)
	require.NoError(t, err)
	require.NotEqual(t, r.data[:1000], dst, "the mirror lies")
	require.Equal(t, []string{m.Host()}, b.Drop(0, 1000))
	r.reads(b, blob.Blocked, 0, 1000)
	asked := m.Requests()
	r.reads(b, blob.Blocked, 500_000, 1000)
	require.Equal(t, asked, m.Requests(), "who lied is asked behind the others")
	r.reg.Stop()
	r.reads(b, blob.Blocked, 700_000, 1000) // and in need
}

func TestWholeBlobDespiteALiar(t *testing.T) {
	for _, first := range []int64{0, mib / 2} { // from here on it is the liar's
		r := newRig(t, mib)
		r.opts.RequestSize = 256 * kib
		m := r.liar(mib - 100)
		b := r.openMirrored(m)
		if first > 0 {
			hold := m.Fault(blobtest.Fault{Status: 503})
			r.reads(b, blob.Blocked, 0, int(first))
			hold.Clear()
		}
		require.NoError(t, b.Complete(context.Background(), blob.Background))
		r.fileIsRight(b)
	}
}

func TestByteNowAndThenIsNoProgress(t *testing.T) {
	r := newRig(t, mib)
	r.opts.StallTimeout = 200 * time.Millisecond
	m := blobtest.New(t)
	m.AddBlob(r.data)
	m.SetBandwidth(0, 100) // bytes per second
	b := r.openMirrored(m)
	start := time.Now()
	r.reads(b, blob.Blocked, 0, 100_000)
	require.Less(t, time.Since(start), 5*time.Second, "the other host has it")
}

func TestServerThatIsSlowToBegin(t *testing.T) {
	r := newRig(t, mib)
	r.opts.HeaderTimeout = 50 * time.Millisecond
	r.reg.SetLatency(300 * time.Millisecond)
	b := r.open()
	r.reads(b, blob.Blocked, 0, 1000)
}

// waits notes the reasons why requests to a host have ended.
type waits struct {
	mu   sync.Mutex
	list []string
}

func (w *waits) of(host string) func(blob.Request) {
	return func(q blob.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if q.Host == host && q.Err != nil {
			w.list = append(w.list, q.Err.Error())
		}
	}
}

func (w *waits) get() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.list)
}

func TestOthersAreAskedSoon(t *testing.T) {
	early := "no response header within 200ms"
	t.Run("a mirror hangs", func(t *testing.T) {
		r, w, m := newRig(t, mib), &waits{}, blobtest.New(t)
		m.SetLatency(time.Hour)
		r.opts.HeaderTimeout, r.opts.OnRequest = time.Second, w.of(m.Host())
		b := r.openMirrored(m)
		r.reads(b, blob.Blocked, 0, 1000)
		require.Equal(t, []string{early}, w.get())
	})
	t.Run("nobody else has not failed", func(t *testing.T) {
		r, w, m := newRig(t, mib), &waits{}, blobtest.New(t)
		m.AddBlob(r.data)
		r.reg.Fault(blobtest.Fault{Status: 502})
		hold := m.Fault(blobtest.Fault{Status: 503})
		note := w.of(m.Host())
		r.opts.HeaderTimeout = 2 * time.Second
		r.opts.OnRequest = func(q blob.Request) {
			note(q)
			if q.Status == 502 { // both have failed now
				m.SetLatency(600 * time.Millisecond)
				hold.Clear()
			}
		}
		b := r.openMirrored(m)
		r.reads(b, blob.Blocked, 0, 1000)
		require.Equal(t, []string{"status 503 Service Unavailable: a fault"}, w.get(), "it is waited for as long as it takes")
	})
	t.Run("another image brings another host", func(t *testing.T) {
		r, w, m := newRig(t, mib), &waits{}, blobtest.New(t)
		m.SetLatency(time.Hour)
		r.opts.HeaderTimeout, r.opts.GiveUp, r.opts.OnRequest = 10*time.Second, time.Minute, w.of(m.Host())
		s, err := blob.NewStore(r.opts)
		require.NoError(t, err)
		r.store = s
		b, err := s.Open(r.dgst, m.Origin("repo:tag"))
		require.NoError(t, err)
		defer b.Close()
		done := make(chan struct{})
		go func() {
			defer close(done)
			r.reads(b, blob.Blocked, 0, 1000)
		}()
		eventually(t, "a request", func() bool { return m.Requests() > 0 })
		other, err := s.Open(r.dgst, r.reg.Origin("repo:tag"))
		require.NoError(t, err)
		defer other.Close()
		<-done
		require.Equal(t, []string{"no response header within 2s"}, w.get())
	})
}

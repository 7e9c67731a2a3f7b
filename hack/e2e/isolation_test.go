package e2e

import (
	"context"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/fault"
)

// freezer is a way to a server that can be frozen: connections stay open and
// are accepted, and not a byte passes any more, as with a machine that hangs.
type freezer struct {
	Addr   string
	frozen chan struct{}
	once   sync.Once
}

func newFreezer(t *testing.T, target string) *freezer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	f := &freezer{Addr: l.Addr().String(), frozen: make(chan struct{})}
	var conns sync.Map
	var wg sync.WaitGroup
	t.Cleanup(func() {
		l.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	wg.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			conns.Store(in, nil)
			out, err := net.Dial("tcp", target)
			if err != nil {
				in.Close()
				continue
			}
			conns.Store(out, nil)
			for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
				wg.Go(func() {
					io.Copy(gate{way[0], f.frozen}, way[1])
					if f.open() {
						in.Close()
						out.Close()
					}
				})
			}
		}
	})
	return f
}

func (f *freezer) Freeze() { f.once.Do(func() { close(f.frozen) }) }

func (f *freezer) open() bool {
	select {
	case <-f.frozen:
		return false
	default:
		return true
	}
}

// gate swallows what is written once it is shut.
type gate struct {
	io.Writer
	shut <-chan struct{}
}

func (g gate) Write(p []byte) (int, error) {
	select {
	case <-g.shut:
		return len(p), nil
	default:
		return g.Writer.Write(p)
	}
}

// watcher closes seen when a text appears in a build's progress.
type watcher struct {
	text string
	seen chan struct{}
	once sync.Once
}

func watchFor(text string) *watcher { return &watcher{text: text, seen: make(chan struct{})} }

func (w *watcher) Write(p []byte) (int, error) {
	for line := range strings.Lines(string(p)) {
		// The step's own command line has the text too.
		if strings.HasSuffix(strings.TrimSpace(line), " "+w.text) && !strings.Contains(line, "echo") {
			w.once.Do(func() { close(w.seen) })
		}
	}
	return len(p), nil
}

func (w *watcher) wait(t *testing.T, failed <-chan error) {
	t.Helper()
	select {
	case <-w.seen:
	case err := <-failed:
		t.Fatalf("the build ended before %q: %v", w.text, err)
	case <-time.After(90 * time.Second):
		t.Fatalf("no %q in a minute and a half", w.text)
	}
}

// A registry hangs while 60 processes of a step read from it. Another build, on
// an image of another registry, does not notice; and the daemon stops in time.
func TestDeadRegistryHoldsUpNobodyElse(t *testing.T) {
	privileged(t)
	ctx := testContext(t)
	good, bad := registry(t), registry(t)
	base := onLink(t, good, image(t, lab.EStargz))
	way := newFreezer(t, bad.Link)
	maker := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{good.Link, way.Addr}})
	pushRandom(t, maker, base, way.Addr+"/readers:1", 60)

	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{good.Link, way.Addr}})
	quick := func() time.Duration {
		text := "FROM " + base + "\nRUN cat /etc/os-release /etc/passwd && python3 -c 'import json'\n"
		return build(t, d, lab.BuildOptions{NoCache: true, Dockerfile: text}).Wall
	}
	quick()
	alone := quick()

	blocked, cancel := context.WithCancel(ctx)
	defer cancel()
	ready, reading := watchFor("shell-is-up"), watchFor("readers-started")
	ended := make(chan error, 1)
	go func() {
		_, err := lab.Build(blocked, d.Addr, lab.BuildOptions{
			Progress: io.MultiWriter(ready, reading),
			Dockerfile: "FROM " + way.Addr + `/readers:1
RUN cat /bin/cat > /dev/null; sleep 0; echo shell-is-up; sleep 5; for f in /data/*; do cat $f > /dev/null & done; echo readers-started; wait
`})
		ended <- err
	}()
	ready.wait(t, ended)
	way.Freeze()
	reading.wait(t, ended)

	beside := quick()
	t.Logf("a build alone: %v; beside 60 blocked readers: %v", alone, beside)
	require.Less(t, beside, 2*alone+2*time.Second)

	start := time.Now()
	require.NoError(t, d.Stop(), "it ends well and leaves no mount")
	require.Less(t, time.Since(start), 10*time.Second)
	cancel()
	require.Error(t, <-ended, "the build on the dead registry can't have succeeded")
}

// Two registries have images on the same base. A build waits for the one that hangs;
// another build, of the other one, does not wait with it, though it wants the same
// layers. (Of the very same image it would: BuildKit's solver makes one step of both.)
func TestSameLayersOfADeadRegistry(t *testing.T) {
	privileged(t)
	for _, f := range []lab.Format{lab.EStargz, lab.Gzip} {
		t.Run(string(f), func(t *testing.T) {
			r, img := registry(t), image(t, f)
			_, err := lab.Push(testContext(t), r.Direct, img)
			require.NoError(t, err)
			opts := fault.Options{Upstream: r.Direct, Seed: 1, Configs: []string{img.Config.Digest.String()}}
			good, err := fault.New(opts)
			require.NoError(t, err)
			t.Cleanup(good.Close)
			bad, err := fault.New(opts)
			require.NoError(t, err)
			t.Cleanup(bad.Close)
			maker := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Direct}})
			build(t, maker, lab.BuildOptions{
				Dockerfile: "FROM " + r.Direct + "/" + img.Tag() + "\nRUN echo more > /more\n",
				Exports:    []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{"name": r.Direct + "/child:1", "push": "true"}}},
			})

			d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{good.Addr, bad.Addr}})
			bad.Set(fault.Fault{On: []fault.Kind{fault.Data, fault.TOC}, Hang: true})
			from := func(ref string) lab.BuildOptions {
				return lab.BuildOptions{Dockerfile: "FROM " + ref + "\nRUN cat /etc/os-release && python3 -c 'import json'\n"}
			}
			ctx, cancel := context.WithCancel(testContext(t))
			defer cancel()
			ended := make(chan error, 1)
			go func() {
				_, err := lab.Build(ctx, d.Addr, from(bad.Addr+"/"+img.Tag()))
				ended <- err
			}()
			require.Eventually(t, func() bool { return bad.Hits() > 0 }, 30*time.Second, 10*time.Millisecond)
			wall := build(t, d, from(good.Addr+"/child:1")).Wall
			t.Logf("beside the one that hangs: %v", wall)
			require.Less(t, wall, 30*time.Second, "and not the minutes that a read may wait")
			cancel()
			<-ended
		})
	}
}

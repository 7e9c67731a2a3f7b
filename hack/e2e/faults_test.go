package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	bksession "github.com/moby/buildkit/session"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/fault"
)

// front puts a fault proxy between a daemon and a registry that has lab.ReadsImage.
func front(t *testing.T, opts fault.Options) (p *fault.Proxy, ref string, img *lab.Image) {
	t.Helper()
	r := registry(t)
	img, err := lab.ReadsImage(testContext(t), 0)
	require.NoError(t, err)
	_, err = lab.Push(testContext(t), r.Direct, img)
	require.NoError(t, err)
	opts.Upstream, opts.Seed, opts.Tails = r.Direct, 1, map[string]int64{}
	opts.Configs = []string{img.Config.Digest.String()}
	for i, l := range img.Layers {
		toc, ok, err := img.TOC(i)
		require.NoError(t, err)
		require.True(t, ok)
		opts.Tails[l.Digest.String()] = toc.Offset
	}
	p, err = fault.New(opts)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	return p, p.Addr + "/" + img.Tag(), img
}

// reading is a Dockerfile of a step that reads files with hack/lab/cmd/reader.
func reading(ref string, env string, args ...string) string {
	text := "FROM " + ref + "\n"
	if env != "" {
		text += "ENV " + env + "\n"
	}
	return text + `RUN ["/reader", "/out.txt", "` + strings.Join(args, `", "`) + `"]` + "\n"
}

const takeOut = "FROM scratch\nCOPY --from=0 /out.txt /\n"

// answer is what the daemon said of a build that failed, without the progress.
func answer(t *testing.T, err error) string {
	t.Helper()
	var failed *lab.BuildError
	require.ErrorAs(t, err, &failed)
	return failed.Err.Error()
}

// lines builds a Dockerfile that takes out.txt out, and returns its lines.
func lines(t *testing.T, d *lab.Daemon, opts lab.BuildOptions) []string {
	t.Helper()
	opts.OutputDir = t.TempDir()
	build(t, d, opts)
	data, err := os.ReadFile(filepath.Join(opts.OutputDir, "out.txt"))
	require.NoError(t, err)
	return strings.Split(strings.TrimSpace(string(data)), "\n")
}

// When the registry stays away for longer than a read may wait, the step fails, and
// the build's output says why; also the step whose process did not mind. The next
// build finds nothing of that.
func TestStepFailsWithTheCause(t *testing.T) {
	privileged(t)
	p, ref, img := front(t, fault.Options{})
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{p.Addr},
		Config: "[worker.oci.stargzSnapshotter.blob]\n  fetching_timeout_sec = 2\n"})
	for i, mode := range []string{"all", "careless"} {
		dir := []string{"/a", "/b"}[i] // of which nothing is here yet
		t.Run(mode, func(t *testing.T) {
			p.Set(fault.Fault{Skip: 3, Status: 503})
			text := reading(ref, "", mode, dir)
			start := time.Now()
			_, err := lab.Build(testContext(t), d.Addr, lab.BuildOptions{Dockerfile: text})
			require.Error(t, err)
			said := answer(t, err)
			t.Logf("after %v: %s", time.Since(start), said)
			require.Less(t, time.Since(start), 30*time.Second, "not a deadline for each file")
			for _, part := range []string{img.Layers[i].Digest.String(), "bytes=", ref, p.Addr, "503"} {
				require.Contains(t, said, part)
			}
			require.Equal(t, 1, strings.Count(said, "503 Service Unavailable"), "one error")

			p.Set()
			got := lines(t, d, lab.BuildOptions{Dockerfile: text + takeOut})
			require.Len(t, got, 52, "every file of the directory")
		})
	}
}

// A build that is cancelled while its step waits for a registry ends at once, and so
// do its requests.
func TestCancelledBuildDoesNotWaitForTheRegistry(t *testing.T) {
	privileged(t)
	p, ref, _ := front(t, fault.Options{})
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{p.Addr}})
	p.Set(fault.Fault{Skip: 3, Hang: true})
	ctx, cancel := context.WithCancel(testContext(t))
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		_, err := lab.Build(ctx, d.Addr, lab.BuildOptions{Dockerfile: reading(ref, "", "all", "/a", "/b")})
		ended <- err
	}()
	require.Eventually(t, func() bool { return p.Hits() > 0 }, 30*time.Second, 10*time.Millisecond)
	cancel()
	start := time.Now()
	select {
	case err := <-ended:
		require.Error(t, err)
		t.Logf("ended %v after it was cancelled", time.Since(start))
	case <-time.After(15 * time.Second):
		t.Fatal("the build has not ended 15 s after it was cancelled")
	}
	p.Set()
	require.Len(t, lines(t, d, lab.BuildOptions{Dockerfile: reading(ref, "", "all", "/a", "/b") + takeOut}), 104)
}

// as builds as the client with a password; "" has none.
func as(t *testing.T, d *lab.Daemon, password string, opts lab.BuildOptions) error {
	if password != "" {
		opts.Attach = []bksession.Attachable{login{password: password}}
	}
	_, err := lab.Build(testContext(t), d.Addr, opts)
	return err
}

func TestSessionsAndTokens(t *testing.T) {
	privileged(t)
	t.Parallel()
	behind := func(t *testing.T, o fault.Options) (*fault.Proxy, string, *lab.Daemon) {
		p, ref, _ := front(t, o)
		return p, ref, daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{p.Addr}})
	}
	start := func(t *testing.T) (*fault.Proxy, string, *lab.Daemon) {
		return behind(t, fault.Options{TokenTTL: time.Second, Password: "secret"})
	}
	long := func(ref, args string) lab.BuildOptions {
		return lab.BuildOptions{Dockerfile: reading(ref, "PAUSE=80ms", strings.Fields(args)...)}
	}

	t.Run("tokens that end while a step runs", func(t *testing.T) {
		p, ref, d := start(t)
		require.NoError(t, as(t, d, "secret", long(ref, "some 2 /a /b"))) // 4 s
		require.Greater(t, p.TokensIssued(), 3)
	})

	t.Run("the same, refused by 403", func(t *testing.T) {
		p, ref, d := behind(t, fault.Options{TokenTTL: time.Second, Password: "secret", Forbid: true})
		require.NoError(t, as(t, d, "secret", long(ref, "some 2 /a /b")))
		require.Greater(t, p.TokensIssued(), 3)
	})

	t.Run("the client that pulled is gone", func(t *testing.T) {
		_, ref, d := start(t)
		first := long(ref, "some 5 /a")
		require.NoError(t, as(t, d, "secret", first))
		time.Sleep(1200 * time.Millisecond) // its tokens with it
		next := first
		next.Dockerfile += `RUN ["/reader", "/out2.txt", "all", "/a", "/b"]` + "\n"
		require.NoError(t, as(t, d, "secret", next))
		other := first
		other.Dockerfile += `RUN ["/reader", "/out3.txt", "all", "/b"]` + "\n"
		require.Error(t, as(t, d, "guess", other))
	})

	t.Run("nobody reads by another's right", func(t *testing.T) {
		p, ref, d := start(t)
		running := make(chan error, 1)
		go func() { running <- as(t, d, "secret", long(ref, "some 2 /a /b")) }()
		p.Set(fault.Fault{Skip: 2, Delay: time.Millisecond, Times: 1}) // its reads have begun
		require.Eventually(t, func() bool { return p.Hits() > 0 }, 30*time.Second, 10*time.Millisecond)
		for _, password := range []string{"guess", ""} {
			err := as(t, d, password, lab.BuildOptions{Dockerfile: reading(ref, "WHO="+fmt.Sprintf("x%s", password), "some", "9", "/b")})
			require.Error(t, err)
			require.NotContains(t, answer(t, err), "DeadlineExceeded")
		}
		require.NoError(t, <-running, "others' errors cost those who may nothing")
	})

	t.Run("rights that are taken away while a step runs", func(t *testing.T) {
		p, ref, d := start(t)
		running := make(chan error, 1)
		p.Set(fault.Fault{Skip: 2, Delay: time.Millisecond, Times: 1})
		go func() { running <- as(t, d, "secret", long(ref, "some 2 /a /b")) }()
		require.Eventually(t, func() bool { return p.Hits() > 0 }, 30*time.Second, 10*time.Millisecond)
		p.Revoke()
		select {
		case err := <-running:
			require.Error(t, err)
			said := answer(t, err)
			t.Log(said)
			for _, part := range []string{"sha256:", "bytes=", p.Addr, "401"} {
				require.Contains(t, said, part)
			}
			require.False(t, errors.Is(err, context.DeadlineExceeded))
		case <-time.After(time.Minute):
			t.Fatal("the step still runs a minute after its rights were taken away")
		}
	})
}

// So does a copy, whose hash is the first to read the base.
func TestCopyFailsWithTheCause(t *testing.T) {
	privileged(t)
	for name, f := range map[string]fault.Fault{
		"once it may read":           {Skip: 1, Status: 503},
		"before the TOC can be read": {On: []fault.Kind{fault.Data, fault.TOC}, Skip: 2, Status: 503},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, ref, img := front(t, fault.Options{})
			d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{p.Addr},
				Config: "[worker.oci.stargzSnapshotter]\n  resolve_timeout_sec = 2\n" +
					"[worker.oci.stargzSnapshotter.blob]\n  fetching_timeout_sec = 2\n"})
			p.Set(f)
			_, err := lab.Build(testContext(t), d.Addr, lab.BuildOptions{Dockerfile: "FROM scratch\nCOPY --from=" + ref + " /a /a\n"})
			require.Error(t, err)
			said := answer(t, err)
			t.Log(said)
			named := slices.ContainsFunc(img.Layers, func(l ocispecs.Descriptor) bool {
				return strings.Contains(said, l.Digest.String())
			})
			require.True(t, named, "a layer")
			// The rights are asked for meanwhile, and what fails first is said.
			require.Regexp(t, "bytes=|check blob", said)
			for _, part := range []string{p.Addr, "503"} {
				require.Contains(t, said, part)
			}
			p.Set()
			out := t.TempDir()
			build(t, d, lab.BuildOptions{Dockerfile: "FROM scratch\nCOPY --from=" + ref + " /a /a\n", OutputDir: out})
			names, err := os.ReadDir(filepath.Join(out, "a"))
			require.NoError(t, err)
			require.Len(t, names, 52)
		})
	}
}

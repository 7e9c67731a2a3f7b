package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// script is a program that does something before it becomes ours, with its arguments.
func script(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "buildkitd")
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\nset -e\nexport DAEMON="+ours(t)+"\n"+text), 0o755))
	return path
}

// Where FUSE does not work, an explicit choice of stargz and "auto" pull layers whole,
// and both say why: the log, the build's progress and the usage report.
func TestWithoutFUSEPullsWhole(t *testing.T) {
	privileged(t)
	t.Parallel()
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	for name, c := range map[string]struct{ snapshotter, hide, why string }{
		"no device": {"stargz", `
d=$(mktemp -d)
mount -t tmpfs dev "$d"
for n in null zero full random urandom tty; do touch "$d/$n"; mount --bind /dev/$n "$d/$n"; done
mkdir "$d/pts" "$d/shm" "$d/mqueue"
ln -s /proc/self/fd "$d/fd"
mount --rbind "$d" /dev
`, "open /dev/fuse: no such file or directory"},
		"a device that is something else": {"auto", "mount --bind /dev/null /dev/fuse\n", "invalid argument"},
	} {
		t.Run(name, func(t *testing.T) {
			inner := filepath.Join(t.TempDir(), "inner")
			require.NoError(t, os.WriteFile(inner, []byte("set -e\n"+c.hide+"exec \"$DAEMON\" \"$@\"\n"), 0o755))
			d := daemon(t, lab.DaemonOptions{
				Program:     script(t, "exec unshare --mount --propagation private sh "+inner+" \"$@\"\n"),
				Snapshotter: c.snapshotter, Registries: []string{r.Link},
			})
			res := build(t, d, lab.BuildOptions{Dockerfile: dockerfile(helloDockerfile, base)})
			require.Contains(t, res.Logs, "not lazy: FUSE does not work here: ")
			require.Contains(t, res.Logs, c.why)
			log, err := os.ReadFile(d.Log)
			require.NoError(t, err)
			require.Contains(t, string(log), c.why)
			require.Contains(t, string(log), "overlayfs")
			_, list := reported(t, d)
			notes := 0
			for _, u := range list {
				if strings.Contains(u.Description, "(not lazy: FUSE does not work here: ") {
					notes++
				}
			}
			require.Equal(t, 2, notes, "one for each layer")
		})
	}
}

// Above max_lazy_bytes what no step needs is evicted, and fetched again by the next
// one.
func TestLimitOnLazyBytes(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	const limit = 2 << 20
	d := daemon(t, lab.DaemonOptions{
		Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link},
		Config: fmt.Sprintf("[worker.oci.stargzSnapshotter]\n  max_lazy_bytes = %d\n", limit),
	})
	held := func() int64 {
		n, err := lab.DiskUsage(filepath.Join(d.Root, "runc-stargz", "lazy", "blobs"), nil)
		require.NoError(t, err)
		return n
	}
	text := dockerfile(helloDockerfile, base)
	out := t.TempDir()
	for i, pause := range []int{6, 0} { // longer than it takes the daemon to look
		var most int64
		step := fmt.Sprintf("RUN python3 -c 'import json, email, http.client' && sleep %d && sha256sum /usr/bin/python3* > /sum && echo %d\n", pause, i)
		done := make(chan struct{})
		go func() {
			defer close(done)
			build(t, d, lab.BuildOptions{Dockerfile: text + step + "FROM scratch\nCOPY --from=0 /out.txt /sum /\n", OutputDir: out, NoCache: true})
		}()
		for running := true; running; {
			select {
			case <-done:
				running = false
			case <-time.After(100 * time.Millisecond):
				most = max(most, held())
			}
		}
		if pause > 0 {
			require.Greater(t, most, int64(limit), "what a running step needs stays, though it is above the limit")
		}
		require.Eventually(t, func() bool { return held() <= limit }, 15*time.Second, 100*time.Millisecond, "nothing is needed any more")
		got, err := os.ReadFile(filepath.Join(out, "out.txt"))
		require.NoError(t, err)
		require.Equal(t, "{\"python\": 3}\n", string(got))
	}
}

// A daemon of an ordinary user, in a user namespace that rootlesskit makes, mounts
// layers lazily by the same means.
func TestRootless(t *testing.T) {
	privileged(t)
	require.NoError(t, lab.Install(testContext(t), "rootlesskit", "uidmap"))
	r := registry(t)
	img := image(t, lab.EStargz)
	base := onLink(t, r, img)
	// What the user needs, where the user can reach it: t.TempDir is below a directory
	// of root's own.
	home, err := os.MkdirTemp("", "rootless-")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(home)) })
	require.NoError(t, os.Chmod(home, 0o755))
	root := filepath.Join(home, "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	const inner = `set -e
# A user and its ranges, and a device as udev makes it, in this mount namespace only.
mkdir "$H/etc" "$H/run"
mount -t tmpfs tmpfs "$H/etc"
mkdir "$H/etc/upper" "$H/etc/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$H/etc/upper,workdir=$H/etc/work" overlay /etc
echo "lazykit:x:64001:64001::$H:/bin/sh" >> /etc/passwd
echo "lazykit:x:64001:" >> /etc/group
echo "lazykit:200000:65536" | tee -a /etc/subuid >> /etc/subgid
mknod "$H/etc/fuse" c 10 229
chmod 666 "$H/etc/fuse"
mount --bind "$H/etc/fuse" /dev/fuse
cp "$DAEMON" "$H/buildkitd"
chown 64001:64001 "$H" "$H/run" "$H/root"
chown -R 64001:64001 "$(dirname "$2")" # configuration and socket
export HOME="$H" XDG_RUNTIME_DIR="$H/run"
exec setpriv --reuid 64001 --regid 64001 --clear-groups rootlesskit --net=host --copy-up=/etc --copy-up=/run \
	--state-dir="$H/run/kit" "$H/buildkitd" "$@" --oci-worker-no-process-sandbox
`
	inside := filepath.Join(home, "inner")
	require.NoError(t, os.WriteFile(inside, []byte(inner), 0o755))
	d := daemon(t, lab.DaemonOptions{
		Program: script(t, "export H="+home+"\nexec unshare --mount --propagation private sh "+inside+" \"$@\"\n"),
		Root:    root, Snapshotter: "stargz", Registries: []string{r.Link},
	})
	reset(t, r)
	out := t.TempDir()
	res := build(t, d, lab.BuildOptions{
		Dockerfile: dockerfile(helloDockerfile, base) + "FROM scratch\nCOPY --from=0 /out.txt /\n", OutputDir: out,
	})
	got, err := os.ReadFile(filepath.Join(out, "out.txt"))
	require.NoError(t, err)
	require.Equal(t, "{\"python\": 3}\n", string(got))
	s := stats(t, r)
	t.Logf("%d layer requests, %.1f %% of the image", s.LayerGets, share(s.LayerBytes, img))
	require.Less(t, share(s.LayerBytes, img), 50.0, "the base is lazy:\n%s", res.Logs)
	pruneAll(t, d)
}

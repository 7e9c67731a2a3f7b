package buildx

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// imageBase is what the image of the daemon is built on: Debian with the
// packages that hack/image/Dockerfile wants, so that the build needs no network.
var imageBase = lab.Base{Name: "buildkitd", Packages: []string{
	"ca-certificates", "containernetworking-plugins", "fuse3", "git", "iptables",
	"openssh-client", "openssl", "pigz", "runc", "xz-utils",
}}

// imageTag is what the image is called in the engine.
const imageTag = "lazykit.test/buildkitd:e2e"

// TestContainerDriver goes all the way of a user of docker buildx: the image is
// built by our own daemon with "buildx bake", loaded into a Docker engine, run by
// the docker-container driver, and builds lazily.
func TestContainerDriver(t *testing.T) {
	f := setup(t)
	tarball := bakeImage(t, f)
	e := startEngine(t)
	loaded := e.docker(t, "load", "--input", tarball)
	if !strings.Contains(loaded, imageTag) {
		t.Fatalf("docker load says %q, want it to name %s", loaded, imageTag)
	}
	checkImage(t, e)

	c := containerClient(t, f, e)
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *client, *engine)
	}{
		{"daemon", testContainerDaemon},
		{"lazy base", testContainerLazyBase},
		{"load", testContainerLoad},
		{"push", func(t *testing.T, c *client, _ *engine) { testPush(t, c) }},
		{"restart", testContainerRestart},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, c, e) })
	}
}

// bakeImage builds the target image-local of docker-bake.hcl on a lazy base and
// returns the docker tar.
func bakeImage(t *testing.T, f *fixture) string {
	t.Helper()
	base, err := lab.MakeImage(context.Background(), imageBase, lab.EStargz)
	must(t, err)
	_, err = lab.Push(t.Context(), f.bases.Direct, base)
	must(t, err)
	root, err := lab.RepoRoot()
	must(t, err)

	binaries := t.TempDir()
	for name, from := range map[string]string{"buildkitd": f.programs.Buildkitd, "buildctl": f.programs.Buildctl, "lazyctl": f.programs.Lazyctl} {
		data, err := os.ReadFile(from)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(binaries, name), data, 0o755))
	}
	tarball := filepath.Join(t.TempDir(), "image.tar")
	c := remoteClient(t, f, startDaemon(t, f))
	c.bakeIn(t, root,
		[]string{"TAG=" + imageTag, "BASE_IMAGE=" + f.bases.Link + "/" + base.Tag(), "BINARIES=" + binaries},
		"--allow", "fs.read="+binaries, "--allow", "fs.write="+filepath.Dir(tarball),
		"--set", "image-local.output=type=docker,dest="+tarball, "image-local")
	return tarball
}

// checkImage checks what a user of moby/buildkit's image relies on.
func checkImage(t *testing.T, e *engine) {
	t.Helper()
	got := e.docker(t, "image", "inspect", "--format",
		"{{json .Config.Entrypoint}} {{json .Config.Volumes}}", imageTag)
	wantText(t, "entry point and volumes", strings.TrimSpace(got), `["/usr/bin/buildkitd"] {"/var/lib/buildkit":{}}`)
	programs := "buildctl lazyctl buildkit-runc buildkit-cni-bridge git ssh pigz fusermount3 iptables buildctl-daemonless.sh"
	e.docker(t, "run", "--rm", "--network", "none", "--entrypoint", "sh", imageTag, "-ec",
		"for p in "+programs+"; do command -v $p || { echo $p is missing; exit 1; }; done")
}

// containerClient is buildx with a builder in a container of our image.
func containerClient(t *testing.T, f *fixture, e *engine) *client {
	t.Helper()
	c := newClient(t, f, "DOCKER_HOST="+e.host)
	c.builder = "lazykit-container"
	config := filepath.Join(t.TempDir(), "buildkitd.toml")
	must(t, os.WriteFile(config, []byte("[worker.oci.labels]\n  \"test.lazykit/from-config\" = \"yes\"\n"), 0o644))
	c.run(t, "create", "--name", c.builder, "--driver", "docker-container",
		"--driver-opt", "image="+imageTag, "--driver-opt", "network=host",
		"--buildkitd-config", config,
		"--buildkitd-flags", "--debug --oci-worker-snapshotter="+f.snapshotter)
	t.Cleanup(func() {
		if t.Failed() {
			logs, _ := e.try("logs", "--tail", "60", c.container())
			t.Logf("the end of buildkitd's log in the container:\n%s", logs)
		}
		c.run(t, "rm", c.builder)
		wantText(t, "containers and volumes after buildx rm",
			e.docker(t, "ps", "--all", "--quiet")+e.docker(t, "volume", "ls", "--quiet"), "")
	})
	c.run(t, "inspect", "--bootstrap", c.builder)
	return c
}

// container is how the driver names the builder's container.
func (c *client) container() string { return "buildx_buildkit_" + c.builder + "0" }

// testContainerDaemon checks that the daemon in the container got its flags and
// its configuration.
func testContainerDaemon(t *testing.T, c *client, e *engine) {
	out := c.run(t, "inspect", c.builder)
	for _, want := range []string{"Status:", "running", "test.lazykit/from-config", "org.mobyproject.buildkit.worker.snapshotter", c.fixture.snapshotter} {
		if !strings.Contains(out, want) {
			t.Errorf("buildx inspect does not show %q:\n%s", want, out)
		}
	}
	wantText(t, "version in the container", e.docker(t, "exec", c.container(), "buildkitd", "--version"),
		version(t, c.fixture.programs.Buildkitd))
}

// testContainerLazyBase is testLazyBase, and asks the container's kernel too.
func testContainerLazyBase(t *testing.T, c *client, e *engine) {
	testLazyBase(t, c)
	if !c.fixture.lazy() {
		return
	}
	mounts := e.docker(t, "exec", c.container(), "cat", "/proc/self/mounts")
	if !strings.Contains(mounts, " fuse") {
		t.Errorf("no FUSE mount in the container:\n%s", mounts)
	}
}

// testContainerLoad has the result loaded into the engine, and runs it there.
func testContainerLoad(t *testing.T, c *client, e *engine) {
	const tag = "lazykit.test/loaded:1"
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM " + c.fixture.baseRef() + "\nRUN " + answer + " >/answer\nCMD [\"python3\", \"-c\", \"print(open('/answer').read(), end='')\"]\n",
	})
	c.build(t, dir, "--load", "--tag", tag)
	wantText(t, "output of the loaded image", e.docker(t, "run", "--rm", "--network", "none", tag), answerText)
	e.docker(t, "image", "rm", tag)
}

// testContainerRestart builds a new step on the same base after the container
// was stopped and started.
func testContainerRestart(t *testing.T, c *client, e *engine) {
	if os.Getenv("LAZYKIT_BUILDKITD") != "" && c.fixture.lazy() {
		t.Skip("stock can't build on a lazy layer after a restart: its mount is gone")
	}
	start := time.Now()
	e.docker(t, "stop", "--time", "30", c.container())
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("the container took %s to stop", took)
	}
	dir := contextDir(t, map[string]string{"Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\n" +
		"RUN echo after the restart && " + answer + " >/answer\nFROM scratch\nCOPY --from=build /answer /\n"})
	out := t.TempDir()
	c.build(t, dir, "--output", "type=local,dest="+out) // the driver starts the container again
	wantText(t, "answer after a restart", readFile(t, out, "answer"), answerText)
}

// version is what a daemon says of itself.
func version(t *testing.T, daemon string) string {
	t.Helper()
	out, err := runOutput(daemon, "--version")
	if err != nil {
		t.Fatal(fmt.Errorf("%s --version: %w", daemon, err))
	}
	return out
}

package buildx

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// client is buildx with a configuration of its own and one builder.
type client struct {
	fixture *fixture
	builder string
	env     []string
}

// newClient is buildx without a builder yet. It sees nothing of the person's own
// configuration and credentials.
func newClient(t *testing.T, f *fixture, env ...string) *client {
	t.Helper()
	home := t.TempDir()
	return &client{fixture: f, env: append([]string{
		"PATH=" + os.Getenv("PATH"),
		"HOME=" + home,
		"DOCKER_CONFIG=" + filepath.Join(home, "docker"),
		"BUILDX_CONFIG=" + filepath.Join(home, "buildx"),
		"BUILDX_METADATA_PROVENANCE=disabled",
		"BUILDX_NO_DEFAULT_ATTESTATIONS=1", // a plain manifest, easier to read back
	}, env...)}
}

// remoteClient is buildx with the remote driver.
func remoteClient(t *testing.T, f *fixture, d *daemon) *client {
	t.Helper()
	c := newClient(t, f)
	c.builder = "lazykit-remote"
	c.run(t, "create", "--name", c.builder, "--driver", "remote", d.addr)
	return c
}

// run runs one buildx command, fails the test if it fails, and returns its
// standard output and standard error.
func (c *client) run(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.try(args...)
	if err != nil {
		t.Fatalf("buildx %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// try is run for commands that may fail.
func (c *client) try(args ...string) (string, error) {
	cmd := exec.Command(c.fixture.buildx, args...)
	cmd.Env = c.env
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// build runs "buildx build" on a context directory.
func (c *client) build(t *testing.T, dir string, args ...string) string {
	t.Helper()
	args = append([]string{"build", "--builder", c.builder, "--progress", "plain"}, args...)
	return c.run(t, append(args, dir)...)
}

// contextDir is a build context made of files, by name.
func contextDir(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(text), 0o644))
	}
	return dir
}

// readFile is the text of a file in an output directory.
func readFile(t *testing.T, elems ...string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(elems...))
	must(t, err)
	return string(data)
}

func wantText(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

// bakeIn runs "buildx bake" in a directory, with variables for the bake file.
func (c *client) bakeIn(t *testing.T, dir string, vars []string, args ...string) {
	t.Helper()
	args = append([]string{"bake", "--builder", c.builder, "--progress", "plain"}, args...)
	cmd := exec.Command(c.fixture.buildx, args...)
	cmd.Dir = dir
	cmd.Env = append(append([]string{}, c.env...), vars...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("buildx %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// runOutput runs a program and returns its standard output.
func runOutput(name string, args ...string) (string, error) {
	out, err := exec.Command(name, args...).Output()
	return string(out), err
}

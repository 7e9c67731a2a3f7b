package buildx

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/lazykit/lazykit/hack/lab"
)

// fixture is what all tests share: programs, base images and registries.
type fixture struct {
	buildx      string       // the client
	programs    lab.Programs // the daemon under test, and buildctl
	snapshotter string
	base        *lab.Image    // Debian with python3 and gcc, in eStargz
	bases       *lab.Registry // holds base images; what is asked of its link is counted
	outputs     *lab.Registry // takes what tests push; empty at the start
}

// buildxVersion is the release that hack/buildx-test builds.
const buildxVersion = "v0.37.0"

var shared struct {
	once     sync.Once
	fixture  *fixture
	err      error
	teardown []func()
}

func TestMain(m *testing.M) {
	code := m.Run()
	for i := len(shared.teardown) - 1; i >= 0; i-- {
		shared.teardown[i]()
	}
	os.Exit(code)
}

// errMissing is a requirement that this machine does not meet.
var errMissing = errors.New("missing")

// setup returns the shared fixture, made by the first test that asks for it. A
// test is skipped where a requirement is missing, and fails where
// LAZYKIT_PRIVILEGED=1 says that none may be.
func setup(t *testing.T) *fixture {
	t.Helper()
	shared.once.Do(func() {
		shared.fixture, shared.err = makeFixture(context.Background())
	})
	if errors.Is(shared.err, errMissing) && os.Getenv("LAZYKIT_PRIVILEGED") != "1" {
		t.Skip(shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.fixture
}

func makeFixture(ctx context.Context) (*fixture, error) {
	if os.Geteuid() != 0 {
		return nil, fmt.Errorf("%w: root, to mount file systems and run containers", errMissing)
	}
	cache, err := lab.CacheDir()
	if err != nil {
		return nil, err
	}
	f := &fixture{
		buildx:      filepath.Join(cache, "buildx", buildxVersion, "buildx"),
		snapshotter: "stargz",
	}
	if _, err := os.Stat(f.buildx); err != nil {
		return nil, fmt.Errorf("%w: buildx (run hack/buildx-test): %w", errMissing, err)
	}
	for _, name := range []string{"runc", "git", "dockerd", "docker"} {
		if _, err := exec.LookPath(name); err != nil {
			return nil, fmt.Errorf("%w (run hack/buildx-test): %w", errMissing, err)
		}
	}
	if s := os.Getenv("LAZYKIT_SNAPSHOTTER"); s != "" {
		f.snapshotter = s
	}
	if err := f.makePrograms(ctx); err != nil {
		return nil, err
	}
	return f, f.makeImages(ctx)
}

// makePrograms builds the daemon, unless LAZYKIT_BUILDKITD names one.
func (f *fixture) makePrograms(ctx context.Context) error {
	var err error
	f.programs, err = lab.Ours(ctx)
	if daemon := os.Getenv("LAZYKIT_BUILDKITD"); daemon != "" {
		f.programs.Buildkitd = daemon
	}
	return err
}

// makeImages makes the base image and starts both registries.
func (f *fixture) makeImages(ctx context.Context) error {
	base, err := lab.FindBase("demo")
	if err != nil {
		return err
	}
	if f.base, err = lab.MakeImage(ctx, base, lab.EStargz); err != nil {
		return err
	}
	if f.bases, err = lab.StartRegistry(ctx, lab.RegistryOptions{}); err != nil {
		return err
	}
	shared.teardown = append(shared.teardown, f.bases.Stop)
	if _, err := lab.Push(ctx, f.bases.Direct, f.base); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "lazykit-buildx-registry")
	if err != nil {
		return err
	}
	shared.teardown = append(shared.teardown, func() { os.RemoveAll(dir) })
	if f.outputs, err = lab.StartRegistry(ctx, lab.RegistryOptions{Dir: dir}); err != nil {
		return err
	}
	shared.teardown = append(shared.teardown, f.outputs.Stop)
	return nil
}

// baseRef is how a Dockerfile names the base image.
func (f *fixture) baseRef() string { return f.bases.Link + "/" + f.base.Tag() }

// lazy tells whether the daemon under test is meant to mount bases lazily.
func (f *fixture) lazy() bool { return f.snapshotter == "stargz" }

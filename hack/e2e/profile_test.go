package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// A step that has run on one machine starts on another one, which was given the
// access profile, with a few requests for what it reads and little else.
func TestProfile(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	dir := filepath.Join(t.TempDir(), "profiles")
	run := func(profiles string) (requests int, bytes int64) {
		d := daemon(t, lab.DaemonOptions{
			Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link},
			Config: fmt.Sprintf("[worker.oci.stargzSnapshotter]\nprofile_dir = %q\n", profiles),
		})
		reset(t, r)
		out := t.TempDir()
		build(t, d, lab.BuildOptions{
			Dockerfile: dockerfile(helloDockerfile, base) + "FROM scratch\nCOPY --from=0 /out.txt /\n", OutputDir: out,
		})
		got, err := os.ReadFile(filepath.Join(out, "out.txt"))
		require.NoError(t, err)
		require.Equal(t, "{\"python\": 3}\n", string(got))
		s := stats(t, r)
		t.Logf("%d layer requests, %d bytes", s.LayerGets, s.LayerBytes)
		return s.LayerGets, s.LayerBytes
	}
	first, firstBytes := run(dir)
	require.Eventually(t, func() bool {
		files, err := filepath.Glob(filepath.Join(dir, "sha256", "*.json"))
		return err == nil && len(files) > 0
	}, 10*time.Second, 10*time.Millisecond, "what the step read is written down")
	second, secondBytes := run(dir)
	require.LessOrEqual(t, second, 28, "two dozen, and those for the tables of contents")
	require.Less(t, float64(secondBytes), 0.9*float64(firstBytes), "little is fetched that is not read")
	third, _ := run(t.TempDir())
	require.InDelta(t, first, third, float64(first)/4, "a machine without the profile asks as the first one did")
}

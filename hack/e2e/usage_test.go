package e2e

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/client"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// kept is what a daemon keeps on disk besides its databases.
func kept(t *testing.T, d *lab.Daemon) int64 {
	t.Helper()
	n, err := lab.DiskUsage(d.Root, func(rel string) bool { return strings.HasSuffix(rel, ".db") })
	require.NoError(t, err)
	return n
}

// reported is the sum of what buildctl du shows.
func reported(t *testing.T, d *lab.Daemon) (sum int64, list []*client.UsageInfo) {
	t.Helper()
	c, err := d.Client(testContext(t))
	require.NoError(t, err)
	defer c.Close()
	list, err = c.DiskUsage(testContext(t))
	require.NoError(t, err)
	for _, u := range list {
		sum += u.Size
	}
	return sum, list
}

func pruneAll(t *testing.T, d *lab.Daemon) {
	t.Helper()
	c, err := d.Client(testContext(t))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.Prune(testContext(t), nil, client.PruneAll))
}

// What du reports is what is on disk, for layers that are lazy, partly fetched,
// extracted and made local, and a prune frees all of it.
func TestUsageIsWhatIsOnDisk(t *testing.T) {
	privileged(t)
	t.Parallel()
	r := registry(t)
	lazy, mixed := onLink(t, r, image(t, lab.EStargz)), onLink(t, r, mixedImage(t))
	chunked := onLink(t, r, image(t, lab.ZstdChunked))
	d := daemon(t, lab.DaemonOptions{
		Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link},
		Config: "[worker.oci.stargzSnapshotter]\n  resolve_result_entry_ttl_sec = 1\n",
	})
	empty := kept(t, d)
	check := func(what string) {
		t.Helper()
		disk := kept(t, d) - empty
		sum, list := reported(t, d)
		t.Logf("%s: %.1f MB on disk, %.1f MB reported in %d records", what, float64(disk)/1e6, float64(sum)/1e6, len(list))
		if !within(sum, disk) {
			for _, u := range list {
				t.Logf("  %9d %s %s", u.Size, u.RecordType, u.Description)
			}
		}
		require.True(t, within(sum, disk), "%s: du reports %d bytes, and %d are on disk", what, sum, disk)
	}
	build(t, d, lab.BuildOptions{Dockerfile: dockerfile(helloDockerfile, lazy) + "RUN head -c 30000000 /dev/urandom > /data\n"})
	check("lazy")
	build(t, d, lab.BuildOptions{Dockerfile: dockerfile(helloDockerfile, mixed)})
	check("mixed with a plain layer")
	build(t, d, lab.BuildOptions{
		Dockerfile: dockerfile(helloDockerfile, chunked),
		Exports: []client.ExportEntry{{Type: client.ExporterOCI, Attrs: map[string]string{"name": "x"},
			Output: toFile(filepath.Join(t.TempDir(), "image.tar"))}},
	})
	check("made local for an export")

	pruneAll(t, d)
	_, list := reported(t, d)
	require.Empty(t, list)
	var left int64
	freed := func() bool {
		left = kept(t, d) - empty
		return within(0, left)
	}
	require.Eventually(t, freed, 30*time.Second, time.Second, "a prune frees everything")
	t.Logf("%.1f MB left", float64(left)/1e6)
}

// within says whether a report is as exact as is promised: 2 % or 16 MB.
func within(reported, disk int64) bool {
	diff := max(reported-disk, disk-reported)
	return diff <= max(disk/50, 16<<20)
}

package e2e

import (
	"fmt"
	"path"
	"strings"
	"testing"

	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/client/llb"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// pushRandom makes a small eStargz image at ref that shares no layer with any
// other: a shell and so many files of a megabyte in /data that do not compress.
func pushRandom(t *testing.T, d *lab.Daemon, base, ref string, files int) {
	t.Helper()
	text := `FROM %BASE% AS b
RUN mkdir -p /out/data /out/bin && cp /bin/dash /out/bin/sh && cp /bin/cat /bin/sleep /out/bin/ && \
    for l in $(ldd /bin/cat | grep -o '/[^ ]*'); do cp -L --parents $l /out; done && \
    for i in $(seq %FILES%); do head -c 1000000 /dev/urandom > /out/data/$i; done && echo %NAME% > /out/data/name-%NAME%
FROM scratch
COPY --from=b /out /
`
	text = strings.NewReplacer("%BASE%", base, "%FILES%", fmt.Sprint(files), "%NAME%", strings.ReplaceAll(path.Base(ref), ":", "-")).Replace(text)
	build(t, d, lab.BuildOptions{
		Dockerfile: text,
		Exports: []client.ExportEntry{{Type: client.ExporterImage, Attrs: map[string]string{
			"name": ref, "push": "true", "compression": "estargz", "force-compression": "true", "oci-mediatypes": "true",
		}}},
		Attrs: map[string]string{"attest:provenance": "disabled=true"},
	})
}

// filesOfRandom is how many files the images of randomImages have.
const filesOfRandom = 24

// randomImages pushes three images that share no layer, and returns their names
// and a daemon that has seen none of them.
func randomImages(t *testing.T, r *lab.Registry) (refs [3]string, d *lab.Daemon) {
	t.Helper()
	base := onLink(t, r, image(t, lab.EStargz))
	opts := lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}}
	maker := daemon(t, opts)
	for i := range refs {
		refs[i] = fmt.Sprintf("%s/random:%d", r.Link, i)
		pushRandom(t, maker, base, refs[i], filesOfRandom)
	}
	return refs, daemon(t, opts)
}

// emptyRegistry is one with contents of its own.
func emptyRegistry(t *testing.T) *lab.Registry {
	t.Helper()
	r, err := lab.StartRegistry(testContext(t), lab.RegistryOptions{Dir: t.TempDir()})
	require.NoError(t, err)
	t.Cleanup(r.Stop)
	return r
}

// written is by how much the daemon's state grows in bytes while f runs.
func written(t *testing.T, d *lab.Daemon, f func()) int64 {
	t.Helper()
	before, err := lab.DiskUsage(d.Root, nil)
	require.NoError(t, err)
	f()
	after, err := lab.DiskUsage(d.Root, nil)
	require.NoError(t, err)
	return after - before
}

// COPY --link of a file from each of three lazy images fetches and writes the
// files, and little else.
func TestCopyLinkFromLazyStages(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	refs, d := randomImages(t, r)
	reset(t, r)
	n := written(t, d, func() {
		build(t, d, lab.BuildOptions{Dockerfile: fmt.Sprintf(`FROM %s AS a
FROM %s AS b
FROM %s AS c
FROM a
COPY --link --from=a /data/1 /copied/a
COPY --link --from=b /data/1 /copied/b
COPY --link --from=c /data/1 /copied/c
RUN cat /copied/a /data/1 > /dev/null && cat /copied/b /copied/c > /dev/null
`, refs[0], refs[1], refs[2])})
	})
	s := stats(t, r)
	const copied = 3_000_000
	t.Logf("%d layer requests, %d bytes received, %d written", s.LayerGets, s.LayerBytes, n)
	require.Less(t, s.LayerBytes, int64(4*copied), "of %d MB", 3*filesOfRandom)
	// What was received is kept; what was copied is a layer each, and the merge of them
	// copies it once more (BuildKit links instead for the overlayfs snapshotter only).
	require.Less(t, n, s.LayerBytes+2*copied+2<<20)
}

// A merge of three lazy images has the files of all, and fetches and copies none
// until they are read.
func TestMergeOfLazyImages(t *testing.T) {
	privileged(t)
	r := emptyRegistry(t)
	refs, d := randomImages(t, r)
	reset(t, r)
	var images []llb.State
	for _, ref := range refs {
		images = append(images, llb.Image(ref))
	}
	run := llb.Merge(images).Run(llb.Args([]string{"/bin/sh", "-c", "cat /data/name-random-0 /data/name-random-1 /data/name-random-2"}), llb.IgnoreCache).Root()
	def, err := run.Marshal(testContext(t))
	require.NoError(t, err)
	n := written(t, d, func() {
		res := build(t, d, lab.BuildOptions{Definition: def})
		for i := range refs {
			require.Regexp(t, fmt.Sprintf(`(?m)^#\d+ [0-9.]+ random-%d$`, i), res.Logs)
		}
	})
	s := stats(t, r)
	t.Logf("%d layer requests, %d bytes received, %d written", s.LayerGets, s.LayerBytes, n)
	require.Less(t, s.LayerBytes, int64(8_000_000), "of %d MB", 3*filesOfRandom)
	require.Less(t, n, s.LayerBytes+4<<20)
}

package buildx

import (
	"path/filepath"
	"testing"
)

// TestCacheImport builds on one daemon with a cache export, and again on a
// second one with nothing but that cache. A step that writes a random number
// tells whether it ran again.
func TestCacheImport(t *testing.T) {
	f := setup(t)
	first := remoteClient(t, f, startDaemon(t, f))
	local := filepath.Join(t.TempDir(), "cache")
	host := f.outputs.Direct
	for _, tt := range []struct {
		name     string
		to, from string
		output   string
		early    bool // steps of a stage that is not in the result are cached too
	}{
		{
			name: "registry", early: true, output: "type=cacheonly",
			to: "type=registry,mode=max,ref=" + host + "/cache/max:1", from: "type=registry,ref=" + host + "/cache/max:1",
		},
		{
			name: "registry-min", output: "type=cacheonly",
			to: "type=registry,mode=min,ref=" + host + "/cache/min:1", from: "type=registry,ref=" + host + "/cache/min:1",
		},
		{
			name: "local", early: true, output: "type=cacheonly",
			to: "type=local,mode=max,dest=" + local, from: "type=local,src=" + local,
		},
		{ // lies in a pushed image
			name: "inline", output: "type=image,push=true,name=" + host + "/cache/inline:1",
			to: "type=inline", from: "type=registry,ref=" + host + "/cache/inline:1",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := contextDir(t, map[string]string{"Dockerfile": cachedStages(f, tt.name)})
			first.build(t, dir, "--target", "late", "--output", tt.output, "--cache-to", tt.to)
			second := remoteClient(t, f, startDaemon(t, f))
			stages := []string{"late"}
			if tt.early {
				stages = append(stages, "early")
			}
			for _, stage := range stages {
				got := randomNumber(t, second, dir, stage, "--cache-from", tt.from)
				wantText(t, "random number of stage "+stage, got, randomNumber(t, first, dir, stage))
			}
		})
	}
}

// cachedStages is a Dockerfile of two stages on the lazy base, the second with a
// file of the first. The name makes the steps of one case differ from those of
// another, so that none finds the results of the other.
func cachedStages(f *fixture, name string) string {
	const random = "cat /proc/sys/kernel/random/uuid >/number && " + answer + "\n"
	return "FROM " + f.baseRef() + " AS early\nRUN echo " + name + " >/name && " + random +
		"FROM " + f.baseRef() + " AS late\nCOPY --from=early /name /\nRUN " + random +
		"FROM scratch AS show-early\nCOPY --from=early /number /\n" +
		"FROM scratch AS show-late\nCOPY --from=late /number /\n"
}

// randomNumber is what a stage's step wrote.
func randomNumber(t *testing.T, c *client, dir, stage string, args ...string) string {
	t.Helper()
	out := t.TempDir()
	c.build(t, dir, append(args, "--target", "show-"+stage, "--output", "type=local,dest="+out)...)
	return readFile(t, out, "number")
}

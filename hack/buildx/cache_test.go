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
		image    string // pushed as well: inline caches lie in an image
		early    bool   // steps of a stage that is not in the result are cached too
	}{
		{name: "registry", to: "type=registry,mode=max,ref=" + host + "/cache/max:1", from: "type=registry,ref=" + host + "/cache/max:1", early: true},
		{name: "registry-min", to: "type=registry,mode=min,ref=" + host + "/cache/min:1", from: "type=registry,ref=" + host + "/cache/min:1"},
		{name: "local", to: "type=local,mode=max,dest=" + local, from: "type=local,src=" + local, early: true},
		{name: "inline", to: "type=inline", from: "type=registry,ref=" + host + "/cache/inline:1", image: host + "/cache/inline:1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := contextDir(t, map[string]string{
				// The name makes the steps differ between the cases, so that no case finds
				// the results of another.
				"Dockerfile": "FROM " + f.baseRef() + " AS early\n" +
					"RUN echo " + tt.name + " >/name && cat /proc/sys/kernel/random/uuid >/early && " + answer + "\n" +
					"FROM " + f.baseRef() + " AS late\nCOPY --from=early /name /\n" +
					"RUN cat /proc/sys/kernel/random/uuid >/late && " + answer + "\n" +
					"FROM early AS show-early\nRUN true\n" +
					"FROM late\n",
			})
			tarball := filepath.Join(t.TempDir(), "1.tar")
			args := []string{"--output", "type=oci,dest=" + tarball, "--cache-to", tt.to}
			if tt.image != "" {
				args = []string{"--output", "type=image,push=true,name=" + tt.image, "--cache-to", tt.to}
			}
			first.build(t, dir, args...)
			if tt.image != "" {
				first.build(t, dir, "--output", "type=oci,dest="+tarball)
			}
			want := readOCITar(t, tarball)
			early := filepath.Join(t.TempDir(), "early.tar")
			first.build(t, dir, "--target", "show-early", "--output", "type=oci,dest="+early)
			wantEarly := readOCITar(t, early)

			second := remoteClient(t, f, startDaemon(t, f))
			second.build(t, dir, "--output", "type=oci,dest="+tarball, "--cache-from", tt.from)
			got := readOCITar(t, tarball)
			wantText(t, "random number of the last stage", got.file(t, "late"), want.file(t, "late"))
			if !tt.early {
				return
			}
			second.build(t, dir, "--target", "show-early", "--output", "type=oci,dest="+early, "--cache-from", tt.from)
			wantText(t, "random number of the early stage", readOCITar(t, early).file(t, "early"), wantEarly.file(t, "early"))
		})
	}
}

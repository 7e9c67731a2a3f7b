package buildx

import (
	"archive/tar"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRemoteDriver runs what people build with against one daemon.
func TestRemoteDriver(t *testing.T) {
	f := setup(t)
	c := remoteClient(t, f, startDaemon(t, f))
	for _, tt := range []struct {
		name string
		run  func(*testing.T, *client)
	}{
		{"lazy base", testLazyBase}, // first: the state is fresh
		{"outputs", testOutputs},
		{"push", testPush},
		{"multi-stage", testMultiStage},
		{"copy --link", testCopyLink},
		{"cache mount", testCacheMount},
		{"secret", testSecret},
		{"ssh", testSSH},
		{"bake", testBake},
	} {
		t.Run(tt.name, func(t *testing.T) { tt.run(t, c) })
	}
}

// answer is a step that needs the base's python, and a little of its library.
const answer = `python3 -c 'import json; print(json.dumps({"answer": 6*7}))'`

const answerText = "{\"answer\": 42}\n"

// testLazyBase runs a step on a base that was never seen, and counts what the
// registry was asked for.
func testLazyBase(t *testing.T, c *client) {
	f := c.fixture
	must(t, f.bases.Reset(t.Context()))
	dir := contextDir(t, map[string]string{"Dockerfile": "FROM " + f.baseRef() + " AS build\n" +
		"RUN " + answer + " >/answer\n" +
		"FROM scratch\nCOPY --from=build /answer /\n"})
	out := t.TempDir()
	c.build(t, dir, "--output", "type=local,dest="+out)
	wantText(t, "answer", readFile(t, out, "answer"), answerText)
	wantLazy(t, f)
}

// wantLazy checks that only a part of the base image was fetched since the last
// reset of the counts.
func wantLazy(t *testing.T, f *fixture) {
	t.Helper()
	stats, err := f.bases.Stats(t.Context())
	must(t, err)
	t.Logf("%d requests for layers, %.1f MB of %.1f MB", stats.LayerGets, float64(stats.LayerBytes)/1e6, float64(f.base.Size())/1e6)
	if stats.LayerBytes == 0 {
		t.Error("no byte of the base's layers was fetched: nothing was tested")
	}
	if f.lazy() && stats.LayerBytes > f.base.Size()/3 {
		t.Errorf("%d bytes of the base were fetched, it has %d: not lazy", stats.LayerBytes, f.base.Size())
	}
}

// testOutputs asks for the same result in each form.
func testOutputs(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\n" +
			"RUN " + answer + " >/answer && mkdir /dir && ln -s ../answer /dir/link\n" +
			"FROM scratch AS files\nCOPY --from=build /answer /dir /out/\n" +
			"FROM build\nENV COLOR=green\n",
	})
	out := t.TempDir()
	t.Run("local", func(t *testing.T) {
		c.build(t, dir, "--target", "files", "--output", "type=local,dest="+filepath.Join(out, "local"))
		wantText(t, "answer", readFile(t, out, "local", "out", "answer"), answerText)
		link, err := os.Readlink(filepath.Join(out, "local", "out", "link"))
		must(t, err)
		wantText(t, "link", link, "../answer")
	})
	t.Run("tar", func(t *testing.T) {
		file := filepath.Join(out, "files.tar")
		c.build(t, dir, "--target", "files", "--output", "type=tar,dest="+file)
		wantText(t, "answer", string(readTar(t, file)["out/answer"]), answerText)
	})
	t.Run("oci", func(t *testing.T) {
		file := filepath.Join(out, "oci.tar")
		c.build(t, dir, "--output", "type=oci,dest="+file)
		wantImage(t, c, readOCITar(t, file))
	})
	t.Run("docker", func(t *testing.T) {
		file := filepath.Join(out, "docker.tar")
		c.build(t, dir, "--tag", "lazykit.test/answer:1", "--output", "type=docker,dest="+file)
		img, tags := readDockerTar(t, file)
		wantImage(t, c, img)
		wantText(t, "tags", strings.Join(tags, " "), "lazykit.test/answer:1")
	})
}

// wantImage checks an image of testOutputs: the base's layers, as they were, and
// one of its own.
func wantImage(t *testing.T, c *client, img image) {
	t.Helper()
	wantText(t, "answer", img.file(t, "answer"), answerText)
	if !strings.Contains(strings.Join(img.config.Config.Env, " "), "COLOR=green") {
		t.Errorf("environment of the image: %q", img.config.Config.Env)
	}
	base := c.fixture.base.Layers
	if len(img.layers) != len(base)+1 {
		t.Fatalf("image has %d layers, want %d of the base and 1", len(img.layers), len(base))
	}
	for i, l := range base {
		if img.layers[i].digest != l.Digest {
			t.Errorf("layer %d is %s, the base's is %s", i, img.layers[i].digest, l.Digest)
		}
	}
}

// testPush pushes to a registry that has none of the base's layers.
func testPush(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM " + c.fixture.baseRef() + "\nRUN " + answer + " >/answer\nENV COLOR=green\n",
	})
	host := c.fixture.outputs.Direct
	c.build(t, dir, "--tag", host+"/push/app:v1", "--tag", host+"/push/app:latest", "--push")
	wantImage(t, c, pull(t, host, "push/app", "v1"))
	if v1, latest := fetchManifest(t, host, "push/app", "v1"), fetchManifest(t, host, "push/app", "latest"); string(v1) != string(latest) {
		t.Errorf("two tags of one push differ:\n%s\n%s", v1, latest)
	}
}

// testMultiStage compiles in one stage, and runs what came out in another that
// shares the base.
func testMultiStage(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"hello.c": "#include <stdio.h>\nint main(void) { puts(\"hello from C\"); return 0; }\n",
		"Dockerfile": "FROM " + c.fixture.baseRef() + " AS cc\nCOPY hello.c /\nRUN gcc -O1 -o /hello /hello.c\n" +
			"FROM " + c.fixture.baseRef() + " AS run\nCOPY --from=cc /hello /usr/local/bin/\nRUN hello >/said\n" +
			"FROM scratch\nCOPY --from=run /said /\n",
	})
	out := t.TempDir()
	c.build(t, dir, "--output", "type=local,dest="+out)
	wantText(t, "output of the program", readFile(t, out, "said"), "hello from C\n")
}

// testCopyLink checks that a linked copy is a layer of its own, of the copied
// file alone, on the base's unchanged layers.
func testCopyLink(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"data": "linked\n",
		"Dockerfile": "FROM " + c.fixture.baseRef() + " AS made\nRUN " + answer + " >/answer\n" +
			"FROM " + c.fixture.baseRef() + "\n" +
			"COPY --link --chown=1000:1001 data /opt/data/\nCOPY --link --from=made /answer /answer\n",
	})
	host := c.fixture.outputs.Direct
	c.build(t, dir, "--tag", host+"/link/app:v1", "--push")
	img := pull(t, host, "link/app", "v1")
	base := c.fixture.base.Layers
	if len(img.layers) != len(base)+2 {
		t.Fatalf("image has %d layers, want %d of the base and 2", len(img.layers), len(base))
	}
	for i, l := range base {
		if img.layers[i].digest != l.Digest {
			t.Errorf("layer %d is %s, the base's is %s", i, img.layers[i].digest, l.Digest)
		}
	}
	wantText(t, "answer", img.file(t, "answer"), answerText)
	var files []string
	img.layers[len(base)].walk(t, func(h *tar.Header, _ io.Reader) bool {
		if h.Typeflag == tar.TypeReg {
			files = append(files, fmt.Sprintf("%s %d:%d", h.Name, h.Uid, h.Gid))
		}
		return true
	})
	wantText(t, "files of the linked layer", strings.Join(files, ", "), "opt/data/data 1000:1001")
}

// testCacheMount checks that a second build finds what the first left in a cache
// mount.
func testCacheMount(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\nARG TURN\n" +
			"RUN --mount=type=cache,id=lazykit-turns,target=/turns echo $TURN >>/turns/list && cp /turns/list /list\n" +
			"FROM scratch\nCOPY --from=build /list /\n",
	})
	out := t.TempDir()
	for _, turn := range []string{"first", "second"} {
		c.build(t, dir, "--build-arg", "TURN="+turn, "--output", "type=local,dest="+out)
	}
	wantText(t, "cache mount", readFile(t, out, "list"), "first\nsecond\n")
}

// testSecret checks that a step sees a secret and that the image does not hold
// it.
func testSecret(t *testing.T, c *client) {
	const secret = "correct horse battery staple"
	dir := contextDir(t, map[string]string{
		"Dockerfile": "FROM " + c.fixture.baseRef() + "\n" +
			"RUN --mount=type=secret,id=token sha256sum </run/secrets/token | cut -d' ' -f1 >/sum\n" +
			"RUN --mount=type=secret,id=token,env=TOKEN printf %s \"$TOKEN\" | sha256sum | cut -d' ' -f1 >/sum-env\n",
	})
	file := filepath.Join(t.TempDir(), "token")
	must(t, os.WriteFile(file, []byte(secret), 0o600))
	tarball := filepath.Join(t.TempDir(), "oci.tar")
	c.build(t, dir, "--secret", "id=token,src="+file, "--output", "type=oci,dest="+tarball)
	img := readOCITar(t, tarball)
	want := fmt.Sprintf("%x\n", sha256.Sum256([]byte(secret)))
	wantText(t, "digest of the secret file", img.file(t, "sum"), want)
	wantText(t, "digest of the secret variable", img.file(t, "sum-env"), want)
	for _, l := range img.layers[len(c.fixture.base.Layers):] {
		l.walk(t, func(h *tar.Header, r io.Reader) bool {
			data, err := io.ReadAll(r)
			must(t, err)
			if strings.Contains(string(data), secret) {
				t.Errorf("%s of layer %s holds the secret", h.Name, l.digest)
			}
			return true
		})
	}
}

// testBake builds a group with a matrix and a target that is another's context.
func testBake(t *testing.T, c *client) {
	dir := contextDir(t, map[string]string{
		"lib.Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\nRUN " + answer + " >/answer\n" +
			"FROM scratch\nCOPY --from=build /answer /\n",
		"app.Dockerfile": "FROM " + c.fixture.baseRef() + " AS build\nARG COLOR\nCOPY --from=lib /answer /\n" +
			"RUN { echo $COLOR; cat /answer; } >/app\nFROM scratch\nCOPY --from=build /app /\n",
		"docker-bake.hcl": `
variable "OUT" {}
group "default" { targets = ["app"] }
target "lib" { dockerfile = "lib.Dockerfile" }
target "app" {
  name       = "app-${color}"
  matrix     = { color = ["red", "blue"] }
  dockerfile = "app.Dockerfile"
  contexts   = { lib = "target:lib" }
  args       = { COLOR = color }
  output     = ["type=local,dest=${OUT}/${color}"]
}
`,
	})
	out := t.TempDir()
	c.bakeIn(t, dir, []string{"OUT=" + out}, "--allow", "fs.write="+out)
	for _, color := range []string{"red", "blue"} {
		wantText(t, "app in "+color, readFile(t, out, color, "app"), color+"\n"+answerText)
	}
}

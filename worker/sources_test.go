package worker

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/remotesnapshot/layer"
)

func TestPlainDirs(t *testing.T) {
	overlay := mount.Mount{Type: "overlay", Options: []string{"index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/lazy/1:/s/1/fs:/s/../lazy/2:/s"}}
	require.Equal(t, []string{"/s/2/fs", "/s/1/fs"}, plainDirs([]mount.Mount{overlay}, "/s"))
	require.Equal(t, []string{"/s/1/fs"}, plainDirs([]mount.Mount{{Type: "bind", Source: "/s/1/fs"}}, "/s"))
	require.Empty(t, plainDirs([]mount.Mount{{Type: "bind", Source: "/lazy/1"}}, "/s"))
	require.Empty(t, plainDirs(nil, "/s"))
	many := mount.Mount{Type: "overlay", Options: []string{"lowerdir=" + strings.Repeat("/s/1/fs:", 1000)}}
	require.Len(t, plainDirs([]mount.Mount{many}, "/s"), maxPlain)
}

// Sources come from the first directory that has them, and only from inside of it.
func TestReadSources(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret.py")
	require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	upper, lower := t.TempDir(), t.TempDir()
	for name, text := range map[string]string{
		"app/main.py": "upper", "app/a.go": "package a", "app/a_test.go": "package a", "app/b.txt": "text", "large.c": strings.Repeat("x", 2*maxSourceSize),
	} {
		require.NoError(t, os.MkdirAll(filepath.Dir(filepath.Join(upper, name)), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(upper, name), []byte(text), 0o644))
	}
	require.NoError(t, os.Mkdir(filepath.Join(lower, "app"), 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(lower, "app/main.py"), []byte("lower"), 0o644))
	require.NoError(t, os.WriteFile(filepath.Join(lower, "app/x.py"), []byte("x"), 0o644))
	require.NoError(t, os.Symlink(secret, filepath.Join(upper, "out.py")))
	require.NoError(t, os.Symlink("../../../../../../../.."+secret, filepath.Join(upper, "up.py")))
	require.NoError(t, os.Symlink("app/main.py", filepath.Join(upper, "in.py")))
	require.NoError(t, os.Symlink("loop.py", filepath.Join(upper, "loop.py")))
	require.NoError(t, unix.Mkfifo(filepath.Join(upper, "fifo.py"), 0o644))
	require.NoError(t, os.Mkdir(filepath.Join(upper, "dir.py"), 0o755))
	if os.Geteuid() == 0 {
		require.NoError(t, unix.Mknod(filepath.Join(upper, "null.py"), unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))))
	}
	dirs := []string{upper, filepath.Join(upper, "missing"), lower}
	read := func(paths ...string) (texts []string) {
		for _, s := range readSources(paths, dirs) {
			texts = append(texts, string(s.Text))
		}
		return texts
	}
	require.Equal(t, []string{"upper", "x", "upper"}, read("/app/main.py", "/app/x.py", "/in.py"))
	require.Equal(t, []layer.Source{{Name: "a.go", Text: []byte("package a")}}, readSources([]string{"/app/"}, dirs))
	require.Empty(t, read("/out.py", "/up.py", "/loop.py", "/fifo.py", "/dir.py", "/missing.py", "/missing/", "/", "/app/main.py/", "/../"+secret,
		"/fifo.py/", "/null.py/", "/null.py", "/loop.py/", "/out.py/"))
	require.Len(t, read("/large.c")[0], maxSourceSize)

	for i := range 2 * maxSources {
		require.NoError(t, os.WriteFile(filepath.Join(upper, "app", strings.Repeat("z", i+1)+".go"), bytes.Repeat([]byte("x"), 10), 0o644))
	}
	require.Len(t, read("/app/"), maxSources)
	require.Len(t, readSources(slices.Repeat([]string{"/large.c"}, 100), dirs), maxSourcesAll/maxSourceSize)
}

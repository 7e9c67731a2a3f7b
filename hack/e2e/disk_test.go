package e2e

import (
	"bytes"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/lazykit/lazykit/hack/lab"
)

// smallDisk is a state directory on an ext4 file system of its own.
func smallDisk(t *testing.T, size int64) (root, mountPoint string) {
	t.Helper()
	dir := stateDir(t)
	file, mnt := filepath.Join(dir, "disk"), filepath.Join(dir, "mnt")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, size))
	require.NoError(t, os.Mkdir(mnt, 0o755))
	for _, args := range [][]string{{"mkfs.ext4", "-q", "-m", "0", file}, {"mount", "-o", "loop", file, mnt}} {
		out, err := exec.CommandContext(testContext(t), args[0], args[1:]...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	root = filepath.Join(mnt, "root")
	require.NoError(t, os.Mkdir(root, 0o755))
	return root, mnt
}

// onWord calls do, once, when a word shows in what is written to it.
type onWord struct {
	mu   sync.Mutex
	word string
	seen bytes.Buffer
	do   func()
}

func (w *onWord) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.seen.Write(p)
	if w.do != nil && strings.Contains(w.seen.String(), w.word) {
		w.do()
		w.do = nil
	}
	return len(p), nil
}

// A disk that fills up under a running step costs requests: what the step reads is
// fetched past the disk. A build that has to write fails and says why, and the daemon
// goes on when there is room again.
func TestFullDisk(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	root, mnt := smallDisk(t, 256<<20)
	d := daemon(t, lab.DaemonOptions{Program: ours(t), Root: root, Snapshotter: "stargz", Registries: []string{r.Link}})
	ballast := filepath.Join(mnt, "ballast")
	fill := func() {
		f, err := os.Create(ballast)
		if err != nil {
			t.Errorf("fill the disk: %v", err)
			return
		}
		defer f.Close()
		for n := int64(64 << 20); n >= 4096; { // to the last block
			fi, _ := f.Stat()
			if err := unix.Fallocate(int(f.Fd()), 0, fi.Size(), n); err != nil {
				n /= 2
			}
		}
	}
	text := "FROM " + base + `
RUN echo now''full; sleep 2; cat /usr/bin/* /usr/lib/python3*/*.py | sha256sum; echo has''read; sleep 2
`
	var room sync.Once
	empty := func() { room.Do(func() { require.NoError(t, os.Remove(ballast)) }) }
	progress := &onWord{word: "nowfull", do: fill}
	second := &onWord{word: "hasread", do: empty}
	var sum string
	res := build(t, d, lab.BuildOptions{Dockerfile: text, Progress: both{progress, second}})
	for _, line := range strings.Split(res.Logs, "\n") {
		if strings.HasSuffix(line, "  -") {
			sum = line[strings.LastIndex(line[:len(line)-3], " ")+1:]
		}
	}
	require.Len(t, sum, 67, "the step has read to the end:\n%s", res.Logs)

	fill()
	res, err := lab.Build(testContext(t), d.Addr, lab.BuildOptions{Dockerfile: "FROM " + base + "\nRUN head -c 50000000 /dev/zero > /zeros\n"})
	require.Error(t, err)
	require.Contains(t, strings.ToLower(err.Error()+res.Logs), "no space left on device")
	require.NoError(t, os.Remove(ballast))
	again := build(t, d, lab.BuildOptions{Dockerfile: text, NoCache: true})
	require.Contains(t, again.Logs, sum, "the same bytes")
}

// both writes to two.
type both [2]*onWord

func (b both) Write(p []byte) (int, error) {
	b[0].Write(p)
	return b[1].Write(p)
}

// What is damaged on disk, while a daemon runs or between two, is found out and made
// again: builds give the same bytes.
func TestDamagedState(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	root := stateDir(t)
	opts := lab.DaemonOptions{Program: ours(t), Root: root, Snapshotter: "stargz", Registries: []string{r.Link}, Log: filepath.Join(t.TempDir(), "log")}
	// The kernel has the pages of what was read since the start, so there are two sets.
	const before, open = "/usr/lib/python3*/*.py /usr/bin/[a-m]*", "/usr/include/*.h /usr/include/linux/*.h /usr/bin/[n-z]*"
	want := map[string]string{}
	check := func(d *lab.Daemon, files, what string) {
		t.Helper()
		out := t.TempDir()
		build(t, d, lab.BuildOptions{
			Dockerfile: "FROM " + base + " AS base\nRUN cat " + files + " | sha256sum > /sum\nFROM scratch\nCOPY --from=base /sum /\n",
			NoCache:    true, OutputDir: out,
		})
		got, err := os.ReadFile(filepath.Join(out, "sum"))
		require.NoError(t, err)
		if want[files] == "" {
			want[files] = string(got)
		}
		require.Equal(t, want[files], string(got), what)
	}
	start := func() *lab.Daemon {
		d, err := lab.StartDaemon(testContext(t), opts)
		require.NoError(t, err)
		return d
	}
	stop := func(d *lab.Daemon) {
		require.NoError(t, d.Stop())
		require.NoError(t, d.Remove())
	}
	d := start()
	check(d, before, "undamaged")
	check(d, open, "undamaged")
	stop(d)
	for _, c := range []struct {
		what  string
		match string
		spoil func(path string, size int64) error
	}{
		{"lists of ranges cut", "blobs/sha256/*.ranges", func(p string, n int64) error { return os.Truncate(p, n/2) }},
		{"lists of ranges overwritten", "blobs/sha256/*.ranges", func(p string, n int64) error { return os.WriteFile(p, make([]byte, n), 0o600) }},
		{"blobs cut", "blobs/sha256/*[0-9a-f]", func(p string, n int64) error { return os.Truncate(p, n/3) }},
		{"blobs with other bytes", "blobs/sha256/*[0-9a-f]", scribble},
		{"TOCs cut", "toc/*.toc", func(p string, n int64) error { return os.Truncate(p, n/2) }},
		{"TOCs with other bytes", "toc/*.toc", scribble},
	} {
		spoil := func() {
			paths, err := filepath.Glob(filepath.Join(root, "runc-stargz/lazy", c.match))
			require.NoError(t, err)
			n := 0
			for _, p := range paths {
				if strings.HasSuffix(p, ".ranges") != strings.HasSuffix(c.match, ".ranges") {
					continue
				}
				fi, err := os.Stat(p)
				require.NoError(t, err)
				require.NoError(t, c.spoil(p, fi.Size()))
				n++
			}
			require.Positive(t, n, c.what)
		}
		spoil()
		d := start()
		check(d, before, c.what+" before the start")
		spoil()
		check(d, open, c.what+" while it is open")
		stop(d)
	}
	log, err := os.ReadFile(opts.Log)
	require.NoError(t, err)
	require.NotContains(t, string(log), "panic")
	require.NotContains(t, string(log), "fault address")
}

// scribble writes other bytes over what a sparse file holds, and keeps its size.
func scribble(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	rnd := rand.NewChaCha8([32]byte{})
	junk := make([]byte, 64<<10)
	for off := int64(0); off < size; {
		data, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return nil
		}
		if err != nil {
			return &fs.PathError{Op: "seek", Path: path, Err: err}
		}
		rnd.Read(junk)
		if _, err := f.WriteAt(junk[:min(int64(len(junk)), size-data)], data); err != nil {
			return err
		}
		off = data + 2*int64(len(junk))
	}
	return nil
}

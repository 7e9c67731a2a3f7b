package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// lookAtAll says everything that a step can see of the base: each entry, and all bytes in
// the order of names and in another one.
const lookAtAll = `
RUN set -e; cd /; for d in usr var lib bin; do \
      find $d -xdev ! -type d -printf '%y %m %U %G %n %s %Ts %l %p\n' -o -printf '%y %m %U %G %Ts %p\n'; \
    done | LC_ALL=C sort > /tree; \
    find usr -xdev -type f | LC_ALL=C sort > /files; \
    xargs -d '\n' cat < /files | sha256sum > /sums; \
    shuf --random-source=/files /files > /mixed; xargs -d '\n' -n 20 -P 8 sha256sum < /mixed | LC_ALL=C sort >> /sums; \
    python3 -c 'import mmap,os; f=open(os.path.realpath("/usr/bin/python3"),"rb"); print(hash(bytes(mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ))) != 0)'
`

// differing returns the first lines that only one of two sorted texts has.
func differing(a, b string) (out []string) {
	in := map[string]int{}
	for line := range strings.Lines(a) {
		in[line]++
	}
	for line := range strings.Lines(b) {
		in[line] += 1 << 16
	}
	for line, n := range in {
		if n>>16 != n&(1<<16-1) && len(out) < 20 {
			out = append(out, fmt.Sprintf("%d, %d: %s", n&(1<<16-1), n>>16, strings.TrimSpace(line)))
		}
	}
	return out
}

// A step sees the same base by EROFS, by FUSE alone, and extracted by stock.
func TestImagesShowTheSame(t *testing.T) {
	privileged(t)
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	look := func(d *lab.Daemon) map[string]string {
		out := t.TempDir()
		build(t, d, lab.BuildOptions{
			Dockerfile: "FROM " + base + lookAtAll + "FROM scratch\nCOPY --from=0 /tree /sums /\n", OutputDir: out,
		})
		got := map[string]string{}
		for _, name := range []string{"tree", "sums"} {
			b, err := os.ReadFile(filepath.Join(out, name))
			require.NoError(t, err)
			require.Greater(t, len(b), 1000, name)
			got[name] = string(b)
		}
		return got
	}
	want := look(daemon(t, lab.DaemonOptions{Program: stock(t), Snapshotter: "overlayfs", Registries: []string{r.Link}}))
	for name, config := range map[string]string{"images": "", "FUSE alone": "[worker.oci.stargzSnapshotter]\n  no_erofs = true\n"} {
		t.Run(name, func(t *testing.T) {
			d := daemon(t, lab.DaemonOptions{Program: ours(t), Snapshotter: "stargz", Registries: []string{r.Link}, Config: config})
			got := look(d)
			for name := range want {
				require.Empty(t, differing(want[name], got[name]), name)
			}
			mounts, err := lab.Mounts(d.Root)
			require.NoError(t, err)
			images := 0
			for _, m := range mounts {
				if m.FSType == "erofs" {
					images++
				}
			}
			log, err := os.ReadFile(d.Log)
			require.NoError(t, err)
			if config != "" {
				require.Zero(t, images)
			} else if images == 0 {
				require.Contains(t, string(log), "layers are served by FUSE alone")
			}
		})
	}
}

package e2e

import (
	"path/filepath"
	"testing"

	"github.com/moby/buildkit/client"
	digest "github.com/opencontainers/go-digest"
	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

// What a step changes on a lazy base becomes the same layer as on a base that
// was pulled and extracted: replaced, removed and new files, directories that
// were emptied and made again, hard links, metadata.
func TestSameImageAsStock(t *testing.T) {
	privileged(t)
	t.Parallel()
	r := registry(t)
	base := onLink(t, r, image(t, lab.EStargz))
	text := dockerfile(`FROM %BASE%
RUN echo changed >> /etc/passwd && rm /etc/issue && rm -r /etc/alternatives && mkdir /etc/alternatives && touch /etc/alternatives/x
RUN mkdir -p /srv/a/b && ln /etc/hostname /srv/a/link; ln -s ../x /srv/a/sym; chmod 4755 /usr/bin/env; chown 1:2 /etc/debian_version; mv /usr/share/doc /usr/share/docs
RUN find / -xdev -newer /etc/debian_version -name '*.pyc' -delete; python3 -c 'import os; os.setxattr("/srv/a", "user.x", b"1") if hasattr(os, "setxattr") else None' || true
COPY file /opt/
`, base)
	layers := func(program, snapshotter string) []digest.Digest {
		d := daemon(t, lab.DaemonOptions{Program: program, Snapshotter: snapshotter, Registries: []string{r.Link}})
		out := filepath.Join(t.TempDir(), "image.tar")
		build(t, d, lab.BuildOptions{
			Dockerfile: text,
			Files:      map[string]string{"file": "hello\n"},
			Args:       map[string]string{"SOURCE_DATE_EPOCH": "1700000000"},
			Exports: []client.ExportEntry{{
				Type:   client.ExporterOCI,
				Attrs:  map[string]string{"rewrite-timestamp": "true", "name": "x"},
				Output: toFile(out),
			}},
			Attrs: map[string]string{"attest:provenance": "disabled=true"},
		})
		return layersInTar(t, out)
	}
	want := layers(stock(t), "overlayfs")
	require.Len(t, want, 6)
	require.Equal(t, want, layers(ours(t), "stargz"))
}

package main

import (
	"context"
	"fmt"

	"github.com/moby/buildkit/client/llb"

	"github.com/lazykit/lazykit/hack/lab"
)

// threeImages are lazy images of one tree that share no layer. Their sizes together
// become a figure.
func threeImages(ctx context.Context, t *trial) (refs [3]string, err error) {
	var size int64
	for i := range refs {
		img, err := t.lazyImage(ctx, i)
		if err != nil {
			return refs, err
		}
		refs[i] = t.on(img)
		size += img.Size()
	}
	t.note("images", float64(size))
	return refs, nil
}

var mergeColumns = []column{{key: "images", title: "the images", unit: "MB"}}

var copyLinkCase = suiteCase{
	id:    "copylink",
	extra: mergeColumns,
	text:  "COPY --link of one small file from each of three images onto the first of them, and a RUN that reads the copies",
	run: func(ctx context.Context, t *trial) error {
		refs, err := threeImages(ctx, t)
		if err != nil {
			return err
		}
		d, err := t.daemon(ctx)
		if err != nil {
			return err
		}
		_, cost, err := t.build(ctx, d, lab.BuildOptions{Dockerfile: fmt.Sprintf(`FROM %[1]s AS a
FROM %[2]s AS b
FROM %[3]s AS c
FROM %[1]s
COPY --link --from=a /etc/debian_version /copied/a
COPY --link --from=b /etc/debian_version /copied/b
COPY --link --from=c /etc/debian_version /copied/c
RUN cat /copied/a /copied/b /copied/c
`, refs[0], refs[1], refs[2])})
		t.is(cost)
		return err
	},
	check: checkMerge,
}

var mergeCase = suiteCase{
	id:    "merge",
	extra: mergeColumns,
	text:  "llb.Merge of three images and a RUN that reads a file",
	run: func(ctx context.Context, t *trial) error {
		refs, err := threeImages(ctx, t)
		if err != nil {
			return err
		}
		d, err := t.daemon(ctx)
		if err != nil {
			return err
		}
		merged := llb.Merge([]llb.State{llb.Image(refs[0]), llb.Image(refs[1]), llb.Image(refs[2])})
		def, err := merged.Run(llb.Args([]string{"/bin/cat", "/etc/debian_version"})).Root().Marshal(ctx)
		if err != nil {
			return fmt.Errorf("describe the merge: %w", err)
		}
		_, cost, err := t.build(ctx, d, lab.BuildOptions{Definition: def})
		t.is(cost)
		return err
	},
	check: checkMerge,
}

func checkMerge(m map[string]suiteMedian) []string {
	ours := m["ours"]
	// Received are tables of contents and what a shell needs; written are the same,
	// with the tables as they are mapped, which are larger.
	return broken(
		atMost("bytes received", float64(ours.Received), 0.01*ours.Extra["images"]),
		atMost("bytes written", float64(ours.Written), 0.03*ours.Extra["images"]),
	)
}

package main

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"

	"github.com/lazykit/lazykit/hack/lab"
)

// shares are the parts of the base that are read, in percent of its bytes.
var shares = []int{1, 5, 10, 25, 50, 100}

var shareSuite = suite{
	id: "share", title: "First builds that read a share of the base's bytes", variants: allStock, network: "shaped",
	cases: shareCases(), table: shareTable, plot: sharePlot,
}

func shareCases() (all []suiteCase) {
	for _, percent := range shares {
		all = append(all, suiteCase{
			id:    fmt.Sprint(percent),
			text:  fmt.Sprintf("a RUN that reads files that have %d %% of the bytes together", percent),
			extra: []column{{key: "read", title: "read", unit: "MB"}, {key: "files", title: "files"}},
			run:   func(ctx context.Context, t *trial) error { return runShare(ctx, t, percent) },
			check: func(m map[string]suiteMedian) []string {
				if m["stock-overlayfs"].N == 0 {
					return nil
				}
				return broken(atMost("seconds, beside a full pull and the step", m["ours"].Seconds, m["stock-overlayfs"].Seconds))
			},
		})
	}
	return all
}

func runShare(ctx context.Context, t *trial, percent int) error {
	img, err := t.lazyImage(ctx, 0)
	if err != nil {
		return err
	}
	if t.files == nil {
		if t.suiteBench.files, err = img.Files(); err != nil {
			return err
		}
	}
	chosen, size := chooseFiles(t.files, percent)
	n, err := t.coldCount(ctx, img, `xargs -d '\n' cat < files | wc -c`, map[string]string{"files": fileList(chosen)})
	if err != nil {
		return err
	}
	if n != size {
		return fmt.Errorf("the step read %d bytes, and the %d files have %d", n, len(chosen), size)
	}
	t.note("read", float64(size))
	t.note("files", float64(len(chosen)))
	return nil
}

// chooseFiles chooses files, in the order of their names' digests, until they have
// percent of all bytes together, to a twentieth. A file that alone would be too much
// is left out.
func chooseFiles(all []lab.File, percent int) (chosen []lab.File, size int64) {
	var total int64
	byDigest := map[[sha256.Size]byte]lab.File{}
	var order [][sha256.Size]byte
	for _, f := range all {
		if strings.Contains(f.Name, "\n") {
			continue // no line of a list
		}
		key := sha256.Sum256([]byte(f.Name))
		byDigest[key] = f
		order = append(order, key)
		total += f.Size
	}
	slices.SortFunc(order, func(a, b [sha256.Size]byte) int { return slices.Compare(a[:], b[:]) })
	want := total * int64(percent) / 100
	slack := want / 20
	if percent == 100 {
		slack = 0
	}
	for _, key := range order {
		f := byDigest[key]
		if size >= want-slack && percent < 100 {
			break
		}
		if size+f.Size <= want+slack {
			chosen = append(chosen, f)
			size += f.Size
		}
	}
	return chosen, size
}

// fileList has a line for each file.
func fileList(files []lab.File) string {
	var s strings.Builder
	for _, f := range files {
		s.WriteString("/" + f.Name + "\n")
	}
	return s.String()
}

// shareTable has a row for each share.
func shareTable(r *suiteReport) string {
	var s strings.Builder
	s.WriteString("| share read | bytes | files |")
	for _, v := range r.variants {
		fmt.Fprintf(&s, " %s |", v.id)
	}
	fmt.Fprintf(&s, " ours by stock-overlayfs |\n|---|%s\n", strings.Repeat("---:|", 3+len(r.variants)))
	for _, c := range r.cases {
		m := r.medians(c.id)
		read, files := "", ""
		for _, v := range r.variants {
			if m[v.id].N > 0 {
				read, files = megabytes(int64(m[v.id].Extra["read"])), fmt.Sprint(m[v.id].Extra["files"])
			}
		}
		fmt.Fprintf(&s, "| %s %% | %s | %s |", c.id, read, files)
		for _, v := range r.variants {
			fmt.Fprintf(&s, " %s |", m[v.id].wall())
		}
		ratio := ""
		if m["ours"].N > 0 {
			ratio = quotient(m["ours"].Seconds, m["stock-overlayfs"].Seconds)
		}
		fmt.Fprintf(&s, " %s |\n", ratio)
	}
	return s.String()
}

// sharePlot shows time against share, a line for each daemon.
func sharePlot(r *suiteReport) string {
	p := plot{title: "First build on a machine: " + r.network.text, x: "share of the base's bytes that the build reads, in percent", y: "wall time, in seconds"}
	for _, v := range r.variants {
		l := line{name: v.id}
		for i, c := range r.cases {
			if m := r.medians(c.id)[v.id]; m.N > 0 {
				l.points = append(l.points, point{float64(shareOf(r.cases[i])), m.Seconds})
			}
		}
		p.lines = append(p.lines, l)
	}
	return p.svg()
}

func shareOf(c suiteCase) (percent int) {
	fmt.Sscan(c.id, &percent) // the ids are made of numbers
	return percent
}

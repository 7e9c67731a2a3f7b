package main

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/lazykit/lazykit/hack/lab"
)

func TestChooseFiles(t *testing.T) {
	var all []lab.File
	for i := range 1000 {
		all = append(all, lab.File{Name: fmt.Sprintf("dir/file-%d", i), Size: int64(i)})
	}
	all = append(all, lab.File{Name: "no\nline", Size: 1e9})
	all = append(all, lab.File{Name: "large", Size: 999 * 500})
	const total = 999 * 1000
	for _, percent := range shares {
		chosen, size := chooseFiles(all, percent)
		again, _ := chooseFiles(all, percent)
		require.Equal(t, chosen, again)
		require.InEpsilon(t, total*percent/100, size, 0.051)
		if percent == 100 {
			require.Len(t, chosen, 1001, "all files")
		}
		var sum int64
		for _, f := range chosen {
			sum += f.Size
		}
		require.Equal(t, sum, size)
	}
	require.Equal(t, "/a\n/b c\n", fileList([]lab.File{{Name: "a"}, {Name: "b c"}}))
}

func TestShareReport(t *testing.T) {
	b := &suiteBench{suite: shareSuite, cases: shareSuite.cases[:2], network: networks[0]}
	var err error
	b.variants, err = choose("variant", variants, allStock)
	require.NoError(t, err)
	for i, c := range b.cases {
		for _, v := range b.variants[:2] {
			b.results = append(b.results, suiteResult{Case: c.id, Variant: v.id, figures: figures{
				Seconds: float64(2 + i), Extra: map[string]float64{"read": 5e6, "files": 3},
			}})
		}
		b.results = append(b.results, suiteResult{Case: c.id, Variant: "stock-overlayfs", figures: figures{Seconds: 2.5}})
	}
	r := b.report()
	require.Contains(t, r.markdown(), "| share read | bytes | files | ours | stock-stargz | stock-overlayfs | ours by stock-overlayfs |\n|---|---:|---:|---:|---:|---:|---:|\n")
	require.ErrorContains(t, r.check(), "5: seconds, beside a full pull and the step: 3,")
	require.NotContains(t, r.check().Error(), "1: seconds")
	svg := shareSuite.plot(r)
	require.Contains(t, svg, ">stock-overlayfs<")
	require.Contains(t, svg, ">First build on a machine: 30 ms")
}

func TestPlotIsXML(t *testing.T) {
	for _, p := range []plot{
		{},
		{title: "a < b & c", x: "x", y: "y", lines: []line{{name: "<one>", points: []point{{1, 7}, {100, 42}}}, {name: "none"}}},
	} {
		svg := p.svg()
		require.NotContains(t, svg, "NaN")
		require.NotContains(t, svg, "Inf")
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			_, err := d.Token()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
		}
	}
	svg := plot{lines: []line{{name: "l", points: []point{{0, 0}, {100, 50}}}}}.svg()
	require.Contains(t, svg, `points="70.0,380.0 600.0,50.0"`, "the largest value is at the end of both axes")
}

func TestNiceStep(t *testing.T) {
	for limit, want := range map[float64]float64{100: 10, 42: 5, 11: 2, 10: 1, 0.7: 0.1, 137: 20, 201: 50} {
		require.InEpsilon(t, want, niceStep(limit), 1e-9, "%v", limit)
	}
}

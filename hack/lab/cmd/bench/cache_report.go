package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
)

// cacheReport is every run and the medians.
type cacheReport struct {
	Date    time.Time     `json:"date"`
	CPUs    int           `json:"cpus"`
	Network string        `json:"network"`
	Medians []cacheMedian `json:"medians"`
	Runs    []cacheResult `json:"runs"`

	network network
	cases   []cacheCase
}

// cacheMedian is what the runs of one case have in the middle, each figure by itself.
type cacheMedian struct {
	Case    string  `json:"case"`
	Variant string  `json:"variant"`
	N       int     `json:"n"` // runs that succeeded
	Failed  int     `json:"failed"`
	Fastest float64 `json:"seconds_min"`
	Slowest float64 `json:"seconds_max"`
	figures
}

func (b *cacheBench) report() *cacheReport {
	r := &cacheReport{
		Date: time.Now().UTC(), CPUs: runtime.NumCPU(), Network: b.network.id, Runs: b.results,
		network: b.network, cases: b.cases,
	}
	for _, c := range b.cases {
		for _, v := range b.variants {
			r.Medians = append(r.Medians, cacheMedianOf(c, v.id, b.results))
		}
	}
	return r
}

func cacheMedianOf(c cacheCase, variant string, all []cacheResult) cacheMedian {
	m := cacheMedian{Case: c.id, Variant: variant}
	var runs []cacheResult
	runs, m.Failed = succeeded(all, func(r cacheResult) (mine bool, failure string) {
		return r.Case == c.id && r.Variant == variant, r.Error
	})
	if m.N = len(runs); m.N == 0 {
		return m
	}
	m.Seconds = middle(runs, func(r cacheResult) float64 { return r.Seconds })
	m.Requests = middle(runs, func(r cacheResult) int { return r.Requests })
	m.Received = middle(runs, func(r cacheResult) int64 { return r.Received })
	m.Written = middle(runs, func(r cacheResult) int64 { return r.Written })
	m.Pushed = middle(runs, func(r cacheResult) int64 { return r.Pushed })
	m.Extra = map[string]float64{}
	for _, col := range c.extra {
		if _, ok := runs[0].Extra[col.key]; ok {
			m.Extra[col.key] = middle(runs, func(r cacheResult) float64 { return r.Extra[col.key] })
		}
	}
	m.Fastest = runs[0].Seconds
	for _, r := range runs {
		m.Fastest, m.Slowest = min(m.Fastest, r.Seconds), max(m.Slowest, r.Seconds)
	}
	return m
}

func (r *cacheReport) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "The cache manager on real images, %d CPUs, %s, link: %s. Medians; in brackets the fastest and the slowest run.\n",
		r.CPUs, r.Date.Format("2006-01-02"), r.network.text)
	for _, c := range r.cases {
		fmt.Fprintf(&s, "\n%s: %s\n\n| daemon | wall time | requests | received | written | pushed |", c.id, c.text)
		for _, col := range c.extra {
			fmt.Fprintf(&s, " %s |", col.title)
		}
		fmt.Fprintf(&s, "\n|---|%s\n", strings.Repeat("---:|", 5+len(c.extra)))
		for _, m := range r.Medians {
			if m.Case == c.id {
				fmt.Fprintf(&s, "| %s | %s |\n", m.Variant, m.cells(c))
			}
		}
	}
	return s.String()
}

func (m cacheMedian) cells(c cacheCase) string {
	if m.N == 0 {
		return fmt.Sprintf("%d runs failed%s", m.Failed, strings.Repeat(" | ", 4+len(c.extra)))
	}
	failed := ""
	if m.Failed > 0 {
		failed = fmt.Sprintf(", %d failed", m.Failed)
	}
	cells := []string{
		fmt.Sprintf("%.2f s (%.2f-%.2f%s)", m.Seconds, m.Fastest, m.Slowest, failed),
		fmt.Sprint(m.Requests), megabytes(m.Received), megabytes(m.Written), megabytes(m.Pushed),
	}
	if m.Requests == 0 {
		cells = append(cells[:1], "", "", "", "") // the case is about time only
	}
	for _, col := range c.extra {
		cells = append(cells, m.cell(col))
	}
	return strings.Join(cells, " | ")
}

func (m cacheMedian) cell(col column) string {
	v, ok := m.Extra[col.key]
	if !ok {
		return ""
	}
	switch col.unit {
	case "s":
		return fmt.Sprintf("%.2f s", v)
	case "ms":
		return fmt.Sprintf("%.0f ms", v*1e3)
	case "MB":
		return megabytes(int64(v))
	}
	return fmt.Sprintf("%.0f", v)
}

func megabytes(n int64) string { return fmt.Sprintf("%.1f MB", float64(n)/1e6) }

// check says which promises ours does not keep.
func (r *cacheReport) check() error {
	var errs []error
	for _, c := range r.cases {
		m := map[string]cacheMedian{}
		for _, one := range r.Medians {
			if one.Case == c.id {
				m[one.Variant] = one
			}
		}
		if m["ours"].N == 0 {
			continue
		}
		for _, wrong := range c.check(m) {
			errs = append(errs, fmt.Errorf("%s: %s", c.id, wrong))
		}
	}
	return errors.Join(errs...)
}

// promise is a condition on ours, and what is said when it does not hold.
type promise struct {
	holds bool
	text  string
}

// broken lists the promises that do not hold.
func broken(all ...promise) (list []string) {
	for _, p := range all {
		if !p.holds {
			list = append(list, p.text)
		}
	}
	return list
}

// atMost is the promise that a figure does not exceed another; a limit of a variant
// that was not run promises nothing.
func atMost(what string, got, limit float64) promise {
	return promise{got <= limit, fmt.Sprintf("%s: %.4g, promised is at most %.4g", what, got, limit)}
}

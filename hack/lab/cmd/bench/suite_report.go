package main

import (
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
)

// suiteReport is every run and the medians.
type suiteReport struct {
	Date    time.Time     `json:"date"`
	CPUs    int           `json:"cpus"`
	Network string        `json:"network"`
	Medians []suiteMedian `json:"medians"`
	Runs    []suiteResult `json:"runs"`

	suite    suite
	network  network
	cases    []suiteCase
	variants []variant
}

// suiteMedian is what the runs of one case have in the middle, each figure by itself.
type suiteMedian struct {
	Case    string  `json:"case"`
	Variant string  `json:"variant"`
	N       int     `json:"n"` // runs that succeeded
	Failed  int     `json:"failed"`
	Fastest float64 `json:"seconds_min"`
	Slowest float64 `json:"seconds_max"`
	figures
}

func (b *suiteBench) report() *suiteReport {
	r := &suiteReport{
		Date: time.Now().UTC(), CPUs: runtime.NumCPU(), Network: b.network.id, Runs: b.results,
		suite: b.suite, network: b.network, cases: b.cases, variants: b.variants,
	}
	for _, c := range b.cases {
		for _, v := range b.variants {
			r.Medians = append(r.Medians, suiteMedianOf(c, v.id, b.results))
		}
	}
	return r
}

func suiteMedianOf(c suiteCase, variant string, all []suiteResult) suiteMedian {
	m := suiteMedian{Case: c.id, Variant: variant}
	var runs []suiteResult
	runs, m.Failed = succeeded(all, func(r suiteResult) (mine bool, failure string) {
		return r.Case == c.id && r.Variant == variant, r.Error
	})
	if m.N = len(runs); m.N == 0 {
		return m
	}
	m.Seconds = middle(runs, func(r suiteResult) float64 { return r.Seconds })
	m.Requests = middle(runs, func(r suiteResult) int { return r.Requests })
	m.Received = middle(runs, func(r suiteResult) int64 { return r.Received })
	m.Written = middle(runs, func(r suiteResult) int64 { return r.Written })
	m.Pushed = middle(runs, func(r suiteResult) int64 { return r.Pushed })
	m.Memory = middle(runs, func(r suiteResult) int64 { return r.Memory })
	m.Extra = map[string]float64{}
	for _, col := range c.extra {
		if _, ok := runs[0].Extra[col.key]; ok {
			m.Extra[col.key] = middle(runs, func(r suiteResult) float64 { return r.Extra[col.key] })
		}
	}
	m.Fastest = runs[0].Seconds
	for _, r := range runs {
		m.Fastest, m.Slowest = min(m.Fastest, r.Seconds), max(m.Slowest, r.Seconds)
	}
	return m
}

func (r *suiteReport) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s, %d CPUs, %s, link: %s. Medians; in brackets the fastest and the slowest run.\n",
		r.suite.title, r.CPUs, r.Date.Format("2006-01-02"), r.network.text)
	if r.suite.table != nil {
		s.WriteString("\n" + r.suite.table(r))
		return s.String()
	}
	for _, c := range r.cases {
		fmt.Fprintf(&s, "\n%s: %s\n\n| daemon | wall time | of stock-overlayfs | requests | received | written | pushed | peak RssAnon |", c.id, c.text)
		for _, col := range c.extra {
			fmt.Fprintf(&s, " %s |", col.title)
		}
		fmt.Fprintf(&s, "\n|---|%s\n", strings.Repeat("---:|", 7+len(c.extra)))
		m := r.medians(c.id)
		for _, one := range r.Medians {
			if one.Case == c.id {
				fmt.Fprintf(&s, "| %s | %s |\n", one.Variant, strings.Join(one.cells(c, m["stock-overlayfs"]), " | "))
			}
		}
	}
	return s.String()
}

// medians are a case's by variant.
func (r *suiteReport) medians(id string) map[string]suiteMedian {
	m := map[string]suiteMedian{}
	for _, one := range r.Medians {
		if one.Case == id {
			m[one.Variant] = one
		}
	}
	return m
}

func (m suiteMedian) wall() string {
	return wallCell(m.N, m.Failed, m.Seconds, m.Fastest, m.Slowest)
}

// cells are those of a row; full is stock overlayfs'.
func (m suiteMedian) cells(c suiteCase, full suiteMedian) []string {
	if m.N == 0 {
		return append([]string{m.wall()}, make([]string, 6+len(c.extra))...)
	}
	cells := []string{
		m.wall(), quotient(m.Seconds, full.Seconds),
		fmt.Sprint(m.Requests), megabytes(m.Received), megabytes(m.Written), megabytes(m.Pushed), fmt.Sprintf("%.0f MB", float64(m.Memory)/1e6),
	}
	if m.Requests == 0 {
		copy(cells[2:6], make([]string, 4)) // the case is about time only
	}
	for _, col := range c.extra {
		cell := m.cell(col)
		if q := quotient(m.Extra[col.key], full.Extra[col.key]); col.ratio && cell != "" && q != "" {
			cell += " (" + q + ")"
		}
		cells = append(cells, cell)
	}
	return cells
}

// quotient is a cell; of nothing it is empty.
func quotient(a, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%.2f", a/b)
}

func (m suiteMedian) cell(col column) string {
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
func (r *suiteReport) check() error {
	var errs []error
	for _, c := range r.cases {
		m := r.medians(c.id)
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

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is every run and the medians.
type report struct {
	Date    time.Time `json:"date"`
	CPUs    int       `json:"cpus"`
	Image   string    `json:"image"`
	Size    int64     `json:"image_bytes"`
	Medians []median  `json:"medians"`
	Runs    []result  `json:"runs"`

	networks []network
}

// median is what the runs of one case have in the middle, each figure by itself.
type median struct {
	Network  string  `json:"network"`
	Workload string  `json:"workload"`
	Variant  string  `json:"variant"`
	N        int     `json:"n"` // runs that succeeded
	Failed   int     `json:"failed"`
	Seconds  float64 `json:"seconds"`
	Fastest  float64 `json:"seconds_min"`
	Slowest  float64 `json:"seconds_max"`
	Layers   int     `json:"layer_requests"`
	Others   int     `json:"other_requests"`
	Bytes    int64   `json:"bytes"`
	Memory   int64   `json:"peak_rss_anon"`     // median
	MemMax   int64   `json:"peak_rss_anon_max"` // of all runs
	Left     int     `json:"mounts_left"`       // most
}

func (b *bench) report() *report {
	r := &report{
		Date: time.Now().UTC(), CPUs: runtime.NumCPU(), Image: b.image.Tag(), Size: b.image.Size(),
		Runs: b.results, networks: b.networks,
	}
	for _, net := range b.networks {
		for _, w := range b.workloads {
			for _, v := range b.variants {
				r.Medians = append(r.Medians, medianOf(net.id, w.id, v.id, b.results))
			}
		}
	}
	return r
}

func medianOf(network, workload, variant string, all []result) median {
	m := median{Network: network, Workload: workload, Variant: variant}
	var runs []result
	runs, m.Failed = succeeded(all, func(r result) (mine bool, failure string) {
		return r.Network == network && r.Workload == workload && r.Variant == variant, r.Error
	})
	if m.N = len(runs); m.N == 0 {
		return m
	}
	m.Seconds = middle(runs, func(r result) float64 { return r.Seconds })
	m.Layers = middle(runs, func(r result) int { return r.Layers })
	m.Others = middle(runs, func(r result) int { return r.Others })
	m.Bytes = middle(runs, func(r result) int64 { return r.Bytes })
	m.Memory = middle(runs, func(r result) int64 { return r.Memory })
	m.Fastest = runs[0].Seconds
	for _, r := range runs {
		m.Fastest, m.Slowest = min(m.Fastest, r.Seconds), max(m.Slowest, r.Seconds)
		m.MemMax, m.Left = max(m.MemMax, r.Memory), max(m.Left, r.Left)
	}
	return m
}

// succeeded lists the runs of one row that have not failed, and counts those that have.
func succeeded[R any](all []R, row func(R) (mine bool, failure string)) (runs []R, failed int) {
	for _, r := range all {
		switch mine, failure := row(r); {
		case !mine:
		case failure != "":
			failed++
		default:
			runs = append(runs, r)
		}
	}
	return runs, failed
}

// middle is the median of a figure; of an even number of runs, the lower one of
// the two in the middle.
func middle[R any, T cmp.Ordered](runs []R, figure func(R) T) T {
	var values []T
	for _, r := range runs {
		values = append(values, figure(r))
	}
	slices.Sort(values)
	return values[(len(values)-1)/2]
}

func (r *report) markdown() string {
	var s strings.Builder
	fmt.Fprintf(&s, "Cold builds on %s (%.0f MB compressed), %d CPUs, %s. Medians; in brackets the fastest and the slowest run.\n",
		r.Image, float64(r.Size)/1e6, r.CPUs, r.Date.Format("2006-01-02"))
	for _, net := range r.networks {
		fmt.Fprintf(&s, "\n%s (%s):\n\n", net.id, net.text)
		s.WriteString("| build | daemon | wall time | layer requests | other requests | received | peak RssAnon |\n")
		s.WriteString("|---|---|---:|---:|---:|---:|---:|\n")
		for _, m := range r.Medians {
			if m.Network != net.id {
				continue
			}
			fmt.Fprintf(&s, "| %s | %s | %s |\n", m.Workload, m.Variant, m.cells())
		}
	}
	return s.String()
}

func (m median) cells() string {
	if m.N == 0 {
		return fmt.Sprintf("%d runs failed | | | | ", m.Failed)
	}
	failed := ""
	if m.Failed > 0 {
		failed = fmt.Sprintf(", %d failed", m.Failed)
	}
	return fmt.Sprintf("%.2f s (%.2f-%.2f%s) | %d | %d | %.1f MB | %.0f MB",
		m.Seconds, m.Fastest, m.Slowest, failed, m.Layers, m.Others, float64(m.Bytes)/1e6, float64(m.Memory)/1e6)
}

func writeJSON(path string, r any) error {
	data, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encode the report: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write the report: %w", err)
	}
	return nil
}

// check compares ours with stock stargz, case by case.
func (r *report) check() error {
	var errs []error
	for _, ours := range r.Medians {
		if ours.Variant != "ours" {
			continue
		}
		name := ours.Network + " " + ours.Workload
		const memory = 100e6
		if ours.MemMax >= memory {
			errs = append(errs, fmt.Errorf("%s: ours used %.1f MB of anonymous memory", name, float64(ours.MemMax)/1e6))
		}
		for _, stock := range r.Medians {
			if stock.Variant != "stock-stargz" || stock.Network != ours.Network || stock.Workload != ours.Workload || stock.N == 0 {
				continue
			}
			if ours.Seconds > stock.Seconds {
				errs = append(errs, fmt.Errorf("%s: ours took %.2f s, stock %.2f s", name, ours.Seconds, stock.Seconds))
			}
			if ours.Layers+ours.Others >= stock.Layers+stock.Others {
				errs = append(errs, fmt.Errorf("%s: ours sent %d requests, stock %d", name, ours.Layers+ours.Others, stock.Layers+stock.Others))
			}
			if ours.Bytes >= stock.Bytes {
				errs = append(errs, fmt.Errorf("%s: ours received %d bytes, stock %d", name, ours.Bytes, stock.Bytes))
			}
		}
	}
	return errors.Join(errs...)
}

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"slices"
	"time"
)

// report is every run and the medians.
type report struct {
	Date    time.Time `json:"date"`
	CPUs    int       `json:"cpus"`
	Image   string    `json:"image"`
	Size    int64     `json:"image_bytes"`
	TOCs    int64     `json:"toc_bytes"`
	Medians []median  `json:"medians"`
	Runs    []result  `json:"runs"`

	networks []network
	limits   bool // the table is about floors
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
	Data     int     `json:"data_requests"`
	DataSpan float64 `json:"data_span_seconds"`
	Bytes    int64   `json:"bytes"`
	DataSize int64   `json:"data_bytes"`
	Memory   int64   `json:"peak_rss_anon"`     // median
	MemMax   int64   `json:"peak_rss_anon_max"` // of all runs
	Left     int     `json:"mounts_left"`       // most
	reference
}

// reference is what a median is held against, as far as the run has it: zero means
// that it has not.
type reference struct {
	Waiting float64 `json:"waiting_seconds,omitempty"` // beyond the warm baseline; may be below zero by noise
	OfStock float64 `json:"of_stock,omitempty"`        // waiting by stock stargz's
	Chunks  int64   `json:"chunk_bytes,omitempty"`     // compressed bytes of the chunks that the build reads
	Floor   float64 `json:"floor_seconds,omitempty"`   // the least waiting
}

func (b *bench) report() *report {
	r := &report{
		Date: time.Now().UTC(), CPUs: runtime.NumCPU(), Image: b.image.Tag(), Size: b.image.Size(),
		TOCs: b.tocs, Runs: b.results, networks: b.networks, limits: b.limits,
	}
	for _, net := range b.networks {
		for _, w := range b.workloads {
			var row []median
			for _, v := range b.variants {
				row = append(row, medianOf(net.id, w.id, v.id, b.results))
			}
			if t := b.trained[w.id]; t != nil && t.err == nil {
				f := floor{Chunks: t.chunks, TOCs: b.tocs}
				for i, v := range b.variants {
					if v.snapshotter == "stargz" || b.limits {
						row[i].Chunks, row[i].Floor = t.chunks, f.waiting(net.shape).Seconds()
					}
				}
			}
			compare(row)
			r.Medians = append(r.Medians, row...)
		}
	}
	return r
}

// find returns the median of a variant; nil without one.
func find(row []median, variant string) *median {
	for i := range row {
		if row[i].Variant == variant && row[i].N > 0 {
			return &row[i]
		}
	}
	return nil
}

// compare fills in how long the variants of one build wait: what they take beyond
// the baseline.
func compare(row []median) {
	warm := find(row, "warm-overlayfs")
	if warm == nil {
		return
	}
	for i := range row {
		if row[i].N > 0 && &row[i] != warm {
			row[i].Waiting = row[i].Seconds - warm.Seconds
		}
	}
	stock := find(row, "stock-stargz")
	if stock == nil || stock.Waiting <= 0 {
		return
	}
	for i := range row {
		row[i].OfStock = row[i].Waiting / stock.Waiting
	}
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
	m.Data = middle(runs, func(r result) int { return r.Data })
	m.DataSpan = middle(runs, func(r result) float64 { return r.DataSpan })
	m.DataSize = middle(runs, func(r result) int64 { return r.DataSize })
	m.Bytes = middle(runs, func(r result) int64 { return r.Bytes })
	m.Memory = middle(runs, func(r result) int64 { return r.Memory })
	m.Fastest = runs[0].Seconds
	for _, r := range runs {
		m.Fastest, m.Slowest = min(m.Fastest, r.Seconds), max(m.Slowest, r.Seconds)
		m.MemMax, m.Left = max(m.MemMax, r.Memory), max(m.Left, r.Left)
	}
	return m
}

// wallCell is the cell of the wall time of n runs that succeeded.
func wallCell(n, failed int, seconds, fastest, slowest float64) string {
	if n == 0 {
		return fmt.Sprintf("%d runs failed", failed)
	}
	also := ""
	if failed > 0 {
		also = fmt.Sprintf(", %d failed", failed)
	}
	return fmt.Sprintf("%.2f s (%.2f-%.2f%s)", seconds, fastest, slowest, also)
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

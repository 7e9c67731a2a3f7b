package main

import (
	"fmt"
	"strings"
)

func (r *report) markdown() string {
	var s strings.Builder
	title := "Cold builds"
	if r.limits {
		title = "The least that cold builds can take"
	}
	fmt.Fprintf(&s, "%s on %s (%.0f MB compressed), %d CPUs, %s. Medians; in brackets the fastest and the slowest run.\n",
		title, r.Image, float64(r.Size)/1e6, r.CPUs, r.Date.Format("2006-01-02"))
	for _, net := range r.networks {
		fmt.Fprintf(&s, "\n%s (%s):\n\n", net.id, net.text)
		if r.limits {
			r.limitTable(&s, net)
		} else {
			r.coldTable(&s, net)
		}
	}
	return s.String()
}

func (r *report) coldTable(s *strings.Builder, net network) {
	s.WriteString("| build | daemon | wall time | waiting | of stock stargz's | floor | layer requests | data requests | other requests | received | data by chunks read | peak RssAnon |\n")
	s.WriteString("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n")
	for _, m := range r.Medians {
		if m.Network == net.id {
			fmt.Fprintf(s, "| %s | %s | %s |\n", m.Workload, m.Variant, strings.Join(m.cells(), " | "))
		}
	}
}

func (m median) wall() string {
	return wallCell(m.N, m.Failed, m.Seconds, m.Fastest, m.Slowest)
}

func (m median) cells() []string {
	if m.N == 0 {
		return append([]string{m.wall()}, make([]string, 9)...)
	}
	overhead, data := "", fmt.Sprint(m.Data)
	if m.Chunks > 0 && m.Data > 0 {
		overhead = fmt.Sprintf("%.2f", m.overhead())
	}
	if m.Data > 1 {
		data = fmt.Sprintf("%d in %.2f s", m.Data, m.DataSpan)
	}
	return []string{
		m.wall(), known("%.2f s", m.Waiting), known("%.2f", m.OfStock), known("%.2f s", m.Floor), fmt.Sprint(m.Layers), data,
		fmt.Sprint(m.Others), megabytes(m.Bytes), overhead, fmt.Sprintf("%.0f MB", float64(m.Memory)/1e6),
	}
}

// known formats a figure, and nothing for one that the run does not have.
func known(format string, v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf(format, v)
}

// limitTable has a row for each build: the floor's parts, and the medians beside it.
func (r *report) limitTable(s *strings.Builder, net network) {
	fmt.Fprintf(s, "| build | chunks read | tables of contents | round trips | floor of waiting | the step itself | floor of wall time |")
	var others []string
	for _, m := range r.Medians {
		if m.Network == net.id && m.Workload == r.Medians[0].Workload && m.Variant != "warm-overlayfs" {
			others = append(others, m.Variant)
			fmt.Fprintf(s, " %s: waiting | %s: wall time |", m.Variant, m.Variant)
		}
	}
	fmt.Fprintf(s, "\n|---|%s\n", strings.Repeat("---:|", 6+2*len(others)))
	for _, first := range r.Medians {
		row := r.row(net.id, first.Workload)
		if first.Network != net.id || row[0].Variant != first.Variant {
			continue
		}
		s.WriteString("| " + strings.Join(r.limitCells(row, others), " | ") + " |\n")
	}
}

func (r *report) limitCells(row []median, others []string) []string {
	m := row[0]
	step, wall := "", ""
	if warm := find(row, "warm-overlayfs"); warm != nil {
		step = warm.wall()
		if m.Floor > 0 {
			wall = fmt.Sprintf("%.2f s", m.Floor+warm.Seconds)
		}
	}
	chunks := "no profile"
	if m.Chunks > 0 {
		chunks = megabytes(m.Chunks)
	}
	cells := []string{m.Workload, chunks, megabytes(r.TOCs), fmt.Sprint(floorTrips), known("%.2f s", m.Floor), step, wall}
	for _, variant := range others {
		for i := range row {
			if row[i].Variant == variant {
				cells = append(cells, known("%.2f s", row[i].Waiting), row[i].wall())
			}
		}
	}
	return cells
}

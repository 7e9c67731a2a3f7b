package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// plot is lines over two axes that begin at zero.
type plot struct {
	title, x, y string
	lines       []line
}

type line struct {
	name   string
	points []point
}

type point struct{ x, y float64 }

// The picture, in pixels: where the axes are, and the colours of the lines, which
// differ in brightness too.
const (
	plotWidth, plotHeight     = 760, 440
	plotLeft, plotRight       = 70, 600
	plotTop, plotBottom       = 50, 380
	plotInk, plotPaper, faint = "#222", "#fff", "#ddd"
)

var plotColours = []string{"#0b6e4f", "#c8553d", "#3a5ba0", "#a0812a", "#666"}

// svg draws the plot as a file of its own.
func (p plot) svg() string {
	maxX, maxY := p.extent()
	stepX, stepY := niceStep(maxX), niceStep(maxY)
	maxX, maxY = math.Ceil(maxX/stepX)*stepX, math.Ceil(maxY/stepY)*stepY
	at := func(q point) (x, y float64) {
		return plotLeft + q.x/maxX*(plotRight-plotLeft), plotBottom - q.y/maxY*(plotBottom-plotTop)
	}
	var s strings.Builder
	fmt.Fprintf(&s, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" width="%d" height="%d" font-family="sans-serif" font-size="13" fill="%s">`+"\n",
		plotWidth, plotHeight, plotWidth, plotHeight, plotInk)
	fmt.Fprintf(&s, `<rect width="100%%" height="100%%" fill="%s"/>`+"\n", plotPaper)
	text(&s, plotLeft, 28, `font-size="15"`, p.title)
	for v := 0.0; v <= maxY+stepY/2; v += stepY {
		_, y := at(point{0, v})
		fmt.Fprintf(&s, `<path d="M%d %.1fH%d" stroke="%s"/>`+"\n", plotLeft, y, plotRight, faint)
		text(&s, plotLeft-8, y+4, `text-anchor="end"`, fmt.Sprintf("%.4g", v))
	}
	for v := 0.0; v <= maxX+stepX/2; v += stepX {
		x, _ := at(point{v, 0})
		fmt.Fprintf(&s, `<path d="M%.1f %dv5" stroke="%s"/>`+"\n", x, plotBottom, plotInk)
		text(&s, x, plotBottom+20, `text-anchor="middle"`, fmt.Sprintf("%.4g", v))
	}
	fmt.Fprintf(&s, `<path d="M%d %dV%dH%d" fill="none" stroke="%s"/>`+"\n", plotLeft, plotTop, plotBottom, plotRight, plotInk)
	text(&s, (plotLeft+plotRight)/2, plotBottom+44, `text-anchor="middle"`, p.x)
	fmt.Fprintf(&s, `<g transform="translate(22 %d) rotate(-90)">`, (plotTop+plotBottom)/2)
	text(&s, 0, 0, `text-anchor="middle"`, p.y)
	s.WriteString("</g>\n")
	for i, l := range p.lines {
		l.draw(&s, plotColours[i%len(plotColours)], i, at)
	}
	s.WriteString("</svg>\n")
	return s.String()
}

// draw draws a line, its points and its place in the legend.
func (l line) draw(s *strings.Builder, colour string, i int, at func(point) (x, y float64)) {
	var path []string
	for _, q := range l.points {
		x, y := at(q)
		path = append(path, fmt.Sprintf("%.1f,%.1f", x, y))
		fmt.Fprintf(s, `<circle cx="%.1f" cy="%.1f" r="3.5" fill="%s"/>`+"\n", x, y, colour)
	}
	fmt.Fprintf(s, `<polyline points="%s" fill="none" stroke="%s" stroke-width="2"/>`+"\n", strings.Join(path, " "), colour)
	y := float64(plotTop + 10 + 22*i)
	fmt.Fprintf(s, `<path d="M%d %.1fh24" stroke="%s" stroke-width="3"/>`+"\n", plotRight+16, y, colour)
	text(s, plotRight+46, y+4, "", l.name)
}

// extent is the largest of the coordinates; never zero.
func (p plot) extent() (x, y float64) {
	for _, l := range p.lines {
		for _, q := range l.points {
			x, y = max(x, q.x), max(y, q.y)
		}
	}
	if x <= 0 {
		x = 1
	}
	if y <= 0 {
		y = 1
	}
	return x, y
}

// niceStep divides an axis up to limit into at most ten parts of 1, 2 or 5 times a
// power of ten.
func niceStep(limit float64) float64 {
	power := math.Pow(10, math.Floor(math.Log10(limit/10)))
	for _, f := range []float64{1, 2, 5} {
		if limit <= 10*f*power*(1+1e-9) {
			return f * power
		}
	}
	return 10 * power
}

// text writes escaped text.
func text(s *strings.Builder, x, y float64, attrs, content string) {
	fmt.Fprintf(s, `<text x="%.1f" y="%.1f" %s>`, x, y, attrs)
	xml.EscapeText(s, []byte(content)) // a Builder never fails
	s.WriteString("</text>\n")
}

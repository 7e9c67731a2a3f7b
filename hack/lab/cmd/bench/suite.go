package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// suite is a command that measures cases on one daemon after the other.
type suite struct {
	id       string
	title    string // of the report
	variants string // unless others are named
	network  string // the same
	cases    []suiteCase

	table func(r *suiteReport) string // instead of one table for each case; may be nil
	plot  func(r *suiteReport) string // an SVG file; nil without one
}

// suites are the commands of this kind.
var suites = []suite{cacheSuite, stepsSuite, scanSuite, shareSuite, warmSuite, memorySuite, exportSuite}

// allStock are ours and what it is compared with.
const allStock = "ours,stock-stargz,stock-overlayfs"

// suiteCase is something that a daemon promises.
type suiteCase struct {
	id    string
	text  string // what is built, for the report
	extra []column
	run   func(ctx context.Context, t *trial) error
	// check returns what is wrong with the medians, by variant. Those of a variant
	// that was not run are zero, with N 0.
	check func(m map[string]suiteMedian) []string
}

func (c suiteCase) name() string { return c.id }

// column is a figure that only this case has.
type column struct {
	key, title, unit string // unit: s, ms, MB or "" for a count
	ratio            bool   // show beside it the ratio to stock overlayfs
}

// figures are what one run gave. Zero means none.
type figures struct {
	Seconds  float64            `json:"seconds"`
	Requests int                `json:"requests"`
	Received int64              `json:"received"` // from the registry, in bytes
	Written  int64              `json:"written"`  // by how much the state grew on disk, in bytes
	Pushed   int64              `json:"pushed"`
	Memory   int64              `json:"peak_rss_anon"`
	Extra    map[string]float64 `json:"extra,omitempty"` // by column's key; bytes and seconds
}

// suiteResult is one run.
type suiteResult struct {
	Case    string `json:"case"`
	Variant string `json:"variant"`
	Run     int    `json:"run"`
	figures
	Error string `json:"error,omitempty"`
}

// suiteBench holds what all runs share.
type suiteBench struct {
	suite    suite
	n        int
	logs     string
	base     lab.Base
	network  network
	cases    []suiteCase
	variants []variant

	programs map[bool]string // buildkitd by "is ours"
	images   map[lab.Format]*lab.Image
	files    []lab.File // of the lazy image; nil until they are needed
	registry *lab.Registry
	results  []suiteResult
}

func (c suite) run(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet(c.id, flag.ExitOnError)
	n := flags.Int("n", 3, "runs of each case, of which the median is shown")
	ours := flags.String("ours", "", "buildkitd to measure as ours (default: built from ./cmd/buildkitd)")
	stock := flags.String("stock", "", "stock buildkitd (default: built from BuildKit's module)")
	variantNames := flags.String("variants", c.variants, "daemons, separated by commas: "+strings.Join(names(variants), ", "))
	caseNames := flags.String("cases", strings.Join(names(c.cases), ","), "what to measure, separated by commas")
	networkName := flags.String("network", c.network, "link: "+strings.Join(names(networks), ", "))
	rtt := flags.Duration("rtt", 0, "round trip time of the link, instead of its own")
	baseName := flags.String("base", "bench", "base image: bench, demo")
	jsonPath := flags.String("json", "", "file for every run's figures in JSON")
	check := flags.Bool("check", false, "fail where ours does not keep a promise")
	logs := flags.String("logs", "", "directory for the daemons' logs, which are discarded otherwise")
	svgPath := ""
	if c.plot != nil {
		flags.StringVar(&svgPath, "svg", "", "file for a plot")
	}
	flags.Usage = func() {
		fmt.Fprintf(flags.Output(), "usage: hack/bench %s [FLAGS]\n\nThe cases:\n\n", c.id)
		for _, one := range c.cases {
			fmt.Fprintf(flags.Output(), "  %-10s %s\n", one.id, one.text)
		}
		fmt.Fprintln(flags.Output())
		flags.PrintDefaults()
	}
	flags.Parse(args)

	b := &suiteBench{suite: c, n: *n, logs: *logs, images: map[lab.Format]*lab.Image{}}
	var err error
	if b.base, err = lab.FindBase(*baseName); err != nil {
		return err
	}
	if b.variants, err = choose("variant", variants, *variantNames); err != nil {
		return err
	}
	if b.cases, err = choose("case", c.cases, *caseNames); err != nil {
		return err
	}
	links, err := chooseNetworks(*networkName, *rtt)
	if err != nil {
		return err
	}
	b.network = links[0]
	if b.programs, err = findPrograms(ctx, b.variants, *ours, *stock); err != nil {
		return err
	}
	if b.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{Shape: b.network.shape}); err != nil {
		return err
	}
	defer b.registry.Stop()
	runErr := b.run(ctx)
	r := b.report()
	if svgPath != "" {
		if err := os.WriteFile(svgPath, []byte(c.plot(r)), 0o644); err != nil {
			return errors.Join(runErr, fmt.Errorf("write the plot: %w", err))
		}
	}
	return conclude(r, *jsonPath, runErr, *check)
}

// image returns one of the base's images, pushed. The first call for a packing may
// take minutes.
func (b *suiteBench) image(ctx context.Context, bottom, top lab.Packing) (*lab.Image, error) {
	tag := lab.Format(bottom.String() + "-" + top.String())
	if img := b.images[tag]; img != nil {
		return img, b.registry.Warm(img)
	}
	img, err := lab.MixedImage(ctx, b.base, bottom, top)
	if err != nil {
		return nil, err
	}
	if _, err := lab.Push(ctx, b.registry.Direct, img); err != nil {
		return nil, err
	}
	b.images[tag] = img
	return img, b.registry.Warm(img)
}

// lazyImage returns one of several images with the same tree, all lazy, that share
// no layer.
func (b *suiteBench) lazyImage(ctx context.Context, i int) (*lab.Image, error) {
	p := lab.Packing{Format: lab.EStargz, ChunkSize: []int{0, 1 << 20, 2 << 20}[i]}
	return b.image(ctx, p, p)
}

// run does all runs; variants take turns within each round. A run that fails is a
// result; an error says that some did.
func (b *suiteBench) run(ctx context.Context) error {
	failed := 0
	for _, c := range b.cases {
		for i := range b.n {
			for _, v := range b.variants {
				if err := ctx.Err(); err != nil {
					return err
				}
				r := suiteResult{Case: c.id, Variant: v.id, Run: i + 1}
				t := &trial{suiteBench: b, variant: v, log: fmt.Sprintf("%s-%s-%s-%d.log", b.suite.id, c.id, v.id, i+1)}
				if err := errors.Join(c.run(ctx, t), t.end()); err != nil {
					r.Error = err.Error()
					failed++
					lab.Logf("%s %s: %s", c.id, v.id, r.Error)
				} else {
					lab.Logf("%-10s %-15s %6.2f s %4d requests %7.1f MB received %7.1f MB written %v", c.id, v.id,
						t.Seconds, t.Requests, float64(t.Received)/1e6, float64(t.Written)/1e6, t.Extra)
				}
				r.figures = t.figures
				b.results = append(b.results, r)
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d runs failed", failed, len(b.results))
	}
	return nil
}

// trial is one run of a case on a variant. It is also the figures.
type trial struct {
	*suiteBench
	variant variant
	log     string
	figures

	daemons    []*lab.Daemon
	registries []*lab.Registry
	dirs       []string
}

// note adds a figure of the case's own.
func (t *trial) note(key string, value float64) {
	if t.Extra == nil {
		t.Extra = map[string]float64{}
	}
	t.Extra[key] = value
}

// daemon starts one with an empty state, which end stops.
func (t *trial) daemon(ctx context.Context, args ...func(*lab.DaemonOptions)) (*lab.Daemon, error) {
	opts := lab.DaemonOptions{
		Program: t.programs[t.variant.ours], Snapshotter: t.variant.snapshotter, Registries: []string{t.registry.Link},
	}
	for _, r := range t.registries {
		opts.Registries = append(opts.Registries, r.Link)
	}
	var err error
	if opts.Log, err = logFile(t.logs, t.log); err != nil {
		return nil, err
	}
	for _, f := range args {
		f(&opts)
	}
	d, err := lab.StartDaemon(ctx, opts)
	if err != nil {
		return nil, err
	}
	t.daemons = append(t.daemons, d)
	return d, nil
}

// dir makes a directory that end removes.
func (t *trial) dir() (string, error) {
	dir, err := benchDir()
	if err == nil {
		t.dirs = append(t.dirs, dir)
	}
	return dir, err
}

// emptyRegistry starts another registry, behind a link of the same shape.
func (t *trial) emptyRegistry(ctx context.Context) (*lab.Registry, error) {
	dir, err := t.dir()
	if err != nil {
		return nil, err
	}
	r, err := lab.StartRegistry(ctx, lab.RegistryOptions{Dir: dir, Shape: t.network.shape})
	if err != nil {
		return nil, err
	}
	t.registries = append(t.registries, r)
	return r, nil
}

// end stops all daemons and registries, the latest first. Only for ours it is an
// error when one does not end well: stock leaves mounts.
func (t *trial) end() error {
	var errs []error
	for i := len(t.daemons) - 1; i >= 0; i-- {
		if err := t.daemons[i].Stop(); err != nil && t.variant.ours {
			errs = append(errs, err)
		}
		errs = append(errs, t.daemons[i].Remove())
	}
	for _, r := range t.registries {
		r.Stop()
	}
	return errors.Join(append(errs, removeAll(t.dirs))...)
}

// measure runs f and says what it cost on daemon d and the registries.
func (t *trial) measure(ctx context.Context, d *lab.Daemon, f func() (time.Duration, error)) (cost figures, err error) {
	before, err := lab.DiskUsage(d.Root, nil)
	if err != nil {
		return cost, err
	}
	all := append([]*lab.Registry{t.registry}, t.registries...)
	for _, r := range all {
		if err := r.Reset(ctx); err != nil {
			return cost, err
		}
	}
	d.ResetPeakMemory()
	wall, err := f()
	if err != nil {
		return cost, fmt.Errorf("%w\n%s", err, d.LogTail(15))
	}
	cost.Seconds, cost.Memory = wall.Seconds(), d.PeakMemory()
	for _, r := range all {
		s, err := r.Stats(ctx)
		if err != nil {
			return cost, err
		}
		cost.Requests += s.Requests
		cost.Received += s.Bytes
		cost.Pushed += s.PushedBytes
	}
	after, err := lab.DiskUsage(d.Root, nil)
	if err != nil {
		return cost, err
	}
	cost.Written = after - before
	return cost, nil
}

// build measures one build; cost does not count unless it is made the trial's.
func (t *trial) build(ctx context.Context, d *lab.Daemon, opts lab.BuildOptions) (res *lab.BuildResult, cost figures, err error) {
	cost, err = t.measure(ctx, d, func() (time.Duration, error) {
		res, err = lab.Build(ctx, d.Addr, opts)
		if err != nil {
			return 0, err
		}
		return res.Wall, nil
	})
	return res, cost, err
}

// is makes the cost of a build the trial's, which keeps its own figures.
func (t *trial) is(cost figures) {
	cost.Extra = t.Extra
	t.figures = cost
}

// coolDown makes the machine one that has never seen an image.
func (t *trial) coolDown(img *lab.Image) error {
	return coolDown(t.registry, img, t.programs[t.variant.ours])
}

// cold measures the first build on img of a fresh daemon, on a machine that has
// nothing of either in memory. dockerfile gets the image's name.
func (t *trial) cold(ctx context.Context, img *lab.Image, dockerfile func(ref string) string, opts lab.BuildOptions) error {
	if err := t.coolDown(img); err != nil {
		return err
	}
	d, err := t.daemon(ctx)
	if err != nil {
		return err
	}
	opts.Dockerfile = dockerfile(t.on(img))
	_, cost, err := t.build(ctx, d, opts)
	if err != nil {
		return err
	}
	t.is(cost)
	return nil
}

// on is an image's name over the link.
func (t *trial) on(img *lab.Image) string { return t.registry.Link + "/" + img.Tag() }

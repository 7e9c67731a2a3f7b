package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

// bench holds what all runs share.
type bench struct {
	n         int
	limits    bool // the report is about floors
	logs      string
	variants  []variant
	workloads []workload
	networks  []network

	image    *lab.Image
	registry *lab.Registry
	programs map[bool]string // buildkitd by "is ours"
	tocs     int64           // bytes of the image's tables of contents
	trained  map[string]*training
	warm     *lab.Daemon // of the baseline; nil until it is needed
	dirs     []string
	results  []result
}

// result is one run.
type result struct {
	Network  string  `json:"network"`
	Workload string  `json:"workload"`
	Variant  string  `json:"variant"`
	Run      int     `json:"run"`
	Seconds  float64 `json:"seconds"`
	Layers   int     `json:"layer_requests"`
	Others   int     `json:"other_requests"`
	Data     int     `json:"data_requests"`
	DataSpan float64 `json:"data_span_seconds"` // from the first of them to the last
	Bytes    int64   `json:"bytes"`
	DataSize int64   `json:"data_bytes"`
	Memory   int64   `json:"peak_rss_anon"`
	Stop     float64 `json:"stop_seconds"`
	Left     int     `json:"mounts_left"`
	Error    string  `json:"error,omitempty"`
}

// setUp makes what is missing: packages, programs, the image and the registry.
func (b *bench) setUp(ctx context.Context, format lab.Format, ours, stock string) error {
	var err error
	if b.programs, err = findPrograms(ctx, b.variants, ours, stock); err != nil {
		return err
	}
	base, err := lab.FindBase("bench")
	if err != nil {
		return err
	}
	if b.image, err = lab.MakeImage(ctx, base, format); err != nil {
		return err
	}
	if b.tocs, err = b.image.TOCSize(); err != nil {
		return err
	}
	b.trained = map[string]*training{}
	if b.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{}); err != nil {
		return err
	}
	_, err = lab.Push(ctx, b.registry.Direct, b.image)
	if err == nil {
		err = b.registry.AddTails(ctx, b.image)
	}
	if err != nil {
		b.registry.Stop()
	}
	return err
}

// findPrograms returns the daemons of the variants by "is ours", those that are given
// or built, and installs what all of them need.
func findPrograms(ctx context.Context, all []variant, ours, stock string) (map[bool]string, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed, for mounts")
	}
	if err := lab.Install(ctx, "runc", "fuse3"); err != nil {
		return nil, err
	}
	programs := map[bool]string{true: ours, false: stock}
	for _, v := range all {
		if programs[v.ours] != "" {
			continue
		}
		find := lab.Stock
		if v.ours {
			find = lab.Ours
		}
		p, err := find(ctx)
		if err != nil {
			return nil, err
		}
		programs[v.ours] = p.Buildkitd
	}
	return programs, nil
}

// run does all runs. Variants take turns within each round, so that what else
// the machine does strikes them alike. A build that fails is a result; an error
// says that some did.
func (b *bench) run(ctx context.Context) error {
	failed := 0
	for _, net := range b.networks {
		for _, w := range b.workloads {
			if b.needsTraining() {
				b.train(ctx, w)
			}
			for i := range b.n {
				for _, v := range b.variants {
					if err := ctx.Err(); err != nil {
						return err
					}
					r := b.once(ctx, net, w, v, i+1)
					if r.Error != "" {
						failed++
						lab.Logf("%s %s %s: %s", net.id, w.id, v.id, r.Error)
					} else {
						lab.Logf("%-8s %-6s %-15s %6.2f s %4d (%d of data) + %d requests %7.1f MB %6.1f MB of memory", net.id, w.id, v.id,
							r.Seconds, r.Layers, r.Data, r.Others, float64(r.Bytes)/1e6, float64(r.Memory)/1e6)
					}
					b.results = append(b.results, r)
				}
			}
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d runs failed", failed, len(b.results))
	}
	return nil
}

// needsTraining says whether what ours reads has to be known.
func (b *bench) needsTraining() bool {
	for _, v := range b.variants {
		if v.ours && v.snapshotter == "stargz" {
			return true
		}
	}
	return b.limits
}

// once measures one build on a fresh daemon.
func (b *bench) once(ctx context.Context, net network, w workload, v variant, n int) result {
	r := result{Network: net.id, Workload: w.id, Variant: v.id, Run: n}
	if err := b.measure(ctx, net, w, v, &r); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (b *bench) measure(ctx context.Context, net network, w workload, v variant, r *result) (err error) {
	if err := b.registry.SetShape(ctx, net.shape); err != nil {
		return err
	}
	if v.warm {
		return b.measureWarm(ctx, w, v, r)
	}
	if err := coolDown(b.registry, b.image, b.programs[v.ours]); err != nil {
		return err
	}
	opts, err := b.daemonOptions(v, fmt.Sprintf("%s-%s-%s-%d.log", net.id, w.id, v.id, r.Run))
	if err != nil {
		return err
	}
	if v.profile {
		dir, err := b.copyProfiles(b.train(ctx, w))
		if err != nil {
			return err
		}
		opts.Config = profileConfig(dir)
	}
	d, err := lab.StartDaemon(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop(d, v, r), d.Remove()) }()
	return b.count(ctx, d, w, r)
}

// measureWarm measures the baseline: what a build takes that waits for nothing.
func (b *bench) measureWarm(ctx context.Context, w workload, v variant, r *result) error {
	d, err := b.warmDaemon(ctx, v)
	if err != nil {
		return err
	}
	if err := b.warmUp(ctx, d, w); err != nil {
		return err
	}
	return b.count(ctx, d, w.salted(), r)
}

// daemonOptions are a variant's, with a file for the log if one is wanted.
func (b *bench) daemonOptions(v variant, log string) (lab.DaemonOptions, error) {
	opts := lab.DaemonOptions{Program: b.programs[v.ours], Snapshotter: v.snapshotter, Registries: []string{b.registry.Link}}
	var err error
	opts.Log, err = logFile(b.logs, log)
	return opts, err
}

// logFile is the path of a log in dir, which is made, or "" without a dir.
func logFile(dir, name string) (string, error) {
	if dir == "" {
		return "", nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make the logs' directory: %w", err)
	}
	return filepath.Join(dir, name), nil
}

// count builds the workload and notes what it cost.
func (b *bench) count(ctx context.Context, d *lab.Daemon, w workload, r *result) error {
	if err := b.registry.Reset(ctx); err != nil {
		return err
	}
	d.ResetPeakMemory()
	built, err := b.build(ctx, d, w)
	if err != nil {
		return err
	}
	r.Memory = d.PeakMemory()
	r.Seconds = built.Wall.Seconds()
	stats, err := b.registry.Stats(ctx)
	if err != nil {
		return err
	}
	r.Layers, r.Others, r.Bytes = stats.LayerGets, stats.OtherRequests(), stats.Bytes
	r.Data, r.DataSize, r.DataSpan = stats.DataGets, stats.DataBytes, stats.DataSpan.Seconds()
	return nil
}

// build builds the workload and checks its result.
func (b *bench) build(ctx context.Context, d *lab.Daemon, w workload) (*lab.BuildResult, error) {
	out, err := os.MkdirTemp("", "bench-out-")
	if err != nil {
		return nil, fmt.Errorf("make the output directory: %w", err)
	}
	defer os.RemoveAll(out)
	built, err := lab.Build(ctx, d.Addr, lab.BuildOptions{
		Dockerfile: w.dockerfile(b.registry.Link + "/" + b.image.Tag()), Files: w.files, OutputDir: out,
	})
	if err != nil {
		return nil, fmt.Errorf("%w\n%s", err, d.LogTail(15))
	}
	got, err := os.ReadFile(filepath.Join(out, "result"))
	if err != nil {
		return nil, fmt.Errorf("read the build's result: %w", err)
	}
	if string(got) != w.want {
		return nil, fmt.Errorf("the build gave %q, not %q", got, w.want)
	}
	return built, nil
}

// stop ends the daemon and notes how. Mounts that stock leaves are no failure
// of the measurement; those that ours leaves are.
func (b *bench) stop(d *lab.Daemon, v variant, r *result) error {
	start := time.Now()
	err := d.Stop()
	r.Stop = time.Since(start).Seconds()
	var left *lab.LeftMountsError
	if errors.As(err, &left) {
		r.Left = len(left.Mounts)
	}
	if !v.ours {
		return nil
	}
	return err
}

// coolDown empties the page cache, where that is allowed, and then reads what a
// machine on the other side of the network, and a daemon that has run for a
// while, would have there.
func coolDown(r *lab.Registry, img *lab.Image, program string) error {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		warnOnce("the page cache is not dropped between runs: " + err.Error())
	}
	if err := r.Warm(img); err != nil {
		return err
	}
	for _, program := range []string{program, "/usr/sbin/runc"} {
		if _, err := os.ReadFile(program); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("warm %s: %w", program, err)
		}
	}
	return nil
}

// removeAll removes directories.
func removeAll(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		errs = append(errs, os.RemoveAll(dir))
	}
	return errors.Join(errs...)
}

var warned = map[string]bool{}

func warnOnce(message string) {
	if !warned[message] {
		warned[message] = true
		lab.Logf("%s", message)
	}
}

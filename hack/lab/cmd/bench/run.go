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
	logs      string
	variants  []variant
	workloads []workload
	networks  []network

	image    *lab.Image
	registry *lab.Registry
	programs map[bool]string // buildkitd by "is ours"
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
	Bytes    int64   `json:"bytes"`
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
	if b.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{}); err != nil {
		return err
	}
	if _, err := lab.Push(ctx, b.registry.Direct, b.image); err != nil {
		b.registry.Stop()
		return err
	}
	return nil
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
						lab.Logf("%-8s %-6s %-15s %6.2f s %4d + %d requests %7.1f MB %6.1f MB of memory", net.id, w.id, v.id,
							r.Seconds, r.Layers, r.Others, float64(r.Bytes)/1e6, float64(r.Memory)/1e6)
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

// once measures one build on a fresh daemon.
func (b *bench) once(ctx context.Context, net network, w workload, v variant, n int) result {
	r := result{Network: net.id, Workload: w.id, Variant: v.id, Run: n}
	if err := b.measure(ctx, net, w, v, &r); err != nil {
		r.Error = err.Error()
	}
	return r
}

func (b *bench) measure(ctx context.Context, net network, w workload, v variant, r *result) (err error) {
	if err := b.coolDown(v); err != nil {
		return err
	}
	if err := b.registry.SetShape(ctx, net.shape); err != nil {
		return err
	}
	opts := lab.DaemonOptions{Program: b.programs[v.ours], Snapshotter: v.snapshotter, Registries: []string{b.registry.Link}}
	if b.logs != "" {
		if err := os.MkdirAll(b.logs, 0o755); err != nil {
			return fmt.Errorf("make the logs' directory: %w", err)
		}
		opts.Log = filepath.Join(b.logs, fmt.Sprintf("%s-%s-%s-%d.log", net.id, w.id, v.id, r.Run))
	}
	d, err := lab.StartDaemon(ctx, opts)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.stop(d, v, r), d.Remove()) }()
	if err := b.registry.Reset(ctx); err != nil {
		return err
	}
	out, err := os.MkdirTemp("", "bench-out-")
	if err != nil {
		return fmt.Errorf("make the output directory: %w", err)
	}
	defer os.RemoveAll(out)
	built, err := lab.Build(ctx, d.Addr, lab.BuildOptions{
		Dockerfile: w.dockerfile(b.registry.Link + "/" + b.image.Tag()), Files: w.files, OutputDir: out,
	})
	if err != nil {
		return fmt.Errorf("%w\n%s", err, d.LogTail(15))
	}
	r.Memory = d.PeakMemory()
	r.Seconds = built.Wall.Seconds()
	stats, err := b.registry.Stats(ctx)
	if err != nil {
		return err
	}
	r.Layers, r.Others, r.Bytes = stats.LayerGets, stats.OtherRequests(), stats.Bytes
	got, err := os.ReadFile(filepath.Join(out, "result"))
	if err != nil {
		return fmt.Errorf("read the build's result: %w", err)
	}
	if string(got) != w.want {
		return fmt.Errorf("the build gave %q, not %q", got, w.want)
	}
	return nil
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
func (b *bench) coolDown(v variant) error {
	syscall.Sync()
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		warnOnce("the page cache is not dropped between runs: " + err.Error())
	}
	if err := b.registry.Warm(b.image); err != nil {
		return err
	}
	for _, program := range []string{b.programs[v.ours], "/usr/sbin/runc"} {
		if _, err := os.ReadFile(program); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("warm %s: %w", program, err)
		}
	}
	return nil
}

var warned = map[string]bool{}

func warnOnce(message string) {
	if !warned[message] {
		warned[message] = true
		lab.Logf("%s", message)
	}
}

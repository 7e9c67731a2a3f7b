// demo builds a Dockerfile on a base image of Debian with python3 and gcc, twice
// on fresh daemons of this repository: once with the base mounted lazily, once
// with it pulled in full, and shows what each one cost.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/link"
)

const dockerfile = `FROM %s
COPY hello.c /src/
RUN gcc -O2 -o /usr/local/bin/hello /src/hello.c && hello
RUN python3 -c 'import json, sys; print(json.dumps({"python": sys.version.split()[0]}))'
`

const source = `#include <stdio.h>
int main(void) { puts("hello from a lazily mounted gcc"); return 0; }
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var d demo
	flag.DurationVar(&d.shape.RTT, "rtt", 0, "round trip time between daemon and registry, such as 30ms")
	flag.Int64Var(&d.shape.Total, "bandwidth", 0, "bytes per second from the registry, such as 100000000 (default: no limit)")
	flag.Int64Var(&d.shape.PerConn, "per-conn", 0, "bytes per second of one connection (default: no limit)")
	flag.StringVar(&d.ours, "ours", "", "buildkitd to show (default: built from ./cmd/buildkitd)")
	keep := flag.Bool("keep", false, "leave daemon and registry running at the end until interrupted, to try them")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), "usage: hack/demo [FLAGS]\n\n"+
			"Needs a Debian machine with Go, and root. Installs runc, fuse3 and debootstrap where\n"+
			"they are missing, and keeps what it makes in $LAZYKIT_CACHE, or .cache in the\n"+
			"repository, so that the next run is quick. Removes everything else at the end.\n\n")
		flag.PrintDefaults()
	}
	flag.Parse()
	if err := d.run(ctx, *keep); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	ours     string
	shape    link.Shape
	programs lab.Programs
	image    *lab.Image
	registry *lab.Registry
	dir      string // of Dockerfile and context
}

// cost is what a build cost.
type cost struct {
	wall  time.Duration
	stats link.Stats
}

func (d *demo) run(ctx context.Context, keep bool) error {
	if os.Geteuid() != 0 {
		return errors.New("root is needed, for mounts and to install packages")
	}
	if err := d.setUp(ctx); err != nil {
		return err
	}
	defer d.registry.Stop()
	defer os.RemoveAll(d.dir)

	fmt.Printf("\n== The base image: %s, %.1f MB compressed, in a registry on %s\n\n", d.image.Tag(), mb(d.image.Size()), d.registry.Link)
	fmt.Print(indent(fmt.Sprintf(dockerfile, d.registry.Link+"/"+d.image.Tag())))
	fmt.Print("\n== A fresh daemon with --oci-worker-snapshotter=stargz\n\n")
	lazy, err := d.build(ctx, "stargz", os.Stdout, keep)
	if err != nil {
		return err
	}
	if keep || ctx.Err() != nil {
		return ctx.Err()
	}
	fmt.Print("\n== The same with --oci-worker-snapshotter=overlayfs, which pulls the base in full\n")
	full, err := d.build(ctx, "overlayfs", nil, false)
	if err != nil {
		return err
	}
	fmt.Printf("\n%-28s %10s %12s %10s\n", "", "time", "received", "requests")
	for _, row := range []struct {
		name string
		c    cost
	}{{"lazy (stargz)", lazy}, {"full pull (overlayfs)", full}} {
		fmt.Printf("%-28s %8.2f s %9.1f MB %10d\n", row.name, row.c.wall.Seconds(), mb(row.c.stats.Bytes), row.c.stats.Requests)
	}
	fmt.Printf("\nThe lazy build took %.1f of %.1f seconds, and received %.1f of %.1f MB (%.1f %%).\n",
		lazy.wall.Seconds(), full.wall.Seconds(), mb(lazy.stats.LayerBytes), mb(d.image.Size()),
		100*float64(lazy.stats.LayerBytes)/float64(d.image.Size()))
	return nil
}

// setUp makes what is missing: packages, programs, image, registry.
func (d *demo) setUp(ctx context.Context) error {
	if err := lab.Install(ctx, "runc", "fuse3", "ca-certificates"); err != nil {
		return err
	}
	lab.Logf("building buildkitd and buildctl")
	var err error
	if d.programs, err = lab.Ours(ctx); err != nil {
		return err
	}
	if d.ours != "" {
		d.programs.Buildkitd = d.ours
	}
	base, err := lab.FindBase("demo")
	if err != nil {
		return err
	}
	if d.image, err = lab.MakeImage(ctx, base, lab.EStargz); err != nil {
		return err
	}
	if d.registry, err = lab.StartRegistry(ctx, lab.RegistryOptions{Shape: d.shape}); err != nil {
		return err
	}
	if _, err = lab.Push(ctx, d.registry.Direct, d.image); err == nil {
		d.dir, err = d.writeContext()
	}
	if err != nil {
		d.registry.Stop()
	}
	return err
}

func (d *demo) writeContext() (string, error) {
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return "", fmt.Errorf("make the build context: %w", err)
	}
	for name, content := range map[string]string{
		"Dockerfile": fmt.Sprintf(dockerfile, d.registry.Link+"/"+d.image.Tag()), "hello.c": source,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			os.RemoveAll(dir)
			return "", fmt.Errorf("write the build context: %w", err)
		}
	}
	return dir, nil
}

// build runs buildctl on a fresh daemon. Its progress goes to show, or is kept
// back unless it fails when show is nil.
func (d *demo) build(ctx context.Context, snapshotter string, show *os.File, keep bool) (c cost, err error) {
	daemon, err := lab.StartDaemon(ctx, lab.DaemonOptions{
		Program: d.programs.Buildkitd, Snapshotter: snapshotter, Registries: []string{d.registry.Link},
	})
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, daemon.Stop(), daemon.Remove()) }()
	if err := d.registry.Reset(ctx); err != nil {
		return c, err
	}
	args := []string{"--addr", daemon.Addr, "build", "--progress=plain", "--frontend=dockerfile.v0",
		"--local=context=" + d.dir, "--local=dockerfile=" + d.dir}
	cmd := exec.CommandContext(ctx, d.programs.Buildctl, args...)
	var kept strings.Builder
	cmd.Stdout, cmd.Stderr = &kept, &kept
	if show != nil {
		fmt.Fprintf(show, "  buildctl %s\n\n", strings.Join(args, " "))
		cmd.Stdout, cmd.Stderr = show, show
	}
	start := time.Now()
	if err := cmd.Run(); err != nil {
		return c, fmt.Errorf("buildctl with %s: %w\n%s\nthe daemon's log ends with:\n%s", snapshotter, err, kept.String(), daemon.LogTail(20))
	}
	c.wall = time.Since(start)
	if c.stats, err = d.registry.Stats(ctx); err != nil {
		return c, err
	}
	if keep {
		fmt.Printf("\nThe daemon listens on %s and the registry on %s, until this is interrupted.\nIts client is %s\n",
			daemon.Addr, d.registry.Link, d.programs.Buildctl)
		<-ctx.Done()
	}
	return c, nil
}

func mb(n int64) float64 { return float64(n) / 1e6 }

func indent(s string) string {
	return "  " + strings.ReplaceAll(strings.TrimSuffix(s, "\n"), "\n", "\n  ") + "\n"
}

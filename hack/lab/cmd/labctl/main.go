// labctl makes the lab's images and programs, and runs its registry and its
// daemons, from the command line.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lazykit/lazykit/hack/lab"
	"github.com/lazykit/lazykit/hack/lab/link"
)

const usage = `usage: labctl COMMAND [FLAGS]

  images    make base images, push them if asked, print what they are called
  registry  run a registry on loopback until interrupted
  stock     build stock buildkitd and buildctl, print where they are
  daemon    run a buildkitd on fresh state until interrupted

labctl COMMAND -h shows a command's flags. Images, programs and the registry's
contents are kept in $LAZYKIT_CACHE, or .cache in the repository.
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	commands := map[string]func(context.Context, []string) error{
		"images": images, "registry": registry, "stock": stock, "daemon": daemon,
	}
	if len(os.Args) < 2 || commands[os.Args[1]] == nil {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	if err := commands[os.Args[1]](ctx, os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "labctl:", err)
		os.Exit(1)
	}
}

func images(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("images", flag.ExitOnError)
	bases := flags.String("base", "bench", "bases to make, separated by commas: bench, demo")
	formats := flags.String("format", "estargz,gzip,zstdchunked,stargz", "layer formats, separated by commas")
	push := flags.String("push", "", "HOST:PORT of a registry to push to, over HTTP")
	flags.Parse(args)
	for _, name := range strings.Split(*bases, ",") {
		base, err := lab.FindBase(name)
		if err != nil {
			return err
		}
		for _, name := range strings.Split(*formats, ",") {
			format, err := lab.ParseFormat(name)
			if err != nil {
				return err
			}
			img, err := lab.MakeImage(ctx, base, format)
			if err != nil {
				return err
			}
			called := img.Tag()
			if *push != "" {
				if called, err = lab.Push(ctx, *push, img); err != nil {
					return err
				}
			}
			fmt.Printf("%s %s %.1f MB, layout in %s\n", called, img.Manifest.Digest, float64(img.Size())/1e6, img.Dir)
		}
	}
	return nil
}

func registry(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("registry", flag.ExitOnError)
	var opts lab.RegistryOptions
	flags.StringVar(&opts.Addr, "addr", "", "address of the direct port (default: any on 127.0.0.1)")
	flags.StringVar(&opts.Dir, "dir", "", "directory of its contents (default: in the cache)")
	flags.DurationVar(&opts.Shape.RTT, "rtt", 0, "round trip time of the link")
	flags.Int64Var(&opts.Shape.Total, "total", 0, "bytes per second of the link")
	flags.Int64Var(&opts.Shape.PerConn, "per-conn", 0, "bytes per second of a connection of the link")
	flags.Parse(args)
	r, err := lab.StartRegistry(ctx, opts)
	if err != nil {
		return err
	}
	defer r.Stop()
	fmt.Printf("direct %s\nlink   %s\n", r.Direct, r.Link)
	<-ctx.Done()
	stats, err := r.Stats(context.WithoutCancel(ctx))
	if err == nil {
		report(stats)
	}
	return err
}

func report(s link.Stats) {
	fmt.Printf("over the link: %d requests, %d of them for layers, %.1f MB\n", s.Requests, s.LayerGets, float64(s.Bytes)/1e6)
}

func stock(ctx context.Context, args []string) error {
	flag.NewFlagSet("stock", flag.ExitOnError).Parse(args)
	programs, err := lab.Stock(ctx)
	if err != nil {
		return err
	}
	fmt.Printf("%s\n%s\n", programs.Buildkitd, programs.Buildctl)
	return nil
}

func daemon(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("daemon", flag.ExitOnError)
	var opts lab.DaemonOptions
	flags.StringVar(&opts.Program, "program", "", "buildkitd to run (default: stock)")
	flags.StringVar(&opts.Root, "root", "", "state directory (default: a fresh one, deleted afterwards)")
	flags.StringVar(&opts.Snapshotter, "snapshotter", "stargz", "snapshotter of the OCI worker")
	flags.StringVar(&opts.Log, "log", "", "file for its log")
	registries := flags.String("http", "", "HOST:PORT of registries that speak plain HTTP, separated by commas")
	flags.Parse(args)
	if opts.Program == "" {
		programs, err := lab.Stock(ctx)
		if err != nil {
			return err
		}
		opts.Program = programs.Buildkitd
	}
	if *registries != "" {
		opts.Registries = strings.Split(*registries, ",")
	}
	opts.Args = flags.Args()
	d, err := lab.StartDaemon(ctx, opts)
	if err != nil {
		return err
	}
	defer d.Remove()
	fmt.Printf("%s\npid %d, root %s, log %s\n", d.Addr, d.Pid, d.Root, d.Log)
	<-ctx.Done()
	defer func() { fmt.Printf("peak anonymous memory %.1f MB\n", float64(d.PeakMemory())/1e6) }()
	return d.Stop()
}

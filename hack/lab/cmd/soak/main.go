// soak uses a daemon for a long time and says whether it stays as it was.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/lazykit/lazykit/hack/lab"
)

const usage = `usage: hack/soak [FLAGS]

Builds on lazy base images from a real registry, several at a time, cancels some,
prunes, ends the daemon by SIGTERM and by SIGKILL and starts it again, and lets the
registry answer 503 or cut connections for some seconds, all at random. A build that
fails without having been cancelled or killed, or naming the registry's fault, ends
the run.

After each round everything is pruned, and the daemon's anonymous memory, open files,
goroutines, mounts and disk space are measured, after a garbage collection. The disk
space is that without the databases and without records in use: BuildKit's solver
holds an image for ever when the only build of it is cancelled while it is pulled.

They are flat if the last measurement of each daemon is no higher than its first one,
made after its first whole round, by more than 128 MB, 16 files, 40 connections (which
are kept for half a minute), 32 goroutines, 12 mounts and 8 MB, and mounts and disk
space no higher than those of the very first daemon by more than that. (BuildKit keeps
the trees of the twenty file systems that it hashed last, 5 to 10 MB each; an image that
is held has a mount for each layer.) The status is 1 if they are not flat, or if a
daemon did not end well.

Needs a Debian machine with Go, and root.

`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var s soak
	flag.DurationVar(&s.time, "for", 2*time.Minute, "how long; an hour is a good night's test")
	flag.Uint64Var(&s.seed, "seed", 1, "of what is done; the same one does the same, but for timing")
	flag.IntVar(&s.builds, "builds", 4, "builds at a time")
	flag.StringVar(&s.program, "ours", "", "buildkitd to use (default: built from ./cmd/buildkitd)")
	flag.Usage = func() {
		fmt.Fprint(flag.CommandLine.Output(), usage)
		flag.PrintDefaults()
	}
	flag.Parse()
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "soak: root is needed, for mounts")
		os.Exit(1)
	}
	start := time.Now()
	err := s.run(ctx)
	fmt.Printf("%d rounds, %d builds (%d cancelled, %d cut by a kill, %d failed by a fault), %d prunes, %d SIGTERM, %d SIGKILL, %d faults in %v\n",
		s.count.rounds, s.count.builds, s.count.cancelled, s.count.killed, s.count.refused, s.count.prunes, s.count.terms, s.count.kills, s.count.faults,
		time.Since(start).Round(time.Second))
	if err != nil {
		fmt.Println("not flat:", err)
		os.Exit(1)
	}
	fmt.Println("flat")
}

// slack is by how much a later measurement may exceed the first one of a daemon.
var slack = lab.Vitals{RssAnon: 128 << 20, FDs: 16, Conns: 40, Goroutines: 32, Mounts: 12, Disk: 8 << 20}

// compare says what of now exceeds first by more than slack.
func compare(first, now lab.Vitals) error {
	var errs []error
	check := func(what string, first, now, slack int64) {
		if now > first+slack {
			errs = append(errs, fmt.Errorf("%s: %d, first %d", what, now, first))
		}
	}
	check("anonymous memory", first.RssAnon, now.RssAnon, slack.RssAnon)
	check("open files", int64(first.FDs), int64(now.FDs), int64(slack.FDs))
	check("connections", int64(first.Conns), int64(now.Conns), int64(slack.Conns))
	check("goroutines", int64(first.Goroutines), int64(now.Goroutines), int64(slack.Goroutines))
	return errors.Join(append(errs, compareRoot(first, now))...)
}

// compareRoot is compare for what outlives a daemon.
func compareRoot(first, now lab.Vitals) error {
	var errs []error
	if now.Mounts > first.Mounts+slack.Mounts {
		errs = append(errs, fmt.Errorf("mounts: %d, first %d", now.Mounts, first.Mounts))
	}
	if now.Disk > first.Disk+slack.Disk {
		errs = append(errs, fmt.Errorf("disk: %d bytes, first %d", now.Disk, first.Disk))
	}
	return errors.Join(errs...)
}

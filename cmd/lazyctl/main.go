// lazyctl is the operator's tool of LazyKit.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/urfave/cli/v3"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := newApp().Run(ctx, os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "lazyctl: %v\n", err)
		os.Exit(1)
	}
}

func newApp() *cli.Command {
	return &cli.Command{
		Name:     "lazyctl",
		Usage:    "look after what LazyKit keeps",
		Commands: []*cli.Command{profileCommand()},
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/moby/buildkit/util/apicaps"
	"github.com/moby/buildkit/util/appcontext"
	_ "github.com/moby/buildkit/util/grpcutil/encoding/proto"
	"github.com/moby/buildkit/util/profiler"
	"github.com/moby/buildkit/util/stack"
	"github.com/moby/buildkit/util/tracing/detect"
	"github.com/moby/buildkit/version"
	copy "github.com/tonistiigi/fsutil/copy"
	"github.com/urfave/cli/v3"
	"golang.org/x/sys/unix"
)

// telemetryTimeout bounds the sending of the last traces and metrics.
const telemetryTimeout = 5 * time.Second

func main() {
	prepareProcess()
	defaults, err := defaultConfig()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%+v\n", err)
		os.Exit(1)
	}
	if err := newApp(defaults).Run(context.Background(), os.Args); err != nil {
		fmt.Fprintf(os.Stderr, "buildkitd: %+v\n", err)
		os.Exit(1)
	}
}

// prepareProcess sets what belongs to the whole process.
func prepareProcess() {
	// Modes of files in snapshots are the image's; fsutil copies faster when it
	// need not correct them.
	unix.Umask(0)
	copy.UmaskIsZero = true

	identify()
	apicaps.ExportedProduct = "buildkit"
	stack.SetVersionInfo(version.Version, version.Revision)
	// Traces of builds are kept in memory for the history.
	detect.Recorder = detect.NewTraceRecorder()
}

// newApp is the command line over the configuration that flags default to.
func newApp(defaults settings) *cli.Command {
	cli.VersionPrinter = func(c *cli.Command) {
		fmt.Println(c.Name, version.Package, c.Version, version.Revision)
	}
	opts := options(defaults)
	d := &daemon{}
	app := &cli.Command{
		Name:                      "buildkitd",
		Usage:                     "build daemon",
		Version:                   version.Version,
		DisableSliceFlagSeparator: true,
		Flags:                     opts.flags(),
		Action: func(_ context.Context, c *cli.Command) error {
			if os.Geteuid() > 0 {
				return errNotRoot
			}
			s, err := loadSettings(c, opts)
			if err != nil {
				return err
			}
			return d.run(appcontext.Context(), s)
		},
		After: func(context.Context, *cli.Command) error {
			ctx, cancel := context.WithTimeoutCause(appcontext.Shutdown(), telemetryTimeout, context.DeadlineExceeded)
			defer cancel()
			return d.telemetry.Shutdown(ctx)
		},
	}
	profiler.Attach(app)
	return app
}

var errNotRoot = errors.New("rootless mode requires to be executed as the mapped root in a user namespace; you may use RootlessKit for setting up the namespace")

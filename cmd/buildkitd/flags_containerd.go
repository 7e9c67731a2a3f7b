package main

import (
	"errors"

	"github.com/containerd/containerd/v2/defaults"
	"github.com/moby/buildkit/util/disk"
	"github.com/moby/sys/userns"
	"github.com/urfave/cli/v3"
)

// errNoContainerd answers those who ask for the worker that was left out.
var errNoContainerd = errors.New("LazyKit has no containerd worker: use the OCI worker (--containerd-worker=false, and [worker.containerd] enabled = false)")

// containerdOptions are the flags of stock buildkitd's containerd worker. They
// are accepted, so that a command line that configures both workers starts; only
// asking for the worker is an error, and any other of them earns a warning.
func containerdOptions(def settings) optionTable {
	ctd := def.Workers.Containerd
	stat, _ := disk.GetDiskStat(def.Root)
	rows := optionTable{
		text("containerd-worker", "enable containerd workers (true/false/auto)", triState(ctd.Enabled), func(s *settings, v string) (err error) {
			s.Workers.Containerd.Enabled, err = parseTriState(v)
			return err
		}),
	}
	for _, f := range []cli.Flag{
		&cli.StringFlag{Name: "containerd-worker-addr", Usage: "containerd socket", Value: orElse(ctd.Address, defaults.DefaultAddress)},
		&cli.StringSliceFlag{Name: "containerd-worker-labels", Usage: "user-specific annotation labels (com.example.foo=bar)"},
		&cli.StringSliceFlag{Name: "containerd-worker-platform", Usage: "override supported platforms for worker", Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-namespace", Usage: "override containerd namespace", Value: orElse(ctd.Namespace, "buildkit"), Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-runtime", Usage: "override containerd runtime", Value: orElse(ctd.Runtime.Name, defaults.DefaultRuntime), Hidden: true},
		&cli.StringFlag{Name: "containerd-worker-net", Usage: "worker network type (auto, bridge, cni or host)", Value: ctd.Mode},
		&cli.StringFlag{Name: "containerd-cni-config-path", Usage: "path of cni config file", Value: ctd.CNIConfigPath},
		&cli.StringFlag{Name: "containerd-cni-binary-dir", Usage: "path of cni binary files", Value: ctd.CNIBinaryPath},
		&cli.IntFlag{Name: "containerd-cni-pool-size", Usage: "size of cni network namespace pool", Value: ctd.CNIPoolSize},
		&cli.StringFlag{Name: "containerd-worker-snapshotter", Usage: "snapshotter name to use", Value: defaults.DefaultSnapshotter},
		&cli.StringFlag{Name: "containerd-worker-apparmor-profile", Usage: "set the name of the apparmor profile applied to containers"},
		&cli.BoolFlag{Name: "containerd-worker-selinux", Usage: "apply SELinux labels"},
		&cli.IntFlag{Name: "containerd-max-parallelism", Usage: "limit the number of parallel build steps that can run at the same time", Value: ctd.MaxParallelism},
		&cli.BoolFlag{Name: "containerd-worker-rootless", Usage: "enable rootless mode", Value: userns.RunningInUserNS()},
		&cli.BoolFlag{Name: "containerd-worker-gc", Usage: "Enable automatic garbage collection on worker", Value: ctd.GC == nil || *ctd.GC},
		&cli.StringFlag{Name: "containerd-worker-gc-keepstorage", Usage: gcUsage, Value: formatGC(ctd.GCConfig, stat), Hidden: len(ctd.GCPolicy) != 0},
	} {
		rows = append(rows, option{flag: f, apply: warnNoEffect(f.Names()[0])})
	}
	return rows
}

func warnNoEffect(name string) func(*cli.Command, *settings) error {
	return func(_ *cli.Command, s *settings) error {
		s.warn("--" + name + " has no effect: LazyKit has no containerd worker")
		return nil
	}
}

// refuseContainerd is an error when the settings ask for the containerd worker.
// "auto" does not: stock skips the worker where containerd does not answer.
func refuseContainerd(s *settings) error {
	if on := s.Workers.Containerd.Enabled; on != nil && *on {
		return errNoContainerd
	}
	return nil
}

func orElse(v, other string) string {
	if v == "" {
		return other
	}
	return v
}

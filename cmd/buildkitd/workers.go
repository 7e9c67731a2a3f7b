package main

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/cmd/buildkitd/config"
	"github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/util/archutil"
	"github.com/moby/buildkit/util/bklog"
	"github.com/moby/buildkit/util/network/cniprovider"
	"github.com/moby/buildkit/util/network/netproviders"
	"github.com/moby/sys/user"
	ocispecs "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lazykit/lazykit/worker"
)

var errNoWorker = errors.New("no worker found: the OCI worker is disabled, or neither runc nor buildkit-runc is in PATH (LazyKit has no containerd worker)")

// newWorker starts the OCI worker.
func newWorker(ctx context.Context, s *settings, p *parts, traceSocket string) (*worker.Worker, error) {
	if !wantsOCI(s.Workers.OCI) {
		return nil, errNoWorker
	}
	opts, err := workerOptions(&s.Config)
	if err != nil {
		return nil, err
	}
	opts.Sessions, opts.Hosts, opts.Expect, opts.TraceSocket = p.sessions, p.hosts, p.expect, traceSocket
	w, err := worker.New(ctx, opts)
	if err != nil {
		return nil, fmt.Errorf("OCI worker: %w", err)
	}
	platforms := w.Platforms(false)
	bklog.G(ctx).Infof("found worker %q, labels=%v, platforms=%v", w.ID(), w.Labels(), formatPlatforms(platforms))
	bklog.G(ctx).Infof("found 1 workers, default=%q", w.ID()) // some wait for this line
	archutil.WarnIfUnsupported(platforms)
	return w, nil
}

// wantsOCI decides "auto" by whether there is a runtime.
func wantsOCI(cfg config.OCIConfig) bool {
	if cfg.Enabled != nil {
		return *cfg.Enabled
	}
	for _, name := range []string{"runc", "buildkit-runc"} {
		if _, err := exec.LookPath(name); err == nil {
			return true
		}
	}
	bklog.L.Warnf("skipping oci worker, as runc does not exist")
	return false
}

// workerOptions translates the config for package worker.
func workerOptions(cfg *config.Config) (worker.Options, error) {
	c := cfg.Workers.OCI
	opts := worker.Options{
		Root:            cfg.Root,
		Snapshotter:     c.Snapshotter,
		ProxyAddress:    c.ProxySnapshotterPath,
		Labels:          c.Labels,
		GCPolicy:        gcPolicy(c.GCConfig, cfg.Root),
		BuildkitVersion: buildkitVersion(),
		Network:         networkOptions(cfg.Root, c),
		DNS:             dnsConfig(cfg.DNS),
		Binary:          c.Binary,
		Rootless:        c.Rootless,
		ApparmorProfile: c.ApparmorProfile,
		SELinux:         c.SELinux,
		CgroupParent:    c.DefaultCgroupParent,
		MaxParallelism:  c.MaxParallelism,
	}
	var err error
	if opts.ProcessMode, err = processMode(c); err != nil {
		return opts, err
	}
	if opts.IDMapping, err = idMapping(c.UserRemapUnsupported); err != nil {
		return opts, err
	}
	if opts.Platforms, err = parsePlatforms(c.Platforms); err != nil {
		return opts, err
	}
	if opts.CDI, err = newCDI(cfg.CDI); err != nil {
		return opts, err
	}
	if opts.Snapshotter == worker.Auto && opts.ProxyAddress == "" {
		choice := worker.Choose(cfg.Root)
		bklog.L.Infof("auto snapshotter: using %s: %s", choice.Name, choice.Reason)
		opts.Snapshotter, opts.NotLazy = choice.Name, choice.NotLazy
	} else if opts.Snapshotter == worker.Stargz && opts.ProxyAddress == "" {
		if choice := worker.Demand(cfg.Root); choice.Name != worker.Stargz {
			bklog.L.Warnf("the stargz snapshotter does not work on this machine: using %s, layers are pulled whole: %s", choice.Name, choice.Reason)
			opts.Snapshotter, opts.NotLazy = choice.Name, choice.NotLazy
		}
	}
	if opts.Snapshotter == worker.Stargz && opts.ProxyAddress == "" {
		lazy, warnings, err := parseStargz(c.StargzSnapshotterConfig)
		if err != nil {
			return opts, err
		}
		for _, w := range warnings {
			bklog.L.Warn(w)
		}
		opts.Lazy = lazy
	}
	return opts, nil
}

func networkOptions(root string, c config.OCIConfig) netproviders.Opt {
	mode := c.Mode
	if c.Rootless && mode == "auto" {
		mode = "host"
	}
	return netproviders.Opt{
		Mode: mode,
		CNI: cniprovider.Opt{
			Root:         root,
			ConfigPath:   c.CNIConfigPath,
			BinaryDir:    c.CNIBinaryPath,
			PoolSize:     c.CNIPoolSize,
			BridgeName:   c.BridgeName,
			BridgeSubnet: c.BridgeSubnet,
		},
	}
}

func dnsConfig(cfg *config.DNSConfig) *oci.DNSConfig {
	if cfg == nil {
		return nil
	}
	return &oci.DNSConfig{Nameservers: cfg.Nameservers, Options: cfg.Options, SearchDomains: cfg.SearchDomains}
}

// processMode says whether steps see the daemon's processes, which only a
// rootless daemon may allow.
func processMode(c config.OCIConfig) (oci.ProcessMode, error) {
	if !c.NoProcessSandbox {
		return oci.ProcessSandbox, nil
	}
	if !c.Rootless {
		return oci.ProcessSandbox, errors.New("can't enable NoProcessSandbox without Rootless")
	}
	bklog.L.Warn("NoProcessSandbox is enabled: build containers can kill, and perhaps trace, any process of the daemon's PID namespace. It is meant for an unprivileged daemon in a container.")
	return oci.NoProcessSandbox, nil
}

// idMapping reads the ranges of a user from /etc/subuid and /etc/subgid.
func idMapping(spec string) (*user.IdentityMapping, error) {
	if spec == "" {
		return nil, nil
	}
	if strings.Count(spec, ":") > 1 {
		return nil, fmt.Errorf("invalid userns remap specification in %q", spec)
	}
	name, _, _ := strings.Cut(spec, ":")
	m, err := user.LoadIdentityMapping(name)
	if err != nil {
		return nil, fmt.Errorf("failed to create ID mappings: %w", err)
	}
	return &m, nil
}

func formatPlatforms(ps []ocispecs.Platform) []string {
	out := make([]string, len(ps))
	for i, p := range ps {
		out[i] = platforms.Format(platforms.Normalize(p))
	}
	return out
}

func parsePlatforms(names []string) ([]ocispecs.Platform, error) {
	out := make([]ocispecs.Platform, len(names))
	for i, n := range names {
		p, err := platforms.Parse(n)
		if err != nil {
			return nil, fmt.Errorf("invalid platforms: %w", err)
		}
		out[i] = platforms.Normalize(p)
	}
	return out, nil
}

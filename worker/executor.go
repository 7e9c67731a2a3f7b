package worker

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/buildkit/executor"
	"github.com/moby/buildkit/executor/resources"
	"github.com/moby/buildkit/executor/runcexecutor"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/buildkit/util/network"
	"github.com/moby/buildkit/util/network/netproviders"
)

// execution is what runs steps: the OCI runtime, networks, resource accounting.
type execution struct {
	executor  executor.Executor
	networks  map[pb.NetMode]network.Provider
	proxy     network.ProxyProvider
	netMode   string // the mode that "auto" turned out to be
	resources *resources.Monitor
}

func newExecution(dir string, opts Options) (_ *execution, rerr error) {
	networks, proxy, mode, err := netproviders.Providers(opts.Network)
	if err != nil {
		return nil, fmt.Errorf("network of steps: %w", err)
	}
	e := &execution{networks: networks, proxy: proxy, netMode: mode}
	defer func() {
		if rerr != nil {
			e.Close()
		}
	}()
	if e.resources, err = resources.NewMonitor(); err != nil {
		return nil, fmt.Errorf("resource monitor: %w", err)
	}
	var commands []string // none: BuildKit's own candidates
	if opts.Binary != "" {
		commands = []string{opts.Binary}
	}
	e.executor, err = runcexecutor.New(runcexecutor.Opt{
		Root:                filepath.Join(dir, executorDir),
		CommandCandidates:   commands,
		Rootless:            opts.Rootless,
		DefaultCgroupParent: opts.CgroupParent,
		ProcessMode:         opts.ProcessMode,
		IdentityMapping:     opts.IDMapping,
		DNS:                 opts.DNS,
		ApparmorProfile:     opts.ApparmorProfile,
		SELinux:             opts.SELinux,
		TracingSocket:       opts.TraceSocket,
		ResourceMonitor:     e.resources,
		CDIManager:          opts.CDI,
		ProxyProvider:       proxy,
	}, networks)
	if err != nil {
		return nil, fmt.Errorf("OCI executor: %w", err)
	}
	return e, nil
}

// Close is for an execution that never became part of a worker; BuildKit's worker
// closes these parts itself.
func (e *execution) Close() error {
	var errs []error
	if e.proxy != nil {
		errs = append(errs, e.proxy.Close())
	}
	for _, n := range e.networks {
		errs = append(errs, n.Close())
	}
	if e.resources != nil {
		errs = append(errs, e.resources.Close())
	}
	return errors.Join(errs...)
}
